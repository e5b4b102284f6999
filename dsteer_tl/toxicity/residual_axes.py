"""Residuals of base and policy along the mean difference and PC1 (Lee et al. 2024, Figure 4).

In many dimensions two clouds of pure noise lie far apart along the difference of their own means.
So axis and component are fitted on one half of the prompts and shown on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from dsteer_tl.cosines import finite_rows, unit_rows
from dsteer_tl.errors import ShapeError
from dsteer_tl.positions import spread_evenly
from dsteer_tl.spectra import leading_components
from dsteer_tl.toxicity.component_reading import LAST_PROMPT, ComponentBatch


def shown_places(n_layers: int, count: int = 4) -> tuple[str, ...]:
    """``resid_mid`` of some layers spread over the depth, the last among them."""
    layers = spread_evenly(range(n_layers), count) if count > 1 else (n_layers - 1,)
    return tuple(f"resid_mid.{layer}" for layer in layers)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResidualAxes:
    """The plane of Figure 4.

    Attributes:
        centre: Mean of the residuals of both models.
        axis: Unit vector along the mean of policy minus base; zero where they do not differ.
        pc1: Unit first principal component of the residuals of both, after `axis` is taken out;
            its largest entry is positive.
        axis_size: Norm of the mean difference.
    """

    centre: Float[np.ndarray, " d_model"]
    axis: Float[np.ndarray, " d_model"]
    pc1: Float[np.ndarray, " d_model"]
    axis_size: float

    def coordinates(self, rows: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "row 2"]:
        """Coordinates of residuals along `axis` and `pc1`, from `centre`."""
        values = finite_rows(rows) - self.centre
        return np.stack([values @ self.axis, values @ self.pc1], axis=1)


def fit_axes(
    base: Float[np.ndarray, "row d_model"], policy: Float[np.ndarray, "row d_model"]
) -> ResidualAxes:
    """The mean difference, and the first principal component orthogonal to it.

    Raises:
        ShapeError: Wrong shapes, fewer than two rows, or NaN/inf inside.
    """
    one = finite_rows(base, minimum=2, name="base")
    two = finite_rows(policy, minimum=2, name="policy")
    if one.shape != two.shape:
        raise ShapeError(
            f"axes: found shapes {one.shape} and {two.shape}, expected one row a prompt for both"
        )
    difference = (two - one).mean(axis=0)
    axis = unit_rows(difference)
    pooled = np.concatenate([one, two])
    centre = pooled.mean(axis=0)
    rest = pooled - centre
    rest = rest - np.outer(rest @ axis, axis)
    pc1 = leading_components(rest, 1)[1][0]
    pc1 = unit_rows(pc1 - (pc1 @ axis) * axis)
    pc1 = pc1 * (np.sign(pc1[np.argmax(np.abs(pc1))]) or 1.0)
    return ResidualAxes(
        centre=centre, axis=axis, pc1=pc1, axis_size=float(np.linalg.norm(difference))
    )


def held_out_coordinates(
    base: Float[np.ndarray, "prompt d_model"],
    policy: Float[np.ndarray, "prompt d_model"],
    prompts: Int[np.ndarray, " prompt"],
    *,
    seed: int,
) -> pd.DataFrame:
    """Coordinates of one half of the prompts on axes fitted on the other half.

    Control ``permuted``: the labels base and policy are swapped for random prompts, in both
    halves, before anything is fitted. A plane that still parts them does so by its fit alone.

    Args:
        base: Residuals of the base, one row a prompt.
        policy: Residuals of the policy, same rows.
        prompts: The prompt of each row.
        seed: Seed of the halves and of the swaps.

    Returns:
        Columns control, model, prompt, axis, pc1, axis_size: the prompts shown, for both models
        and both controls.

    Raises:
        ShapeError: Fewer than four prompts, or wrong shapes, or NaN/inf inside.
    """
    if len(prompts) < 4:
        raise ShapeError(
            f"axes: found {len(prompts)} prompts, expected at least 4: two to fit on, two to show"
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(prompts))
    fitted, shown = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    swapped = generator.random(len(prompts)) < 0.5
    frames = []
    for control, swap in (("policy", np.zeros_like(swapped)), ("permuted", swapped)):
        one, two = _swap(base, policy, swap)
        axes = fit_axes(one[fitted], two[fitted])
        for model, rows in (("base", one), ("policy", two)):
            places = axes.coordinates(rows[shown])
            frames.append(
                pd.DataFrame(
                    {
                        "control": control,
                        "model": model,
                        "prompt": prompts[shown],
                        "axis": places[:, 0],
                        "pc1": places[:, 1],
                        "axis_size": axes.axis_size,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


class ResidualRows:
    """Residuals of base and policy at the last token of each prompt: one row a prompt.

    There both models have read the same text and written nothing yet.

    Args:
        places: Where to keep them, as from `shown_places`.
    """

    def __init__(self, places: Sequence[str]) -> None:
        self.places = tuple(places)
        self._prompts: list[np.ndarray] = []
        self._parts: dict[tuple[str, str], list[np.ndarray]] = {}

    def add(self, batch: ComponentBatch) -> None:
        """Take the rows of one batch."""
        self._prompts.append(batch.prompts[batch.rows(LAST_PROMPT)])
        for place in self.places:
            for model in ("base", "policy"):
                rows = batch.at(model, place, LAST_PROMPT).numpy()
                self._parts.setdefault((model, place), []).append(rows)

    def table(self, *, seed: int) -> pd.DataFrame:
        """The table ``toxicity_residuals``, from `held_out_coordinates` at every place.

        Raises:
            ShapeError: Fewer than four prompts.
        """
        prompts = np.concatenate([*self._prompts, np.empty(0, dtype=np.int64)])
        order = np.argsort(prompts, kind="stable")
        frames = []
        for name in self.places:
            place, layer = name.split(".")
            base, policy = (
                np.concatenate(self._parts[model, name])[order] for model in ("base", "policy")
            )
            found = held_out_coordinates(base, policy, prompts[order], seed=seed)
            found.insert(0, "place", place)
            found.insert(1, "layer", int(layer))
            frames.append(found)
        return pd.concat(frames, ignore_index=True)


def _swap(
    base: np.ndarray, policy: np.ndarray, swap: Bool[np.ndarray, " prompt"]
) -> tuple[np.ndarray, np.ndarray]:
    return np.where(swap[:, None], policy, base), np.where(swap[:, None], base, policy)
