"""Is the shift of the residual stream one offset? (Lee et al. 2024, sec. 5.2; claim 26).

δ = h_policy − h_base at the same token, at ``resid_mid`` and ``resid_post`` of every layer. The
statistic is the cosine of each δ with the mean over all *other* prompts: a row that takes part in
its own mean has a cosine with it even in pure noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from dsteer_tl.controls import bootstrap_mean
from dsteer_tl.cosines import finite_rows, group_labels, leave_one_out_cosines, unit_rows
from dsteer_tl.errors import ShapeError
from dsteer_tl.toxicity.component_reading import LAST_PROMPT, RESPONSE, ComponentBatch

KINDS = (LAST_PROMPT, RESPONSE)

# Swaps of the null; its interval is of quantiles over them.
_NULL_DRAWS = 200


def residual_places(n_layers: int) -> tuple[str, ...]:
    """The stream that each MLP reads and the stream after each block, in order of depth."""
    return tuple(
        f"{place}.{layer}" for layer in range(n_layers) for place in ("resid_mid", "resid_post")
    )


class ShiftRows:
    """Shifts of several models from the base, kept as float32 at the positions read in detail.

    Args:
        places: Where to keep them.
        models: Models by name, beside ``base``.
    """

    def __init__(self, places: Sequence[str], models: Sequence[str]) -> None:
        self.places, self.models = tuple(places), tuple(models)
        self._prompts: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        self._parts: dict[tuple[str, str, str], list[np.ndarray]] = {}

    def add(self, batch: ComponentBatch) -> None:
        """Take the rows of one batch, which holds the base and all models at all places."""
        for kind in KINDS:
            self._prompts[kind].append(batch.prompts[batch.rows(kind)])
            for place in self.places:
                base = batch.at("base", place, kind)
                norms = np.linalg.norm(base.numpy().astype(np.float64), axis=1)
                self._parts.setdefault(("norm", place, kind), []).append(norms)
                for model in self.models:
                    shift = (batch.at(model, place, kind) - base).numpy()
                    self._parts.setdefault((model, place, kind), []).append(shift)

    def count(self, kind: str) -> int:
        """How many prompts have rows of a position kind."""
        return len(np.unique(self.prompts(kind)))

    def prompts(self, kind: str) -> Int[np.ndarray, " row"]:
        """The prompt of each row."""
        return np.concatenate([*self._prompts[kind], np.empty(0, dtype=np.int64)])

    def base_norms(self, place: str, kind: str) -> Float[np.ndarray, " row"]:
        """‖h_base‖ of each row."""
        return np.concatenate(self._parts["norm", place, kind])

    def shifts(self, model: str, place: str, kind: str) -> Float[np.ndarray, "row d_model"]:
        """δ of each row, as float64."""
        return np.concatenate(self._parts[model, place, kind]).astype(np.float64)


def offset_table(rows: ShiftRows, *, draws: int, seed: int) -> pd.DataFrame:
    """The table ``toxicity_offsets``: one row a place, layer, position kind and control.

    ``cosine`` is the mean leave-one-prompt-out cosine with a bootstrap over prompts; ``norm`` the
    mean ‖δ‖; ``relative_norm`` the mean ‖δ‖/‖h_base‖. Controls: every other model of the rows
    (``random_weights``: weight changes as large that learnt nothing), and ``sign_flipped``, where
    the labels base and policy are swapped for whole prompts at random; its interval holds 95 % of
    such swaps. Position kinds with fewer than two prompts are left out.

    Raises:
        ShapeError: No position kind has two prompts.
    """
    found = []
    kinds = [kind for kind in KINDS if rows.count(kind) > 1]
    if not kinds:
        raise ShapeError("offsets: found rows of fewer than 2 prompts, expected at least 2")
    for name in rows.places:
        place, layer = name.split(".")
        for kind in kinds:
            prompts, base_norms = rows.prompts(kind), rows.base_norms(name, kind)
            for model in rows.models:
                shifts = rows.shifts(model, name, kind)
                norms = np.linalg.norm(shifts, axis=1)
                cosines = leave_one_out_cosines(shifts, prompts)
                interval = bootstrap_mean(cosines, prompts, draws=draws, seed=seed)
                line = {
                    "place": place,
                    "layer": int(layer),
                    "position_kind": kind,
                    "control": model,
                    "cosine": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                    "norm": float(norms.mean()),
                    "relative_norm": float(np.mean(norms / base_norms)),
                    "rows": len(shifts),
                    "prompts": rows.count(kind),
                }
                found.append(line)
                if model == "policy":
                    null = sign_flipped_cosines(shifts, prompts, draws=_NULL_DRAWS, seed=seed)
                    low, high = np.quantile(null, [0.025, 0.975])
                    found.append(
                        {
                            **line,
                            "control": "sign_flipped",
                            "cosine": float(null.mean()),
                            "low": float(low),
                            "high": float(high),
                        }
                    )
    return pd.DataFrame(found)


def sign_flipped_cosines(
    shifts: Float[np.ndarray, "row d_model"],
    groups: Sequence[object] | np.ndarray,
    *,
    draws: int,
    seed: int,
) -> Float[np.ndarray, " draw"]:
    """Mean leave-one-group-out cosine after the rows of random groups have changed sign.

    Swapping the labels base and policy of a prompt turns the sign of its shifts. One swap says
    little (perfectly parallel shifts with as many + as − have a cosine of −1), so there are many:
    with S_p the sum of the shifts of prompt p and U_p that of their unit vectors, each is
    (1/n) Σ_p s_p ⟨U_p, T − s_p S_p⟩ / ‖T − s_p S_p‖ with T = Σ s_p S_p, which needs the inner
    products of prompts alone.

    Raises:
        ShapeError: Wrong shape, NaN/inf inside, or fewer than two groups.
    """
    values = finite_rows(shifts, minimum=2, name="shifts")
    labels = group_labels(groups, len(values))
    count = int(labels.max()) + 1
    if count < 2:
        raise ShapeError("sign-flipped cosines: found 1 group, expected at least 2")
    sums, units = np.zeros((count, values.shape[1])), np.zeros((count, values.shape[1]))
    np.add.at(sums, labels, values)
    np.add.at(units, labels, unit_rows(values))
    gram, cross = sums @ sums.T, units @ sums.T
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(draws, count))
    with_total = signs @ gram
    squared = np.sum(with_total * signs, axis=1, keepdims=True)
    squared = squared - 2 * signs * with_total + np.diag(gram)
    # What is left of a cancelled sum is rounding and has no direction.
    kept = squared > 1e-12 * np.trace(gram)
    along = signs @ cross.T - signs * np.diag(cross)
    norms = np.sqrt(np.where(kept, squared, 1.0))
    cosines = np.where(kept, along / norms, 0.0)
    flipped: np.ndarray = np.clip((signs * cosines).sum(axis=1) / len(values), -1.0, 1.0)
    return flipped
