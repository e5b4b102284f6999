"""Tables of value vectors, beside random ones and those of shuffled labels (claim 21)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from dsteer_tl.controls import random_direction
from dsteer_tl.cosines import cosine, unit_rows
from dsteer_tl.lens_model import LensModel
from dsteer_tl.toxicity.types import Neurons
from dsteer_tl.toxicity.value_vectors import (
    closest_value_vectors,
    oriented_to,
    oriented_value_vectors,
    probe_cosines,
    promoted_share,
    random_neurons,
    tokens_promoted,
    value_vector_svd,
)

#: Vectors and components of `toxicity_tokens`, and tokens of each effect.
SINGLE_VECTORS, SINGULAR_VECTORS, TOKENS = 4, 3, 12
#: Components of `toxicity_svd`.
COMPONENTS = 16


def value_vector_name(layer: int, neuron: int) -> str:
    """The name of a value vector in tables, as in the paper: ``MLP.v[l,i]``."""
    return f"MLP.v[{layer},{neuron}]"


def random_group(
    lens: LensModel, neurons: Neurons, cosines: Float[np.ndarray, "layer neuron"], seed: int
) -> Neurons:
    """As many random neurons, none of them in the group, with signs by the same rule.

    Raises:
        ShapeError: The model has too few other neurons.
    """
    drawn = random_neurons(lens.n_layers, lens.d_mlp, len(neurons), seed, exclude=neurons)
    return oriented_to(drawn, cosines, gated=lens.gated_mlp)


def shuffled_group(
    lens: LensModel, count: int, cosines: Float[np.ndarray, "layer neuron"]
) -> Neurons:
    """The value vectors closest to a probe of shuffled labels: chosen as hard, for nothing.

    Args:
        lens: The model.
        count: N.
        cosines: `probe_cosines` of that probe.

    Raises:
        ShapeError: There are fewer neurons.
    """
    return closest_value_vectors(cosines, count, gated=lens.gated_mlp, group="shuffled_probe")


def value_vector_table(
    lens: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    probe: Float[np.ndarray, " d_model"],
    shuffled_direction: Float[np.ndarray, " d_model"],
    neurons: Neurons,
    words: frozenset[str],
    seed: int,
) -> pd.DataFrame:
    """Do the value vectors closest to the probe promote words of the attribute (claim 21)?

    Beside them random ones, and those closest to a probe of shuffled labels: choosing the best of
    all neurons makes their cosines high too, so cosines alone say nothing.

    Args:
        lens: The model.
        tokenizer: Its tokenizer.
        probe: Direction of the probe.
        shuffled_direction: Direction of the probe of shuffled labels.
        neurons: The attribute's group.
        words: Case-folded words that have the attribute.
        seed: Seed of the random group.

    Returns:
        Table `toxicity_value_vectors`: ``group`` (attribute, random, shuffled_probe), ``rank``
        from 1, ``layer``, ``neuron``, ``sign``, ``cosine`` of sign·v with the probe (for
        shuffled_probe: with its own), ``norm``, ``listed_share``.

    Raises:
        HookError: The model has no value vectors.
        ShapeError: A direction has another length than the stream; too few neurons.
    """
    cosines = probe_cosines(lens, probe)
    shuffled_cosines = probe_cosines(lens, shuffled_direction)
    parts = []
    for group, own in (
        (neurons, cosines),
        (random_group(lens, neurons, cosines, seed), cosines),
        (shuffled_group(lens, len(neurons), shuffled_cosines), shuffled_cosines),
    ):
        vectors = oriented_value_vectors(lens, group)
        part = {
            "group": group.group,
            "rank": np.arange(1, len(group) + 1),
            "layer": group.layers,
            "neuron": group.neurons,
            "sign": group.signs,
            "cosine": group.signs * own[group.layers, group.neurons],
            "norm": np.linalg.norm(vectors, axis=1),
            "listed_share": promoted_share(lens, tokenizer, vectors, words),
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def token_table(
    lens: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    probe: Float[np.ndarray, " d_model"],
    neurons: Neurons,
    words: frozenset[str],
    seed: int,
) -> pd.DataFrame:
    """What the probe, single value vectors and their singular vectors say (table 1 of the paper).

    Every vector has unit length, so that values compare with those of the random direction.

    Args:
        lens: The model.
        tokenizer: Its tokenizer.
        probe: Direction of the probe.
        neurons: The attribute's group; the first four stand alone, all are decomposed.
        words: Case-folded words that have the attribute.
        seed: Seed of the random value vector, which is the first of `random_group`, and of the
            random direction.

    Returns:
        Table `toxicity_tokens`: ``vector``, ``kind`` (probe, value_vector, svd, random),
        ``effect``, ``rank``, ``token_id``, ``token``, ``value`` (change of the logit a unit of
        length, less the mean over tokens), ``listed``, ``cosine`` with the probe, ``layer`` and
        ``neuron`` (−1 where there is none). Value vectors are oriented: sign·v.

    Raises:
        HookError: The model has no value vectors.
        ShapeError: The probe has another length than the stream; too few neurons.
    """
    cosines = probe_cosines(lens, probe)
    single = neurons.first(SINGLE_VECTORS)
    one_random = random_group(lens, neurons, cosines, seed).first(1)
    found: list[tuple[str, str, int, int, np.ndarray]] = [("probe", "probe", -1, -1, probe)]
    for layer, neuron, vector in _each(lens, single):
        found.append(
            (value_vector_name(layer, neuron), "value_vector", layer, neuron, vector),
        )
    directions = value_vector_svd(oriented_value_vectors(lens, neurons), probe).directions
    for place, vector in enumerate(directions[:SINGULAR_VECTORS]):
        found.append((f"SVD.U[{place}]", "svd", -1, -1, vector))
    for layer, neuron, vector in _each(lens, one_random):
        found.append(("random_value_vector", "random", layer, neuron, vector))
    found.append(("random", "random", -1, -1, random_direction(lens.d_model, seed)))
    parts = []
    for name, kind, layer, neuron, vector in found:
        unit = unit_rows(np.asarray(vector, dtype=np.float64))
        table = tokens_promoted(lens, tokenizer, unit, TOKENS, words=words)
        table.insert(0, "vector", name)
        table.insert(1, "kind", kind)
        parts.append(table.assign(cosine=cosine(unit, probe), layer=layer, neuron=neuron))
    return pd.concat(parts, ignore_index=True)


def svd_table(
    lens: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    probe: Float[np.ndarray, " d_model"],
    neurons: Neurons,
    words: frozenset[str],
    seed: int,
    *,
    shuffled_direction: Float[np.ndarray, " d_model"] | None = None,
) -> pd.DataFrame:
    """What the value vectors share, beside as many random ones (claim 21).

    The first direction of vectors that were chosen along a probe points along it whether or not
    the probe has found anything; the group of a probe of shuffled labels shows by how much.

    Args:
        lens: The model.
        tokenizer: Its tokenizer.
        probe: Direction of the probe.
        neurons: The attribute's group, two at least.
        words: Case-folded words that have the attribute.
        seed: Seed of the random group.
        shuffled_direction: Direction of the probe of shuffled labels.

    Returns:
        Table `toxicity_svd`: ``group`` (attribute, random and, if its direction was given,
        shuffled_probe), ``component`` from 0, ``singular_value`` of the unit rows over √N,
        ``share`` of Σσ², ``cosine`` with the probe (for shuffled_probe: with its own; ≥ 0 in all
        groups, up to rounding), ``listed_share``; the first 16 components.

    Raises:
        HookError: The model has no value vectors.
        ShapeError: The probe has another length than the stream; too few neurons.
    """
    cosines = probe_cosines(lens, probe)
    groups = [(neurons, probe), (random_group(lens, neurons, cosines, seed), probe)]
    if shuffled_direction is not None:
        shuffled = shuffled_group(lens, len(neurons), probe_cosines(lens, shuffled_direction))
        groups.append((shuffled, shuffled_direction))
    parts = []
    for group, own in groups:
        found = value_vector_svd(oriented_value_vectors(lens, group), own)
        kept = found.directions[:COMPONENTS]
        part = {
            "group": group.group,
            "component": np.arange(len(kept)),
            "singular_value": found.singular_values[: len(kept)],
            "share": found.share[: len(kept)],
            "cosine": found.cosines[: len(kept)],
            "listed_share": promoted_share(lens, tokenizer, kept, words),
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def _each(lens: LensModel, group: Neurons) -> list[tuple[int, int, np.ndarray]]:
    vectors = oriented_value_vectors(lens, group)
    return [
        (int(layer), int(neuron), vector)
        for layer, neuron, vector in zip(group.layers, group.neurons, vectors, strict=True)
    ]
