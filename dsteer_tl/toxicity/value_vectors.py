"""MLP value vectors near an attribute's probe, and what they make the model say (claim 21).

A value vector v_i^l is row i of W_out in layer l: the MLP adds Σ_i m_i v_i to the stream. Lee et
al. 2024, sec. 3.1, take the N = 128 with the highest cosine to the probe, stack them and decompose
the stack. Everything is read from native weights: an unembedding with the final gain folded in,
times value vectors without it, mixes two bases.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from transformers import PreTrainedTokenizerBase

from dsteer_tl.cosines import finite_rows, finite_vector, unit_rows
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens import promoted_and_suppressed
from dsteer_tl.lens_model import LensModel
from dsteer_tl.spectra import spectrum
from dsteer_tl.toxicity.types import Neurons

#: How many promoted tokens `promoted_share` looks at.
TOP_TOKENS = 10

_ROWS = 4096  # of W_out or columns of W_U that are held in float64 at a time
# Below this, a cosine of float32 weights is rounding and cannot orient a direction.
_SIGN_TOLERANCE = 1e-6


def probe_cosines(
    lens: LensModel, direction: Float[np.ndarray, " d_model"]
) -> Float[np.ndarray, "layer neuron"]:
    """Cosine of every value vector of the model with a direction, in float64.

    Args:
        lens: The model.
        direction: The probe's direction on the residual stream; its length does not matter.

    Returns:
        One number a neuron; 0 where the value vector, or the direction, is zero.

    Raises:
        HookError: The rows of W_out are not what neurons write to the stream.
        ShapeError: The direction has another length than the stream, or NaN/inf inside.
    """
    unit = unit_rows(_checked(lens, direction))
    lens.check_value_vectors()
    found = np.empty((lens.n_layers, lens.d_mlp))
    for layer in range(lens.n_layers):
        W_out = lens.mlp_weights(layer).W_out
        for start in range(0, len(W_out), _ROWS):
            rows = W_out[start : start + _ROWS].detach().cpu().double().numpy()
            found[layer, start : start + len(rows)] = unit_rows(rows) @ unit
    return np.clip(found, -1.0, 1.0)


def closest_value_vectors(
    cosines: Float[np.ndarray, "layer neuron"],
    count: int,
    *,
    gated: bool,
    group: str = "attribute",
) -> Neurons:
    """The value vectors that point along a direction most, over all layers together (sec. 3.1).

    With GELU or ReLU a neuron is active where m is positive (GELU's m is never below −0.17), so it
    writes +v and only a high cosine counts. In a gated MLP m = act(x·W_gate)·(x·W_in), and the
    second factor has either sign: the neuron writes v in some contexts and −v in others. Then
    |cosine| counts, and the sign says which of the two is meant: sign·v is the oriented value
    vector and sign·m its activation.

    Args:
        cosines: `probe_cosines`.
        count: N.
        gated: Whether the MLPs are gated.
        group: Name of the group.

    Returns:
        The group, closest first; equal ones in the order of layer and neuron.

    Raises:
        ShapeError: There are fewer neurons, the count is below 1, or cosines are not finite.
    """
    values = finite_rows(cosines, name="cosines")
    _check_count(count, values.size, group)
    sizes = np.abs(values) if gated else values
    order = np.argsort(-sizes, axis=None, kind="stable")[:count]
    layers, neurons = np.unravel_index(order, values.shape)
    chosen = Neurons(group=group, layers=layers, neurons=neurons, signs=np.ones(count, dtype=int))
    return oriented_to(chosen, values, gated=gated)


def random_neurons(
    n_layers: int,
    d_mlp: int,
    count: int,
    seed: int,
    group: str = "random",
    exclude: Neurons | None = None,
) -> Neurons:
    """Neurons drawn uniformly over all layers without replacement, with signs of +1.

    In a gated model give them to `oriented_to`: chosen neurons may take the better of two signs,
    and so must their control.

    Args:
        n_layers: Layers of the model.
        d_mlp: Neurons of a layer.
        count: How many.
        seed: Seed of the draw.
        group: Name of the group.
        exclude: Neurons that are not drawn.

    Raises:
        ShapeError: There are fewer neurons, or the count is below 1.
    """
    free = np.ones((n_layers, d_mlp), dtype=bool)
    if exclude is not None:
        free[exclude.layers, exclude.neurons] = False
    places = np.flatnonzero(free)
    _check_count(count, len(places), group)
    drawn = np.random.default_rng(seed).choice(places, size=count, replace=False)
    layers, neurons = np.unravel_index(drawn, free.shape)
    return Neurons(group=group, layers=layers, neurons=neurons, signs=np.ones(count, dtype=int))


def oriented_to(
    neurons: Neurons, cosines: Float[np.ndarray, "layer neuron"], *, gated: bool
) -> Neurons:
    """The same neurons with signs that make sign·cosine ≥ 0 in a gated model, and +1 in others."""
    negative = cosines[neurons.layers, neurons.neurons] < 0
    signs = np.where(negative & gated, -1, 1)
    return Neurons(group=neurons.group, layers=neurons.layers, neurons=neurons.neurons, signs=signs)


def oriented_value_vectors(
    lens: LensModel, neurons: Neurons
) -> Float[np.ndarray, "neuron d_model"]:
    """Returns sign·v of each neuron as float64, in the order of the group."""
    found = np.empty((len(neurons), lens.d_model))
    for layer in np.unique(neurons.layers):
        here = neurons.layers == layer
        rows = lens.mlp_weights(int(layer)).W_out[neurons.neurons[here].tolist()]
        found[here] = rows.detach().cpu().double().numpy()
    return np.asarray(found * neurons.signs[:, None])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ValueVectorSVD:
    """What value vectors share.

    Attributes:
        singular_values: σ₁ ≥ σ₂ ≥ … of the unit-norm rows over √N, so that Σσ² = 1.
        share: σⱼ²/Σσ².
        directions: SVD.U[j], orthonormal, oriented along the probe.
        cosines: Cosine of each direction with the probe; ≥ 0, up to 1e-6.
    """

    singular_values: Float[np.ndarray, " component"]
    share: Float[np.ndarray, " component"]
    directions: Float[np.ndarray, "component d_model"]
    cosines: Float[np.ndarray, " component"]


def value_vector_svd(
    vectors: Float[np.ndarray, "neuron d_model"],
    probe_direction: Float[np.ndarray, " d_model"],
) -> ValueVectorSVD:
    """Singular value decomposition of unit-norm value vectors, not centred (sec. 3.1, SVD.U[j]).

    The sign of a singular vector is arbitrary, and the wrong one turns promoted tokens into
    suppressed ones: each is oriented so that its cosine with the probe is ≥ 0. Where that cosine is
    rounding, the mean row decides, as in `spectrum`.

    Args:
        vectors: One value vector a row; their lengths and signs do not matter.
        probe_direction: What orients.

    Raises:
        ShapeError: Fewer than two vectors, another width than the probe's, or NaN/inf inside.
    """
    rows, probe = finite_rows(vectors, minimum=2), finite_vector(probe_direction, name="probe")
    if rows.shape[1] != probe.size:
        raise ShapeError(
            f"value vectors: found {rows.shape[1]} columns and a probe of length {probe.size}, "
            "expected equal ones: train the probe on the residual stream of the same model"
        )
    found = spectrum(unit_rows(rows))
    cosines = found.directions @ unit_rows(probe)
    signs = np.where(cosines < -_SIGN_TOLERANCE, -1.0, 1.0)
    return ValueVectorSVD(
        singular_values=found.singular_values,
        share=found.share,
        directions=found.directions * signs[:, None],
        cosines=np.clip(cosines * signs, -1.0, 1.0),
    )


def tokens_promoted(
    lens: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    vector: Float[np.ndarray, " d_model"],
    count: int = 12,
    *,
    words: frozenset[str] = frozenset(),
) -> pd.DataFrame:
    """The tokens whose logits W_Uᵀv a vector raises and lowers most (table 1 of the paper).

    W_U and v are those of the checkpoint: no gain of the final norm is folded into either.

    Returns:
        `lens.promoted_and_suppressed` with a column ``listed``: whether the token is one of
        ``words``.

    Raises:
        ShapeError: The vector has another length than the stream, or NaN/inf inside.
    """
    table = promoted_and_suppressed(lens, tokenizer, _checked(lens, vector), count)
    return table.assign(listed=[is_listed(token, words) for token in map(str, table["token"])])


def promoted_token_ids(
    lens: LensModel,
    vectors: Float[np.ndarray, "vector d_model"],
    d_vocab: int,
    count: int = TOP_TOKENS,
) -> Int[np.ndarray, "vector token"]:
    """Ids below ``d_vocab`` that each of many vectors promotes most, the first first.

    W_U may be padded: ``d_vocab`` is the tokenizer's length. Equal logits come in order of ids.

    Raises:
        ShapeError: Wrong shape, or NaN/inf inside.
    """
    rows, W_U = finite_rows(vectors, name="vectors"), lens.W_U.detach()[:, :d_vocab]
    best: np.ndarray = np.empty((len(rows), 0))
    ids: np.ndarray = np.empty((len(rows), 0), dtype=np.int64)
    for start in range(0, W_U.shape[1], _ROWS):
        part = rows @ W_U[:, start : start + _ROWS].cpu().double().numpy()
        numbers = np.broadcast_to(np.arange(start, start + part.shape[1]), part.shape)
        best, ids = np.hstack([best, part]), np.hstack([ids, numbers])
        order = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best = np.take_along_axis(best, order, axis=1)
        ids = np.take_along_axis(ids, order, axis=1)
    return ids


def promoted_share(
    lens: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    vectors: Float[np.ndarray, "vector d_model"],
    words: frozenset[str],
    count: int = TOP_TOKENS,
) -> Float[np.ndarray, " vector"]:
    """Share of listed words among the tokens that each vector promotes most.

    Raises:
        ShapeError: Wrong shape, or NaN/inf inside.
    """
    ids = promoted_token_ids(lens, vectors, len(tokenizer), count)
    distinct, places = np.unique(ids, return_inverse=True)
    listed = np.array([is_listed(str(tokenizer.decode([int(token)])), words) for token in distinct])
    return np.asarray(listed[places].reshape(ids.shape).mean(axis=1))


def is_listed(token: str, words: frozenset[str]) -> bool:
    """Whether a token is one of the words: stripped of blanks, case-folded, and holding a letter.

    So parts of words are not listed unless they are words themselves, and punctuation never is.
    """
    text = token.strip().casefold()
    return text in words and any(character.isalpha() for character in text)


def listed_share(tokens: Iterable[str], words: frozenset[str]) -> float:
    """Share of tokens that are one of the words; NaN where there is no token."""
    found = [is_listed(token, words) for token in tokens]
    return float(np.mean(found)) if found else float("nan")


def _checked(lens: LensModel, vector: np.ndarray) -> np.ndarray:
    values = finite_vector(vector)
    if values.size != lens.d_model:
        raise ShapeError(
            f"vector: found length {values.size}, expected d_model {lens.d_model} of {lens.name}: "
            "use a vector of this model's residual stream"
        )
    return values


def _check_count(count: int, there: int, group: str) -> None:
    if not 1 <= count <= there:
        raise ShapeError(
            f"neurons {group!r}: asked for {count}, expected 1 to {there}, as many as there are: "
            "set toxicity.vectors accordingly"
        )
