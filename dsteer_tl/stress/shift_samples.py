"""Statistics of shifts and margins on rows, and on every resample of the prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from dsteer_tl.controls import bootstrap
from dsteer_tl.cosines import leave_one_out_cosines, unit_rows
from dsteer_tl.spectra import spectral_entropy

#: Site and position kind of statistics of whole responses.
OUTPUT, PAIRS = "output", "pair"

#: Each draw of a spectrum is an eigenvalue problem, so it has fewer than a mean.
_SPECTRAL_DRAWS = 60
#: Differences of log-probabilities below this many nats are rounding, and a tie.
_TIE = 1e-6
#: Mean nats below which two models are the same to rounding.
_SAME = 1e-12

_SPECTRAL = ("sigma_ratio", "effective_rank", "effective_rank_centred", "pc1_share_centred")

Samples = Float[np.ndarray, " draw"]
Weights = Float[np.ndarray, "draw prompt"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlaceRows:
    """One condition at one site and position kind; every array has one entry per row.

    Attributes:
        site, position_kind: Where.
        shifts: δ = h_policy − h_base.
        base_norms: ‖h_base‖.
        prompts: Numbers of the rows' prompts.
        kl: KL(policy‖base) in nats; at h with the policy's states read by the base's W_U.
        kl_whole: The same with the policy's own readout.
        kl_readout: KL(policy‖base's readout of the policy's states): the readout's own part.
        judged: Rows of the half that v* was not estimated on.
        kl_steered: KL(policy‖base + v*) on judged rows.
        kl_carried: KL(reference policy‖base + v*) on judged rows, v* scaled to the reference's
            length.
        kl_reference: KL(reference policy‖base).
    """

    site: str
    position_kind: str
    shifts: Float[np.ndarray, "row d_model"]
    base_norms: Float[np.ndarray, " row"]
    prompts: Int[np.ndarray, " row"]
    kl: Float[np.ndarray, " row"]
    kl_whole: Float[np.ndarray, " row"]
    kl_readout: Float[np.ndarray, " row"]
    judged: Bool[np.ndarray, " row"]
    kl_steered: Float[np.ndarray, " row"]
    kl_carried: Float[np.ndarray, " row"]
    kl_reference: Float[np.ndarray, " row"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConditionRows:
    """One condition of a test.

    Attributes:
        name: Of the condition.
        role: ``"measured"`` or ``"control"``.
        places: Its shifts, by site and position kind.
        margins: Per measured pair, Δ log p(chosen) − Δ log p(rejected) against the base, in nats.
        prompts: Number of each pair's prompt.
        statistics: The statistics that mean something here; empty for all.
        axes: Per named axis, which completion of each pair it prefers: 1, −1, or 0 for neither.
    """

    name: str
    role: str
    places: tuple[PlaceRows, ...]
    margins: Float[np.ndarray, " pair"]
    prompts: Int[np.ndarray, " pair"]
    statistics: tuple[str, ...] = ()
    axes: tuple[tuple[str, Int[np.ndarray, " pair"]], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Statistic:
    """A statistic on the rows themselves, then on every resample.

    Attributes:
        samples: The value, then one a draw; all conditions have the same resamples.
        spread_only: The level of a resample is biased, as repeated rows lower a rank: its spread
            around the value is used.
        n: Rows or pairs.
    """

    samples: Samples
    spread_only: bool
    n: int


Key = tuple[str, str, str]


def resample_weights(prompts: int, draws: int, seed: int) -> Weights:
    """How often each prompt is in each resample of `controls.bootstrap`; ones in the first row.

    Drawn once, so that conditions can be compared draw by draw.

    Raises:
        ShapeError: Fewer than two prompts or one draw.
    """
    drawn: list[np.ndarray] = []

    def keep(index: np.ndarray) -> float:
        drawn.append(np.bincount(index, minlength=prompts).astype(np.float64))
        return 0.0

    bootstrap(keep, np.arange(prompts), draws=draws, seed=seed)
    # `bootstrap` also evaluates the statistic on the data itself, each prompt once.
    own = next(index for index, row in enumerate(drawn) if (row == 1).all())
    return np.stack([drawn.pop(own), *drawn])


def statistics_of(
    condition: ConditionRows, reference: ConditionRows, labels: np.ndarray, weights: Weights
) -> dict[Key, Statistic]:
    """Every statistic of a condition, by site, position kind and name.

    Args:
        condition: The condition.
        reference: The one that it is compared with.
        labels: Sorted numbers of all prompts.
        weights: How often each of them is in each resample.
    """
    found: dict[Key, Statistic] = {}
    others = {(place.site, place.position_kind): place for place in reference.places}
    for place in condition.places:
        key = (place.site, place.position_kind)
        statistics = _place_statistics(place, labels, weights)
        if condition is not reference and key in others:
            statistics |= _against(place, others[key], labels, weights)
        found |= {(*key, name): statistic for name, statistic in statistics.items()}
    of_pairs = _pair_statistics(condition, labels, weights)
    return found | {(OUTPUT, PAIRS, name): statistic for name, statistic in of_pairs.items()}


def _ratio(above: np.ndarray, below: np.ndarray, places: np.ndarray, weights: Weights) -> Statistic:
    """Σ above / Σ below with rows weighted by how often their prompt was drawn."""
    count = weights.shape[1]
    tops = weights @ np.bincount(places, weights=above, minlength=count)
    bottoms = weights @ np.bincount(places, weights=below, minlength=count)
    defined = np.abs(bottoms) > _SAME * max(len(above), 1)
    samples = np.divide(tops, bottoms, out=np.full(len(tops), np.nan), where=defined)
    return Statistic(samples, False, int(np.count_nonzero(below)))


def _place_statistics(
    place: PlaceRows, labels: np.ndarray, weights: Weights
) -> dict[str, Statistic]:
    where = np.searchsorted(labels, place.prompts)
    ones = np.ones(len(where))
    judged = place.judged.astype(np.float64)
    means = _mean_shifts(place, where, weights)
    norms = np.linalg.norm(means, axis=1)
    found = {
        "cos_loo_mean": _ratio(
            leave_one_out_cosines(place.shifts, place.prompts), ones, where, weights
        )
    }
    spectral = _spectral_samples(place.shifts, where, weights[: _SPECTRAL_DRAWS + 1])
    for name, samples in zip(_SPECTRAL, spectral, strict=True):
        found[name] = Statistic(samples, True, len(where))
    relative = np.linalg.norm(place.shifts, axis=1) / place.base_norms
    return found | {
        "v_norm": Statistic(norms, False, len(where)),
        "relative_norm": _ratio(relative, ones, where, weights),
        "kl": _ratio(place.kl, ones, where, weights),
        "recovered": _ratio(
            judged * (place.kl - place.kl_steered), judged * place.kl, where, weights
        ),
        "readout_shift": _ratio(place.kl_readout, place.kl_whole, where, weights),
    }


def _mean_shifts(
    place: PlaceRows, where: np.ndarray, weights: Weights
) -> Float[np.ndarray, "draw d_model"]:
    sums = np.zeros((weights.shape[1], place.shifts.shape[1]))
    np.add.at(sums, where, place.shifts)
    counts = weights @ np.bincount(where, minlength=weights.shape[1])
    means: np.ndarray = (weights @ sums) / counts[:, None]
    return means


def _against(
    place: PlaceRows, reference: PlaceRows, labels: np.ndarray, weights: Weights
) -> dict[str, Statistic]:
    where = np.searchsorted(labels, place.prompts)
    judged = place.judged.astype(np.float64)
    own, other = (unit_rows(_mean_shifts(each, where, weights)) for each in (place, reference))
    carried = judged * (place.kl_reference - place.kl_carried)
    return {
        "cos_to_reference": Statistic(np.sum(own * other, axis=1), False, len(where)),
        "recovered_of_reference": _ratio(carried, judged * place.kl_reference, where, weights),
    }


def _spectral_samples(
    shifts: Float[np.ndarray, "row d_model"], where: np.ndarray, weights: Weights
) -> Float[np.ndarray, "statistic draw"]:
    """The statistics of `_SPECTRAL` from the eigenvalues of the smaller Gram matrix."""
    few = len(shifts) <= shifts.shape[1]
    gram = shifts @ shifts.T if few else None
    samples = []
    for drawn in weights:
        weight = drawn[where]
        root, total = np.sqrt(weight), weight.sum()
        if gram is not None:
            product = gram * np.outer(root, root)
            # Centring with weights w: I − √w√wᵀ/Σw on both sides.
            left = product - np.outer(root, root @ product) / total
            centred = left - np.outer(left @ root, root) / total
        else:
            scaled = shifts * root[:, None]
            product = scaled.T @ scaled
            mean = (weight @ shifts) / total
            deviations = (shifts - mean) * root[:, None]
            centred = deviations.T @ deviations
        whole, around = (_singular_values(matrix) for matrix in (product, centred))
        squares = np.sum(around**2)
        samples.append(
            (
                whole[1] / whole[0] if whole[0] > 0 and len(whole) > 1 else np.nan,
                np.exp(spectral_entropy(whole)),
                np.exp(spectral_entropy(around)),
                around[0] ** 2 / squares if squares > 0 else np.nan,
            )
        )
    return np.array(samples).T


def _singular_values(product: np.ndarray) -> np.ndarray:
    values = np.clip(np.linalg.eigvalsh((product + product.T) / 2)[::-1], 0.0, None)
    return np.asarray(np.sqrt(values))


def _pair_statistics(
    condition: ConditionRows, labels: np.ndarray, weights: Weights
) -> dict[str, Statistic]:
    if not np.isfinite(condition.margins).all():
        return {}
    where = np.searchsorted(labels, condition.prompts)
    signs = {"": np.ones(len(where), dtype=np.int64)} | {f":{n}": s for n, s in condition.axes}
    found: dict[str, Statistic] = {}
    for suffix, sign in signs.items():
        preferred = sign != 0
        margin = (sign * condition.margins)[preferred]
        places, ones = where[preferred], np.ones(int(preferred.sum()))
        right = np.where(np.abs(margin) <= _TIE, 0.5, (margin > 0).astype(np.float64))
        found[f"margin{suffix}"] = _ratio(margin, ones, places, weights)
        found[f"accuracy{suffix}"] = _ratio(right, ones, places, weights)
    return found
