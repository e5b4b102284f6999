"""How many directions does the weight change have, beside the change of activations it makes?

A shift ΔH of few directions need not come from weight changes of few: full-rank updates can agree
in what they write. Table `weight_spectra` has the singular values of ΔW = W_policy − W_base of
every matrix that was trained, and of ΔH at every ``resid_post``, each beside a Gaussian matrix of
the same shape, which is all that an untrained change of that size has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from dsteer_tl.attribution.token_shifts import vector_kind
from dsteer_tl.capture import ShiftSet
from dsteer_tl.cosines import unit_rows
from dsteer_tl.errors import PairError, ShapeError
from dsteer_tl.lens_model import LoadOptions, load_model
from dsteer_tl.lens_model.adapter import is_adapter
from dsteer_tl.sites import layer_of
from dsteer_tl.spectra import leading_components, spectral_entropy
from dsteer_tl.weight_pairs import merged_adapter, paired_tensors, tensor_kind, tensor_layer

#: Singular values kept a matrix.
KEPT = 32
#: The kind of a change of activations; all others are weights.
SHIFT = "shift"

_ATTENTION = {
    "q_proj": "attention_query",
    "k_proj": "attention_key",
    "v_proj": "attention_value",
    "o_proj": "attention_output",
    "out_proj": "attention_output",
    "c_proj": "attention_output",
    "dense": "attention_output",
}
#: What adds to the residual stream.
WRITERS = ("attention_output", "mlp_out")


def matrix_kind(name: str) -> str:
    """What a weight matrix is for, by its name in a HuggingFace checkpoint.

    Returns:
        ``attention_query``, ``attention_key``, ``attention_value``, ``attention_input`` (the three
        in one matrix), ``attention_output``, ``mlp_in`` (W_in, or W_in and W_gate in one),
        ``mlp_gate``, ``mlp_out``, ``embedding``, ``unembedding`` or ``other``.
    """
    last = name.removesuffix(".weight").rsplit(".", 1)[-1]
    kind = tensor_kind(name)
    if kind == "attention":
        return _ATTENTION.get(last, "attention_input")
    if kind == "mlp_key":
        return "mlp_gate" if last == "gate_proj" else "mlp_in"
    known = {"mlp_value": "mlp_out", "embedding": "embedding", "unembedding": "unembedding"}
    return known.get(kind, "other")


def expected_cosine(d_model: int) -> float:
    """E|cos| of a random direction with a fixed one: Γ(d/2) / (√π Γ((d + 1)/2))."""
    ratio = math.lgamma(d_model / 2) - math.lgamma((d_model + 1) / 2)
    return math.exp(ratio) / math.sqrt(math.pi)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatrixSpectrum:
    """All singular values of a matrix, and directions of its row space.

    Attributes:
        singular_values: σ₁ ≥ σ₂ ≥ …, not divided by anything.
        directions: Unit vectors of the first ones.
    """

    singular_values: Float[np.ndarray, " component"]
    directions: Float[np.ndarray, "kept column"]

    @property
    def share(self) -> Float[np.ndarray, " component"]:
        """σ²/Σσ²."""
        squares = (self.singular_values / self.singular_values[0]) ** 2
        return np.asarray(squares / squares.sum())

    @property
    def effective_rank(self) -> float:
        """Exp of the entropy of the shares."""
        return math.exp(spectral_entropy(self.singular_values))

    @property
    def stable_rank(self) -> float:
        """Σσ²/σ₁²."""
        return float(1 / self.share[0])


def matrix_spectrum(matrix: Float[np.ndarray, "row column"]) -> MatrixSpectrum:
    """Singular values of a matrix by its smaller Gram matrix, with directions of its row space.

    Raises:
        ShapeError: Fewer than two rows, NaN/inf inside, or all zero.
    """
    values, directions = leading_components(matrix, min(matrix.shape))
    if not values[0] > 0:
        raise ShapeError("spectrum of a change: found a matrix of zeros, expected a change")
    return MatrixSpectrum(
        singular_values=values * math.sqrt(len(matrix)), directions=directions[:KEPT]
    )


def weight_spectra_table(
    base: str | Path,
    policy: str | Path,
    shift_set: ShiftSet,
    *,
    seed: int,
    options: LoadOptions | None = None,
    policy_options: LoadOptions | None = None,
) -> pd.DataFrame:
    """The table ``weight_spectra``: singular values of ΔW by matrix, and of ΔH by layer.

    Both checkpoints are loaded as in `weight_change_table`; matrices that were not trained have no
    rows. Of a LoRA adapter the merged weights are compared, so that ΔW is its BA.

    Args:
        base: Directory or hub id.
        policy: Directory, hub id, or a directory with a LoRA adapter for the base.
        shift_set: Captured residuals, for ΔH and v*.
        seed: Seed of the Gaussian matrices; one a shape.
        options: How the base is loaded.
        policy_options: How the policy is loaded, if otherwise.

    Returns:
        One row a singular value, at most `KEPT` a matrix: ``tensor``, ``layer`` (−1 outside the
        blocks), ``kind`` (`matrix_kind`, or ``shift`` for ΔH), ``rows``, ``columns``, ``index``
        from 1, ``singular_value``, ``share`` = σ²/Σσ², ``effective_rank`` and ``stable_rank`` of
        the matrix, ``v_star_cos``: |cos| of the singular vector in the stream with v* at that
        layer's ``resid_post``, NaN for a matrix that does not write into the stream, and
        ``null_share``, ``null_effective_rank``, ``null_v_star_cos`` of a Gaussian matrix.

    Raises:
        CheckpointError: A checkpoint or adapter cannot be loaded, or is quantized.
        DependencyError: The policy is an adapter and PEFT is not installed.
        PairError: The policy's tensors have other names or shapes, or no matrix was trained.
    """
    kind = vector_kind(shift_set)
    sites = {layer: site for site in shift_set.sites if (layer := layer_of(site)) is not None}
    shifts = {layer: shift_set.shifts(site, kind) for layer, site in sites.items()}
    v_star = {layer: unit_rows(rows.mean(axis=0)) for layer, rows in shifts.items()}
    nulls = _Nulls(seed)
    frames = []
    for name, change, writes in _changes(base, policy, options, policy_options):
        layer, of = tensor_layer(name), matrix_kind(name)
        direction = v_star.get(layer) if writes and of in WRITERS else None
        frames.append(_rows(name, layer, of, change, direction, nulls))
    if not frames:
        raise PairError(
            f"no weight matrix of {policy} differs from {base}: there is no weight change to "
            "decompose"
        )
    for place, site in sites.items():
        if shifts[place].any():
            frames.append(_rows(f"ΔH {site}", place, SHIFT, shifts[place], v_star[place], nulls))
    return pd.concat(frames, ignore_index=True)


def _changes(
    base: str | Path,
    policy: str | Path,
    options: LoadOptions | None,
    policy_options: LoadOptions | None,
) -> Iterator[tuple[str, Float[np.ndarray, "read written"], bool]]:
    """Names and changes of trained matrices, columns being what they write into.

    The flag says whether a writer's columns are the stream itself: not where a norm follows.
    """
    options = options or LoadOptions()
    before: torch.nn.Module = load_model(base, options)
    if is_adapter(policy):
        after = merged_adapter(load_model(base, options), policy, base)
    else:
        after = load_model(policy, policy_options or options)
    normed = any("post_feedforward_layernorm" in name for name, _ in before.named_parameters())
    with torch.no_grad():
        for name, old, new in paired_tensors(before, after, str(base), str(policy)):
            if old.ndim != 2 or min(old.shape) < 2 or torch.equal(old.cpu(), new.cpu()):
                continue
            change = (new.cpu().double() - old.cpu().double()).numpy()
            owner = before.get_submodule(name.rpartition(".")[0])
            # GPT-2's Conv1D and embeddings keep what they write in columns, Linear in rows.
            linear = isinstance(owner, torch.nn.Linear)
            yield name, change.T if linear else change, not normed


class _Nulls:
    """Spectra of Gaussian matrices, one a shape; a spectrum's shares do not depend on its norm."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._found: dict[tuple[int, int], MatrixSpectrum] = {}

    def of(self, rows: int, columns: int) -> MatrixSpectrum:
        shape = (max(rows, columns), min(rows, columns))
        if shape not in self._found:
            generator = np.random.default_rng([self._seed, *shape])
            self._found[shape] = matrix_spectrum(generator.standard_normal(shape))
        return self._found[shape]


def _rows(
    name: str,
    layer: int,
    kind: str,
    change: Float[np.ndarray, "read written"],
    direction: Float[np.ndarray, " written"] | None,
    nulls: _Nulls,
) -> pd.DataFrame:
    found, null = matrix_spectrum(change), nulls.of(*change.shape)
    kept = len(found.directions)
    missing = np.full(kept, np.nan)
    return pd.DataFrame(
        {
            "tensor": name,
            "layer": layer,
            "kind": kind,
            "rows": change.shape[0],
            "columns": change.shape[1],
            "index": np.arange(1, kept + 1),
            "singular_value": found.singular_values[:kept],
            "share": found.share[:kept],
            "effective_rank": found.effective_rank,
            "stable_rank": found.stable_rank,
            "v_star_cos": missing if direction is None else np.abs(found.directions @ direction),
            "null_share": null.share[:kept],
            "null_effective_rank": null.effective_rank,
            "null_v_star_cos": np.nan if direction is None else expected_cosine(len(direction)),
        }
    )
