"""Direction and rank of the shifts, with their nulls: tables shifts, cosines, nulls, mass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float

from dsteer_tl.capture import ShiftSet
from dsteer_tl.controls import (
    Interval,
    bootstrap_mean,
    gaussian_matched,
    null_distribution,
    sign_flipped_rows,
)
from dsteer_tl.cosines import (
    cosine,
    cosine_statistics,
    leave_one_out_cosines,
    mean_shift,
    sampled_pair_cosines,
)
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.spectra import leading_components, mass_per_component, spectrum

Rows = Float[np.ndarray, "row d_model"]

#: Pairs of rows sampled for the null of mean-centred cosines.
_SAMPLED_PAIRS = 2000


def _places(shift_set: ShiftSet) -> Iterator[tuple[str, str]]:
    for site in shift_set.sites:
        for kind in shift_set.kinds:
            if shift_set.count(kind) > 1:
                yield site, kind


def shift_table(shift_set: ShiftSet) -> pd.DataFrame:
    """The table ``shifts``: one row a site and position kind (claims 6–10, D-STEER secs. 3–4).

    Cosines are to the mean of all rows, which contains the row itself, and once more with the
    row's prompt left out; spectra are of ΔH uncentred and centred; entropies are in nats over the
    normalised σ² of the uncentred ΔH, H_base and H_policy; ``relative_norm`` is the mean of
    ‖δ‖/‖h_base‖.
    """
    rows = []
    for site, kind in _places(shift_set):
        base = shift_set.residuals("base", site, kind).astype(np.float64)
        policy = shift_set.residuals("policy", site, kind).astype(np.float64)
        shifts = policy - base
        cosines = cosine_statistics(shifts, shift_set.prompts(kind))
        raw, centred = spectrum(shifts), spectrum(shifts, centred=True)
        v_star = mean_shift(shifts)
        rows.append(
            {
                "site": site,
                "position_kind": kind,
                "n": len(shifts),
                "cos_mean": cosines.mean,
                "cos_sd": cosines.sd,
                "cos_loo_mean": cosines.loo_mean,
                "sigma_ratio": raw.sigma_ratio,
                "sigma_ratio_centred": centred.sigma_ratio,
                "u1_v_cos": abs(cosine(raw.directions[0], v_star)),
                "u1_v_cos_centred": abs(cosine(centred.directions[0], v_star)),
                "v_norm": float(np.linalg.norm(v_star)),
                "relative_norm": float(
                    np.mean(np.linalg.norm(shifts, axis=1) / np.linalg.norm(base, axis=1))
                ),
                "pc1_share_centred": float(centred.share[0]),
                "effective_rank": raw.effective_rank,
                "entropy_shift": raw.entropy,
                "entropy_base": spectrum(base).entropy,
                "entropy_policy": spectrum(policy).entropy,
            }
        )
    return pd.DataFrame(rows)


def cosine_table(shift_set: ShiftSet) -> pd.DataFrame:
    """The table ``cosines``: each row's cosine with v*, in-sample and with its prompt left out."""
    frames = []
    for site, kind in _places(shift_set):
        prompts = shift_set.prompts(kind)
        statistics = cosine_statistics(shift_set.shifts(site, kind), prompts)
        frames.append(
            pd.DataFrame(
                {
                    "site": site,
                    "position_kind": kind,
                    "prompt": prompts,
                    "cos": statistics.cos,
                    "cos_loo": statistics.cos_loo,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def cosine_null_table(shift_set: ShiftSet, configuration: MeasurementConfiguration) -> pd.DataFrame:
    """The table ``cosine_nulls``: what cosines look like where there is no shared direction.

    ``sign_flip`` gives each row a random sign; ``random_weights`` are the shifts of a base with
    random weight changes of the same norm; ``centred_pairs`` are cosines between pairs of rows
    after the mean is taken away.
    """
    frames = []
    for site, kind in _places(shift_set):
        shifts, prompts = shift_set.shifts(site, kind), shift_set.prompts(kind)
        flipped = sign_flipped_rows(shifts, configuration.seed)
        found = {
            "sign_flip": leave_one_out_cosines(flipped, prompts),
            "centred_pairs": sampled_pair_cosines(
                shifts, pairs=_SAMPLED_PAIRS, seed=configuration.seed
            ),
        }
        if "random_weights" in shift_set.models:
            found["random_weights"] = leave_one_out_cosines(
                shift_set.shifts(site, kind, "random_weights"), prompts
            )
        frames += [
            pd.DataFrame({"site": site, "position_kind": kind, "null": null, "cos": cos})
            for null, cos in found.items()
        ]
    return pd.concat(frames, ignore_index=True)


def _ratio(singular_values: Float[np.ndarray, " component"]) -> float:
    first, second = singular_values
    return float(second / first) if first > 0 else float("nan")


def _sigma_ratio(rows: Rows) -> float:
    return _ratio(leading_components(rows, 2)[0])


def _sigma_ratio_centred(rows: Rows) -> float:
    return _ratio(leading_components(rows, 2, centred=True)[0])


def _u1_v_cos(rows: Rows) -> float:
    return abs(cosine(leading_components(rows, 1)[1][0], rows.mean(axis=0)))


def _cos_loo_mean(rows: Rows, groups: np.ndarray) -> float:
    return float(leave_one_out_cosines(rows, groups).mean())


def _permuted_shifts(base: Rows, policy: Rows, seed: int) -> Rows:
    order = np.random.default_rng(seed).permutation(len(policy))
    return np.asarray(policy[order] - base)


_SPECTRAL: dict[str, Callable[[Rows], float]] = {
    "sigma_ratio": _sigma_ratio,
    "sigma_ratio_centred": _sigma_ratio_centred,
    "u1_v_cos": _u1_v_cos,
}


def null_table(shift_set: ShiftSet, configuration: MeasurementConfiguration) -> pd.DataFrame:
    """The table ``nulls``: each statistic of ``shifts`` where the claim does not hold.

    ``gaussian_matched`` keeps the mean and the total variance of the shifts and makes everything
    else isotropic; ``permutation`` pairs each base state with another prompt's policy state, which
    keeps the mean shift; ``random_weights`` is another model with weight changes of equal norm;
    ``sign_flip`` destroys the mean.
    """
    seed, draws = configuration.seed, configuration.null_draws
    rows = []

    def add(statistic: str, site: str, kind: str, null: str, interval: Interval) -> None:
        rows.append(
            {
                "statistic": statistic,
                "site": site,
                "position_kind": kind,
                "null": null,
                "value": interval.value,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "draws": interval.draws,
            }
        )

    for site, kind in _places(shift_set):
        base = shift_set.residuals("base", site, kind).astype(np.float64)
        policy = shift_set.residuals("policy", site, kind).astype(np.float64)
        shifts, prompts = policy - base, shift_set.prompts(kind)

        samplers: dict[str, Callable[[int], Rows]] = {
            "gaussian_matched": partial(gaussian_matched, shifts),
            "permutation": partial(_permuted_shifts, base, policy),
        }
        for null, sampler in samplers.items():
            for statistic, function in _SPECTRAL.items():
                add(statistic, site, kind, null, null_distribution(function, sampler, draws, seed))
        add(
            "cos_loo_mean",
            site,
            kind,
            "sign_flip",
            null_distribution(
                partial(_cos_loo_mean, groups=prompts),
                partial(sign_flipped_rows, shifts),
                draws,
                seed,
            ),
        )
        if "random_weights" in shift_set.models:
            other = shift_set.shifts(site, kind, "random_weights")
            loo = leave_one_out_cosines(other, prompts)
            interval = bootstrap_mean(loo, prompts, draws=configuration.draws, seed=seed)
            add("cos_loo_mean", site, kind, "random_weights", interval)
            for statistic, function in _SPECTRAL.items():
                value = function(other)
                add(statistic, site, kind, "random_weights", _point(value))
            norms = np.linalg.norm(other, axis=1) / np.linalg.norm(base, axis=1)
            interval = bootstrap_mean(norms, prompts, draws=configuration.draws, seed=seed)
            add("relative_norm", site, kind, "random_weights", interval)
    return pd.DataFrame(rows)


def _point(value: float) -> Interval:
    """A statistic of one model: no interval, and it says so."""
    return Interval(value=value, low=float("nan"), high=float("nan"), draws=1)


def mass_table(shift_set: ShiftSet, configuration: MeasurementConfiguration) -> pd.DataFrame:
    """The table ``mass``: share of ‖δ⁽ⁱ⁾‖² on each u_j (claim 18), uncentred and centred.

    The null is the same share for Gaussian rows with matched mean and variance.
    """
    rows = []
    for site, kind in _places(shift_set):
        shifts, prompts = shift_set.shifts(site, kind), shift_set.prompts(kind)
        control = gaussian_matched(shifts, configuration.seed)
        for centred in (False, True):
            found, null = (
                mass_per_component(
                    matrix - matrix.mean(axis=0) if centred else matrix,
                    spectrum(matrix, centred=centred, keep=configuration.components).directions,
                )
                for matrix in (shifts, control)
            )
            for index in range(found.per_row.shape[1]):
                interval = bootstrap_mean(
                    found.per_row[:, index],
                    prompts,
                    draws=configuration.draws,
                    seed=configuration.seed,
                )
                rows.append(
                    {
                        "site": site,
                        "position_kind": kind,
                        "component": index + 1,
                        "centred": centred,
                        "mass": interval.value,
                        "ci_low": interval.low,
                        "ci_high": interval.high,
                        "null": float(null.mass[index]),
                    }
                )
    return pd.DataFrame(rows)
