"""Null models and intervals shared by every analysis.

A number without its control says little: each sampler here keeps some property of the data and
breaks the one under test, and its docstring says which. Seeds are explicit; one seed gives one
sample on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dsteer_tl.cosines import finite_rows, finite_vector, group_labels, unit_rows
from dsteer_tl.errors import ShapeError

# Resampled indices are drawn in blocks of at most this many, 32 MiB as int64.
_BLOCK = 2**22


def random_direction(d: int, seed: int) -> Float[np.ndarray, " d_model"]:
    """A direction drawn uniformly from the unit sphere in d dimensions.

    Keeps nothing but the dimension; breaks every relation to the data.

    Raises:
        ShapeError: d < 1.
    """
    if d < 1:
        raise ShapeError(f"random direction: found d_model {d}, expected at least 1")
    return unit_rows(np.random.default_rng(seed).standard_normal(d))


def random_like(vector: Float[np.ndarray, " d_model"], seed: int) -> Float[np.ndarray, " d_model"]:
    """An isotropic random vector of the same norm.

    Keeps the norm; breaks the direction and the distribution of entries (outlier dimensions).

    Raises:
        ShapeError: Wrong shape, or NaN/inf inside.
    """
    values = finite_vector(vector)
    return np.asarray(random_direction(values.size, seed) * np.linalg.norm(values))


def orthogonal_like(
    vector: Float[np.ndarray, " d_model"], seed: int
) -> Float[np.ndarray, " d_model"]:
    """A random vector of the same norm that is orthogonal to the given one.

    Keeps the norm; breaks the direction completely (cosine 0 to rounding, where `random_like`
    only has it small on average).

    Raises:
        ShapeError: Wrong shape, fewer than two entries, or NaN/inf inside.
    """
    values = finite_vector(vector)
    if values.size < 2:
        raise ShapeError("orthogonal vector: found d_model 1, expected at least 2")
    unit = unit_rows(values)
    draw = random_direction(values.size, seed)
    for _ in range(2):  # the second pass removes what rounding left in the first
        draw = draw - (draw @ unit) * unit
    return np.asarray(unit_rows(draw) * np.linalg.norm(values))


def permuted(vector: Float[np.ndarray, " d_model"], seed: int) -> Float[np.ndarray, " d_model"]:
    """The same entries in random order.

    Keeps the norm and the distribution of entries, heavy tails and mean included; breaks which
    dimension carries which entry.

    Raises:
        ShapeError: Wrong shape, or NaN/inf inside.
    """
    return np.random.default_rng(seed).permutation(finite_vector(vector))


def sign_permuted(
    vector: Float[np.ndarray, " d_model"], seed: int
) -> Float[np.ndarray, " d_model"]:
    """The same entries with random signs.

    Keeps the magnitude in each dimension (so outlier dimensions stay in place); breaks the signs.

    Raises:
        ShapeError: Wrong shape, or NaN/inf inside.
    """
    values = finite_vector(vector)
    return np.asarray(values * np.random.default_rng(seed).choice((-1.0, 1.0), size=values.size))


def sign_flipped_rows(
    rows: Float[np.ndarray, "row d_model"], seed: int
) -> Float[np.ndarray, "row d_model"]:
    """Each row multiplied by +1 or −1 at random.

    Keeps every norm, every axis and the uncentred spectrum; breaks the shared sense, so the mean
    and the mean cosine vanish. If a statistic survives, the mean was not what carried it.

    Raises:
        ShapeError: Wrong shape, or NaN/inf inside.
    """
    values = finite_rows(rows)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(len(values), 1))
    return np.asarray(values * signs)


def gaussian_matched(
    rows: Float[np.ndarray, "row d_model"], seed: int, *, keep_mean: bool = True
) -> Float[np.ndarray, "row d_model"]:
    """As many rows of isotropic Gaussian noise with the size of the data.

    With the mean: N(mean, s²I), where d·s² is the total variance Σ‖x−μ‖²/n. Keeps the mean and
    how far rows scatter; breaks every structure of the scatter. It answers "does a long mean
    alone give this?" (claims 7, 8, 18). Without it: N(0, s²I), where d·s² is the mean squared
    norm Σ‖x‖²/n. Keeps only that.

    Raises:
        ShapeError: Wrong shape, fewer than two rows, or NaN/inf inside.
    """
    values = finite_rows(rows, minimum=2)
    mean = values.mean(axis=0) if keep_mean else np.zeros(values.shape[1])
    scale = np.sqrt(np.mean((values - mean) ** 2))
    noise = np.random.default_rng(seed).standard_normal(values.shape)
    return np.asarray(mean + scale * noise)


def random_token_pairs(n: int, d_vocab: int, seed: int) -> Int[np.ndarray, "pair 2"]:
    """N pairs of two different token ids, uniform over the vocabulary.

    Keeps the form of a preference direction e_a − e_b; breaks the preference (claim 3).

    Raises:
        ShapeError: Fewer than two tokens, or a negative n.
    """
    if d_vocab < 2 or n < 0:
        raise ShapeError(
            f"random token pairs: found {n} pairs of {d_vocab} tokens, expected n ≥ 0 and at "
            "least 2 tokens"
        )
    generator = np.random.default_rng(seed)
    first = generator.integers(d_vocab, size=n)
    second = (first + generator.integers(1, d_vocab, size=n)) % d_vocab
    return np.stack([first, second], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number with its interval.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
        draws: Draws the ends rest on, those with a finite statistic; ends are NaN with none.
    """

    value: float
    low: float
    high: float
    draws: int


def bootstrap(
    statistic: Callable[..., float],
    *arrays: np.ndarray,
    groups: Sequence[object] | np.ndarray | None = None,
    draws: int = 1000,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap that resamples whole groups.

    Rows of one prompt are not independent; resampling prompts instead of rows keeps the interval
    honest. As many groups as there are, with replacement; their rows come along in all arrays.

    Args:
        statistic: Takes the arrays, returns one number.
        arrays: Arrays with the same first axis.
        groups: One label per row; without it each row is its own group.
        draws: Number of resamples.
        seed: Seed of the resampling.
        level: Coverage of the interval.

    Raises:
        ShapeError: Arrays of different lengths, fewer than two groups, or a bad draws or level.
    """
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise ShapeError(
            f"bootstrap: found arrays with {sorted(lengths)} rows, expected one or more arrays of "
            "one length: align them first"
        )
    labels = group_labels(groups, lengths.pop())
    members = _members(labels)
    values = [
        float(statistic(*(array[index] for array in arrays)))
        for block in _resamples(len(members), draws, seed)
        for index in (np.concatenate([members[group] for group in row]) for row in block)
    ]
    return _interval(float(statistic(*arrays)), np.array(values), level)


def bootstrap_mean(
    values: Float[np.ndarray, " row"],
    groups: Sequence[object] | np.ndarray | None = None,
    *,
    draws: int = 1000,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Mean with a group bootstrap interval: `bootstrap(np.mean, values, …)`, vectorised.

    Draws the same resamples as `bootstrap` does for the same seed.

    Raises:
        ShapeError: Wrong shape, NaN/inf inside, fewer than two groups, or a bad draws or level.
    """
    numbers = finite_vector(values, name="values")
    return bootstrap_ratio(
        numbers, np.ones_like(numbers), groups, draws=draws, seed=seed, level=level
    )


def bootstrap_ratio(
    numerators: Float[np.ndarray, " row"],
    denominators: Float[np.ndarray, " row"],
    groups: Sequence[object] | np.ndarray | None = None,
    *,
    draws: int = 1000,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Ratio of sums Σa/Σb with a group bootstrap interval, vectorised.

    Resamples whose denominators sum to zero are left out, and `Interval.draws` says so.

    Raises:
        ShapeError: Wrong shapes, NaN/inf inside, fewer than two groups, or a bad draws or level.
    """
    above = finite_vector(numerators, name="numerators")
    below = finite_vector(denominators, name="denominators")
    if above.shape != below.shape:
        raise ShapeError(
            f"ratio: found {above.size} numerators and {below.size} denominators, expected as "
            "many of each"
        )
    labels = group_labels(groups, above.size)
    tops, bottoms = np.bincount(labels, weights=above), np.bincount(labels, weights=below)
    ratios = [
        _divide(tops[block].sum(axis=1), bottoms[block].sum(axis=1))
        for block in _resamples(len(tops), draws, seed)
    ]
    value = _divide(np.array([above.sum()]), np.array([below.sum()]))
    return _interval(float(value[0]), np.concatenate(ratios), level)


def null_distribution(
    statistic: Callable[[np.ndarray], float],
    sampler: Callable[[int], np.ndarray],
    draws: int,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """The statistic under a null model: mean over draws, with quantiles of the draws.

    The interval says where the statistic falls when the null holds; it is not an interval of
    the mean.

    Args:
        statistic: Takes one sample, returns one number.
        sampler: Takes a seed, returns one sample: `lambda seed: permuted(vector, seed)`.
        draws: Number of samples.
        seed: The seeds of the samples follow from it.
        level: Share of the draws between low and high.

    Raises:
        ShapeError: A bad draws or level.
    """
    _check_draws(draws)
    seeds = np.random.SeedSequence(seed).generate_state(draws, dtype=np.uint64)
    values = np.array([float(statistic(sampler(int(each)))) for each in seeds])
    finite = values[np.isfinite(values)]
    return _interval(float(finite.mean()) if finite.size else float("nan"), values, level)


def _members(labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels))[:-1])


def _resamples(groups: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    _check_draws(draws)
    if groups < 2:
        raise ShapeError(
            f"bootstrap: found {groups} group, expected at least 2: a single prompt has no spread"
        )
    generator = np.random.default_rng(seed)
    step = max(1, _BLOCK // groups)
    for start in range(0, draws, step):
        yield generator.integers(groups, size=(min(step, draws - start), groups))


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise ShapeError(f"draws: found {draws}, expected at least 1")


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    ratio = np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
    return np.asarray(ratio)


def _interval(value: float, values: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise ShapeError(f"level: found {level}, expected a coverage between 0 and 1, such as 0.95")
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return Interval(value=value, low=float("nan"), high=float("nan"), draws=0)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high), draws=int(finite.size))
