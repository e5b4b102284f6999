"""What the shift of the residual stream is made of, exactly (Lee et al. 2024, sec. 5.2; claim 27).

A block adds attn_out + m·W_out + b_out to the stream. So, with v the rows of W_out, the shift
between two models splits without remainder:

δ = Δresid_pre.0 + Σ_l Δattn_out + Σ_l Σ_i (m_i Δv_i + Δm_i v_i + Δm_i Δv_i) + Σ_l Δb_out,

m and v of the base, over the attentions and MLPs below the place. The terms are named

``value_vectors`` Σ mΔv · ``activations`` Σ Δm·v · ``interaction`` Σ ΔmΔv · ``attention`` (its own
output bias within) · ``bias`` (of the MLPs) · ``embedding``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsteer_tl.controls import bootstrap_ratio
from dsteer_tl.lens_model import LensModel, MlpWeights
from dsteer_tl.toxicity.component_reading import ComponentBatch, double_precision
from dsteer_tl.toxicity.offsets import KINDS, residual_places

TERMS = ("value_vectors", "activations", "interaction", "attention", "bias", "embedding")
PERMUTED = "permuted_rows"


def decomposition_places(n_layers: int) -> tuple[str, ...]:
    """What a decomposition reads of base and policy."""
    inner = ("attn_out", "mlp_post")
    return (
        "resid_pre.0",
        *(f"{place}.{layer}" for layer in range(n_layers) for place in inner),
        *residual_places(n_layers),
    )


def mlp_terms(
    base_activations: Float[Tensor, "row d_mlp"],
    policy_activations: Float[Tensor, "row d_mlp"],
    base: MlpWeights,
    policy: MlpWeights,
    permutation: Int[np.ndarray, " d_mlp"],
) -> dict[str, Float[Tensor, "row d_model"]]:
    """The terms of one MLP's shift m_p·W_p + b_p − (m·W + b), in float64.

    Args:
        base_activations: m of the base.
        policy_activations: m of the policy at the same tokens.
        base: Weights of the base's MLP.
        policy: Weights of the policy's.
        permutation: An order of the neurons.

    Returns:
        ``value_vectors``, ``activations``, ``interaction`` and ``bias``, which add up to the
        shift; and ``permuted_rows``: as ``value_vectors`` with the Δv of the neurons in the order
        of the permutation, which keeps how much the value vectors changed and breaks which.
    """
    m = double_precision(base_activations, base.W_out)
    dm = double_precision(policy_activations, base.W_out) - m
    v = double_precision(base.W_out)
    dv = double_precision(policy.W_out, base.W_out) - v
    # Σ_i m_i Δv_π(i): the activations are put in place, not the larger matrix.
    moved = m[:, torch.from_numpy(np.argsort(permutation)).to(m.device)]
    bias = double_precision(policy.b_out, base.W_out) - double_precision(base.b_out, base.W_out)
    return {
        "value_vectors": (m @ dv).cpu(),
        "activations": (dm @ v).cpu(),
        "interaction": (dm @ dv).cpu(),
        "bias": bias.cpu().expand(len(m), -1),
        PERMUTED: (moved @ dv).cpu(),
    }


class Decomposition:
    """Shares of the terms along the shift, accumulated over batches.

    Of each row it keeps ‖δ‖, the projection of every term on δ̂ = δ/‖δ‖, and how far the sum of
    the terms is from δ.

    Args:
        base: The base.
        policy: The policy, of the same architecture.
        seed: Seed of the permuted rows.

    Raises:
        HookError: Something stands between the value vectors and the stream in one of the models.
    """

    def __init__(self, base: LensModel, policy: LensModel, *, seed: int) -> None:
        for lens in (base, policy):
            lens.check_value_vectors()
        self.base, self.policy = base, policy
        self.places = residual_places(base.n_layers)
        self._permutations = [
            np.random.default_rng([seed, layer]).permutation(base.d_mlp)
            for layer in range(base.n_layers)
        ]
        self._prompts: list[np.ndarray] = []
        self._kinds: list[np.ndarray] = []
        self._found: dict[str, list[np.ndarray]] = {place: [] for place in self.places}

    @torch.inference_mode()
    def add(self, batch: ComponentBatch) -> None:
        """Take the rows of one batch that are read in detail."""
        indices = np.concatenate([batch.rows(kind) for kind in KINDS])
        if not len(indices):
            return
        kinds = np.concatenate([np.full(len(batch.rows(kind)), kind, object) for kind in KINDS])
        self._prompts.append(batch.prompts[indices])
        self._kinds.append(kinds)
        chosen = torch.from_numpy(indices)

        def state(model: str, place: str) -> Tensor:
            return batch.states[model][place][chosen]

        def shift(place: str) -> Tensor:
            return state("policy", place).double() - state("base", place).double()

        embedding = shift("resid_pre.0")
        sums = {name: torch.zeros_like(embedding) for name in (*TERMS, PERMUTED)}
        sums["embedding"] = embedding
        for layer in range(self.base.n_layers):
            attention, middle = shift(f"attn_out.{layer}"), f"resid_mid.{layer}"
            if self.base.parallel_blocks:
                # The MLP reads what enters the block.
                self._found[middle].append(_projections(sums, shift(middle)))
            sums["attention"] = sums["attention"] + attention
            if not self.base.parallel_blocks:
                self._found[middle].append(_projections(sums, shift(middle)))
            place = f"mlp_post.{layer}"
            terms = mlp_terms(
                state("base", place),
                state("policy", place),
                self.base.mlp_weights(layer),
                self.policy.mlp_weights(layer),
                self._permutations[layer],
            )
            for name, term in terms.items():
                sums[name] = sums[name] + term
            after = f"resid_post.{layer}"
            self._found[after].append(_projections(sums, shift(after)))

    def table(self, *, draws: int, seed: int) -> pd.DataFrame:
        """The table ``toxicity_decomposition``.

        ``share`` is Σ_rows ⟨term, δ̂⟩ / Σ_rows ‖δ‖ with a bootstrap over prompts: the measured
        shares of one place and kind add up to 1. ``error`` is the largest ‖δ − Σ terms‖/‖δ‖ over
        rows: the rounding of the models' own arithmetic, relative to the shift; a small shift in
        half precision has a large one. Position kinds with fewer than two prompts are left out,
        and shares are NaN where base and policy do not differ.
        """
        lines = []
        empty = np.empty(0, dtype=np.int64)
        prompts, kinds = (np.concatenate([*part, empty]) for part in (self._prompts, self._kinds))
        for name in self.places:
            place, layer = name.split(".")
            for kind in KINDS:
                of_kind = kinds == kind
                if len(np.unique(prompts[of_kind])) < 2:
                    continue
                rows = np.concatenate(self._found[name])[of_kind]
                norms, errors = rows[:, -2], rows[:, -1]
                for index, term in enumerate((*TERMS, PERMUTED)):
                    interval = bootstrap_ratio(
                        rows[:, index], norms, prompts[of_kind], draws=draws, seed=seed
                    )
                    lines.append(
                        {
                            "place": place,
                            "layer": int(layer),
                            "position_kind": kind,
                            "term": "value_vectors" if term == PERMUTED else term,
                            "control": PERMUTED if term == PERMUTED else "measured",
                            "share": interval.value,
                            "low": interval.low,
                            "high": interval.high,
                            "error": float(errors.max()),
                            "rows": len(rows),
                        }
                    )
        return pd.DataFrame(lines)


def _projections(
    sums: dict[str, Float[Tensor, "row d_model"]], shift: Float[Tensor, "row d_model"]
) -> Float[np.ndarray, "row column"]:
    """Columns: ⟨term, δ̂⟩ of every term and of the permuted rows, ‖δ‖, ‖δ − Σ terms‖/‖δ‖."""
    norms = shift.norm(dim=1)
    moved = norms > 0
    unit = torch.where(moved[:, None], shift / norms[:, None], 0.0)
    rest = (shift - torch.stack([sums[name] for name in TERMS]).sum(dim=0)).norm(dim=1)
    error = torch.where(rest > 0, rest / norms, 0.0)  # infinite where terms add up beside no shift
    columns = [(sums[name] * unit).sum(dim=1) for name in (*TERMS, PERMUTED)]
    found: np.ndarray = torch.stack([*columns, norms, error], dim=1).numpy()
    return found
