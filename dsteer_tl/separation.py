"""Do the states of chosen and rejected responses form two clusters?

The Calinski–Harabasz index CHI and the Xie–Beni index XB of two classes, one state per response
(claim 19, AQI). With D = ‖μ_w − μ_l‖ and W the squared distance of n states to the means of their
classes, two classes of n/2 states each have

    CHI = (n − 2) · (n/4) · D² / W,     XB = W / (n · D²),     CHI · XB = (n − 2) / 4,

so that the two are one index. Chosen and rejected come in pairs, so classes are always balanced.
Where labels say nothing CHI is not 0 but near 1, as two means of noise never coincide, and less
where two responses to one prompt are alike: hence the null.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import calinski_harabasz_score

from dsteer_tl.controls import Interval, bootstrap
from dsteer_tl.cosines import finite_rows, finite_vector, group_labels
from dsteer_tl.errors import ShapeError


def calinski_harabasz(
    chosen: Float[np.ndarray, "pair d_model"], rejected: Float[np.ndarray, "pair d_model"]
) -> float:
    """CHI = (n − 2) · B / W: scatter between the two means over scatter within (scikit-learn's).

    Raises:
        ShapeError: The two differ in shape, fewer than two pairs, or NaN/inf inside.
    """
    first, second = _two_classes(chosen, rejected)
    labels = np.repeat([0, 1], [len(first), len(second)])
    return float(calinski_harabasz_score(np.concatenate([first, second]), labels))


def xie_beni(
    chosen: Float[np.ndarray, "pair d_model"], rejected: Float[np.ndarray, "pair d_model"]
) -> float:
    """XB = Σ_k Σ_{i∈k} ‖x_i − μ_k‖² / (n · min_{j≠k} ‖μ_j − μ_k‖²): small where classes are apart.

    The index of Xie and Beni (IEEE TPAMI 13, 1991, eq. 12: compactness over separation) with
    memberships of 0 and 1 and the classes' means as centres. It is infinite where both means
    coincide.

    Raises:
        ShapeError: The two differ in shape, fewer than two pairs, or NaN/inf inside.
    """
    first, second = _two_classes(chosen, rejected)
    centres = first.mean(axis=0), second.mean(axis=0)
    within = sum(
        float(np.sum((rows - centre) ** 2))
        for rows, centre in zip((first, second), centres, strict=True)
    )
    apart = float(np.sum((centres[0] - centres[1]) ** 2))
    return within / ((len(first) + len(second)) * apart) if apart > 0 else float("inf")


def identity_error(chi: float, xb: float, n: int) -> float:
    """|CHI · XB · 4/(n − 2) − 1|: how far the two are from being one index."""
    return abs(chi * xb * 4 / (n - 2) - 1)


def without_length(
    chosen: Float[np.ndarray, "pair d_model"],
    rejected: Float[np.ndarray, "pair d_model"],
    chosen_lengths: Float[np.ndarray, " pair"],
    rejected_lengths: Float[np.ndarray, " pair"],
) -> tuple[Float[np.ndarray, "pair d_model"], Float[np.ndarray, "pair d_model"]]:
    """States less what a line in the length of the response gives, fitted on both classes at once.

    A mean over more tokens lies elsewhere than one over few, so responses that differ in length
    are apart whatever they say. Labels do not enter the fit: of what length and label share, all
    is taken away, so that what is left is not length's.

    Args:
        chosen: States of chosen responses.
        rejected: States of rejected responses.
        chosen_lengths: Tokens of each chosen response.
        rejected_lengths: Tokens of each rejected response.

    Raises:
        ShapeError: Shapes do not match, fewer than two pairs, or NaN/inf inside.
    """
    first, second = _two_classes(chosen, rejected)
    lengths = [finite_vector(found, name="lengths") for found in (chosen_lengths, rejected_lengths)]
    if any(found.size != len(first) for found in lengths):
        raise ShapeError(
            f"lengths: found {lengths[0].size} and {lengths[1].size} for {len(first)} pairs, "
            "expected one a response"
        )
    states, length = np.concatenate([first, second]), np.concatenate(lengths)
    states, length = states - states.mean(axis=0), length - length.mean()
    spread = float(length @ length)
    if spread > 0:
        states = states - np.outer(length, length @ states / spread)
    return states[: len(first)], states[len(first) :]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairSums:
    """What CHI depends on, added up over the pairs of each prompt.

    Sums of one prompt are resampled and exchanged as a whole, as its pairs are not independent.

    Attributes:
        differences: Σ (x_w − x_l).
        spreads: ‖Σ (x_w − x_l)‖² of each prompt.
        sums: Σ (x_w + x_l), about the mean of all states.
        squares: Σ (‖x_w‖² + ‖x_l‖²), about the same mean.
        pairs: How many pairs.
    """

    differences: Float[np.ndarray, "prompt d_model"]
    spreads: Float[np.ndarray, " prompt"]
    sums: Float[np.ndarray, "prompt d_model"]
    squares: Float[np.ndarray, " prompt"]
    pairs: Float[np.ndarray, " prompt"]


def pair_sums(
    chosen: Float[np.ndarray, "pair d_model"],
    rejected: Float[np.ndarray, "pair d_model"],
    prompts: Int[np.ndarray, " pair"],
) -> PairSums:
    """Add up pairs by prompt.

    Raises:
        ShapeError: Shapes do not match, fewer than two prompts, or NaN/inf inside.
    """
    first, second = _two_classes(chosen, rejected)
    labels = group_labels(prompts, len(first))
    count = int(labels.max()) + 1
    if count < 2:
        raise ShapeError("separation: found pairs of 1 prompt, expected at least 2 prompts")
    mean = (first.mean(axis=0) + second.mean(axis=0)) / 2
    first, second = first - mean, second - mean

    def added(rows: np.ndarray) -> np.ndarray:
        total = np.zeros((count, *rows.shape[1:]))
        np.add.at(total, labels, rows)
        return total

    differences = added(first - second)
    return PairSums(
        differences=differences,
        spreads=(differences**2).sum(axis=1),
        sums=added(first + second),
        squares=added((first**2).sum(axis=1) + (second**2).sum(axis=1)),
        pairs=added(np.ones(len(first))),
    )


def exchanged_chi(sums: PairSums, draws: int, seed: int) -> Float[np.ndarray, " draw"]:
    """CHI after chosen and rejected change places in each prompt with probability ½.

    Keeps every state and who is paired with whom; breaks which response was preferred. The total
    scatter does not change, so one sign a prompt on its difference says it all. One seed draws
    the same exchanges for every model and site, so that changes have a null too.

    Raises:
        ShapeError: Fewer than one draw.
    """
    if draws < 1:
        raise ShapeError(f"exchanges: found {draws} draws, expected at least 1")
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(draws, len(sums.pairs)))
    apart = ((signs @ sums.differences) ** 2).sum(axis=1)
    return _chi(apart, sums, np.ones(len(sums.pairs)))


def resampled_chi(sums: PairSums, prompts: Int[np.ndarray, " drawn"]) -> float:
    """CHI of the prompts at these places, some perhaps more than once.

    A prompt that is drawn twice counts as two prompts alike whose noise is independent: else its
    noise would add up and every resample would look further apart than the data. All prompts once
    give CHI itself.
    """
    weights = np.bincount(prompts, minlength=len(sums.pairs)).astype(np.float64)
    apart = float(((weights @ sums.differences) ** 2).sum())
    apart -= float((weights**2 - weights) @ sums.spreads)
    return float(_chi(np.array([max(apart, 0.0)]), sums, weights)[0])


def _chi(apart: np.ndarray, sums: PairSums, weights: np.ndarray) -> np.ndarray:
    """CHI from ‖Σ (x_w − x_l)‖² over the prompts with these weights."""
    n = 2 * float(weights @ sums.pairs)
    total = float(weights @ sums.squares) - float(((weights @ sums.sums) ** 2).sum()) / n
    between = apart / n
    within = total - between
    return np.divide((n - 2) * between, within, out=np.full_like(between, np.nan), where=within > 0)


def chi_interval(sums: PairSums, draws: int, seed: int) -> Interval:
    """CHI with its 95 % interval over prompts.

    Raises:
        ShapeError: A bad number of draws.
    """
    return bootstrap(
        lambda prompts: resampled_chi(sums, prompts),
        np.arange(len(sums.pairs)),
        draws=draws,
        seed=seed,
    )


def chi_ratio(base: PairSums, policy: PairSums, draws: int, seed: int) -> Interval:
    """CHI of the policy over that of the base, both on the same prompts in every resample.

    Raises:
        ShapeError: The two hold different prompts, or a bad number of draws.
    """
    _same_prompts(base, policy)

    def ratio(prompts: np.ndarray) -> float:
        below = resampled_chi(base, prompts)
        return resampled_chi(policy, prompts) / below if below > 0 else float("nan")

    return bootstrap(ratio, np.arange(len(base.pairs)), draws=draws, seed=seed)


def chi_difference(base: PairSums, policy: PairSums, draws: int, seed: int) -> Interval:
    """CHI of the policy minus that of the base, both on the same prompts in every resample.

    Raises:
        ShapeError: The two hold different prompts, or a bad number of draws.
    """
    _same_prompts(base, policy)
    return bootstrap(
        lambda prompts: resampled_chi(policy, prompts) - resampled_chi(base, prompts),
        np.arange(len(base.pairs)),
        draws=draws,
        seed=seed,
    )


def exceedance(value: float, null: Float[np.ndarray, " draw"]) -> float:
    """One-sided p: the share of draws at or above the value, the value itself among them."""
    return float((1 + np.count_nonzero(null >= value)) / (1 + len(null)))


def _same_prompts(base: PairSums, policy: PairSums) -> None:
    if not np.array_equal(base.pairs, policy.pairs):
        raise ShapeError(
            f"separation: found {len(base.pairs)} prompts for the base and {len(policy.pairs)} "
            "for the policy, expected the same pairs for both"
        )


def _two_classes(chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = finite_rows(chosen, minimum=2, name="chosen")
    second = finite_rows(rejected, minimum=2, name="rejected")
    if first.shape != second.shape:
        raise ShapeError(
            f"separation: found {first.shape} states of chosen and {second.shape} of rejected "
            "responses, expected as many of each: give one of each a pair"
        )
    return first, second
