"""Tables from moments alone: streamed_spectra, streamed_nulls and streamed_singular_values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dsteer_tl.cosines import cosine
from dsteer_tl.errors import ShapeError
from dsteer_tl.gram_accumulator import GramAccumulator
from dsteer_tl.spectra import Spectrum
from dsteer_tl.streaming.moments import Moments
from dsteer_tl.streaming.shift_moments import ShiftMoments

#: Singular values kept a matrix.
_KEPT = 64
#: Half-width of a normal 95 % interval in standard deviations.
_NORMAL_95 = 1.96
_NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentTables:
    """What moments say, with a null beside every statistic of direction or rank.

    Attributes:
        spectra: ``streamed_spectra``, one row a site and position kind.
        nulls: ``streamed_nulls``, with the columns of ``nulls``.
        singular_values: ``streamed_singular_values``, with the columns of ``spectra``.
    """

    spectra: pd.DataFrame
    nulls: pd.DataFrame
    singular_values: pd.DataFrame


def moment_tables(moments: ShiftMoments, *, seed: int) -> MomentTables:
    """Direction and rank of the shifts, from moments alone; one place is in memory at a time.

    ``cos_mean`` is the mean cosine with v*, each row inside its own mean, and ``cos_held_out`` that
    of each tenth of the prompts with the v* of the others. Spectra are of ΔH/√n, uncentred and
    centred; entropies in nats.

    Nulls: ``sign_flip`` multiplies the shifts of each prompt by ±1, which keeps the uncentred
    spectrum exactly and destroys the mean (cosines, ``v_norm``). ``gaussian_matched`` keeps mean
    and total variance and makes the scatter isotropic (spectra; `gaussian_twin`).
    ``random_direction`` puts a uniformly random unit vector in the place of v*: its mean cosine has
    expectation 0 and standard deviation ‖ū‖/√d_model, of which the interval is ±1.96. ``mean_norm``
    is a size and has no null. Places with fewer than two rows are left out.

    Raises:
        ShapeError: No place has two rows.
    """
    spectra: list[dict[str, Any]] = []
    nulls: list[dict[str, Any]] = []
    singular_values: list[pd.DataFrame] = []
    for site, kind, found in moments.places():
        if found.n < 2:
            continue
        place = {"site": site, "position_kind": kind}
        own, matrices = _spectral(found.gram)
        spectra.append({**place, "n": found.n, **_directional(found), **own})
        nulls += _cosine_nulls(found, place)
        twin, twins = _spectral(gaussian_twin(found.gram, seed))
        nulls += [_null(name, place, "gaussian_matched", value) for name, value in twin.items()]
        named = {"shift": matrices[0], "shift_centred": matrices[1]}
        named |= {"gaussian_matched": twins[0], "gaussian_matched_centred": twins[1]}
        singular_values += [_leading(place, name, item) for name, item in named.items()]
    if not spectra:
        raise ShapeError(
            "moments: found no place with two rows, expected at least one: give more prompts"
        )
    return MomentTables(
        spectra=pd.DataFrame(spectra),
        nulls=pd.DataFrame(nulls),
        singular_values=pd.concat(singular_values, ignore_index=True),
    )


def gaussian_twin(gram: GramAccumulator, seed: int) -> GramAccumulator:
    """What an accumulator of as many rows of `controls.gaussian_matched` would hold.

    The rows N(μ, s²I), with d·s² = Σ‖x−μ‖²/n, need not be drawn: their mean is N(μ, s²I/n) and,
    independent of it, their scatter is s² times a Wishart matrix with n−1 degrees of freedom, here
    by Bartlett's decomposition. This is exact in distribution, and takes as long for any n.

    Raises:
        ShapeError: Fewer than two rows were seen.
    """
    n, d_model = gram.count, gram.mean.size
    if n < 2:
        raise ShapeError(f"Gaussian twin: found {n} rows, expected at least 2")
    generator = np.random.default_rng(seed)
    scale = np.sqrt(gram.scatter_trace / (n * d_model))
    mean = gram.mean + generator.standard_normal(d_model) * (scale / np.sqrt(n))
    if n - 1 < d_model:
        root = generator.standard_normal((n - 1, d_model))
    else:
        root = np.triu(generator.standard_normal((d_model, d_model)), 1)
        degrees = n - 1 - np.arange(d_model)
        root[np.diag_indices(d_model)] = np.sqrt(generator.chisquare(degrees))
    root *= scale
    return GramAccumulator.from_state(
        {"count": np.array([n]), "mean": mean, "scatter": root.T @ root}
    )


def _spectral(gram: GramAccumulator) -> tuple[dict[str, float], tuple[Spectrum, Spectrum]]:
    raw, centred = gram.spectrum(keep=1), gram.spectrum(centred=True, keep=1)
    row = {
        "sigma_ratio": raw.sigma_ratio,
        "sigma_ratio_centred": centred.sigma_ratio,
        "u1_v_cos": abs(cosine(raw.directions[0], gram.mean)),
        "u1_v_cos_centred": abs(cosine(centred.directions[0], gram.mean)),
        "pc1_share_centred": float(centred.share[0]),
        "effective_rank": raw.effective_rank,
        "effective_rank_centred": centred.effective_rank,
        "entropy": raw.entropy,
        "entropy_centred": centred.entropy,
    }
    return row, (raw, centred)


def _directional(moments: Moments) -> dict[str, float]:
    return {
        "mean_norm": moments.mean_norm,
        "v_norm": float(np.linalg.norm(moments.mean)),
        "cos_mean": moments.cos_mean(),
        "cos_held_out": moments.cos_held_out(),
    }


def _cosine_nulls(moments: Moments, place: Mapping[str, str]) -> list[dict[str, Any]]:
    flipped = {
        "v_norm": float(np.linalg.norm(moments.flipped_mean())),
        "cos_mean": moments.cos_mean(flipped=True),
        "cos_held_out": moments.cos_held_out(flipped=True),
    }
    rows = [_null(name, place, "sign_flip", value) for name, value in flipped.items()]
    direction = moments.mean_direction
    margin = _NORMAL_95 * float(np.linalg.norm(direction)) / np.sqrt(direction.size)
    exact = _null("cos_mean", place, "random_direction", 0.0)
    return [*rows, {**exact, "ci_low": -margin, "ci_high": margin, "draws": 0}]


def _null(statistic: str, place: Mapping[str, str], null: str, value: float) -> dict[str, Any]:
    """One draw has no interval, and says so."""
    return {
        "statistic": statistic,
        **place,
        "null": null,
        "value": value,
        "ci_low": _NAN,
        "ci_high": _NAN,
        "draws": 1,
    }


def _leading(place: Mapping[str, str], name: str, found: Spectrum) -> pd.DataFrame:
    kept = min(_KEPT, len(found.singular_values))
    return pd.DataFrame(
        {
            **place,
            "matrix": name,
            "index": np.arange(1, kept + 1),
            "singular_value": found.singular_values[:kept],
            "share": found.share[:kept],
        }
    )
