"""Spectra and spectral entropy of hidden states and shifts: tables spectra and entropy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from dsteer_tl.capture import ShiftSet
from dsteer_tl.cosines import group_labels
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.spectra import spectral_entropy, spectrum

Rows = Float[np.ndarray, "row d_model"]

#: Singular values kept a matrix.
_KEPT = 32
#: Entropy is bootstrapped with fewer draws than a mean: each draw is an eigenvalue problem.
_ENTROPY_DRAWS = 60
#: Half-width of a normal 95 % interval in standard deviations.
_NORMAL_95 = 1.96


def _matrices(shift_set: ShiftSet, site: str, kind: str) -> dict[str, Rows]:
    base = shift_set.residuals("base", site, kind).astype(np.float64)
    policy = shift_set.residuals("policy", site, kind).astype(np.float64)
    found = {"base": base, "policy": policy, "shift": policy - base}
    if "random_weights" in shift_set.models:
        found["random_weights"] = shift_set.shifts(site, kind, "random_weights")
    return found


def spectra_table(shift_set: ShiftSet) -> pd.DataFrame:
    """The table ``spectra``: leading singular values of H_base, H_policy and ΔH (Figure 4b).

    Singular values are of the row matrix over √n, so that they do not grow with the number of
    rows; ``share`` is σ²/Σσ².
    """
    frames = []
    for site in shift_set.sites:
        for kind in shift_set.kinds:
            matrices = _matrices(shift_set, site, kind)
            spectra = {name: spectrum(rows) for name, rows in matrices.items()}
            spectra["shift_centred"] = spectrum(matrices["shift"], centred=True)
            for name, found in spectra.items():
                kept = min(_KEPT, len(found.singular_values))
                frames.append(
                    pd.DataFrame(
                        {
                            "site": site,
                            "position_kind": kind,
                            "matrix": name,
                            "index": np.arange(1, kept + 1),
                            "singular_value": found.singular_values[:kept],
                            "share": found.share[:kept],
                        }
                    )
                )
    return pd.concat(frames, ignore_index=True)


def entropy_table(shift_set: ShiftSet, configuration: MeasurementConfiguration) -> pd.DataFrame:
    """The table ``entropy``: spectral entropy in nats (Figure 4a).

    Intervals are the estimate ± 1.96 standard deviations of a bootstrap over prompts.

    Every matrix has the same number of rows, so that entropies compare. The row
    ``policy_minus_base`` is the change, bootstrapped over the same prompts for both, and
    ``random_minus_base`` the same for random weight changes of equal norm.
    """
    rows = []
    for site in shift_set.sites:
        for kind in shift_set.kinds:
            matrices = _matrices(shift_set, site, kind)
            if "random_weights" in matrices:
                matrices["random_states"] = matrices["base"] + matrices["random_weights"]
            labels = group_labels(shift_set.prompts(kind), len(matrices["base"]))
            draws = {
                name: entropy_draws(matrix, labels, _ENTROPY_DRAWS, configuration.seed)
                for name, matrix in matrices.items()
            }
            draws["policy_minus_base"] = draws["policy"] - draws["base"]
            if "random_states" in draws:
                draws["random_minus_base"] = draws.pop("random_states") - draws["base"]
            for name, values in draws.items():
                # A resample repeats rows and so has a lower entropy than the rows themselves:
                # its spread is used, and not its level.
                margin = _NORMAL_95 * float(np.std(values[1:], ddof=1))
                low, high = values[0] - margin, values[0] + margin
                rows.append(
                    {
                        "site": site,
                        "position_kind": kind,
                        "matrix": name,
                        "entropy": float(values[0]),
                        "ci_low": float(low),
                        "ci_high": float(high),
                    }
                )
    return pd.DataFrame(rows)


def entropy_draws(
    matrix: Rows, labels: Int[np.ndarray, " row"], draws: int, seed: int
) -> Float[np.ndarray, " draw"]:
    """Spectral entropy of the matrix, then of bootstrap resamples of its groups.

    The spectrum of a resample with multiplicities w is that of Σ_i w_i x_i x_iᵀ. Whichever of the
    n×n and the d×d Gram matrix is smaller is decomposed.
    """
    groups = int(labels.max()) + 1
    generator = np.random.default_rng(seed)
    weights = [np.ones(groups)]
    weights += [
        np.bincount(generator.integers(0, groups, groups), minlength=groups).astype(float)
        for _ in range(draws)
    ]
    n, d_model = matrix.shape
    gram = matrix @ matrix.T if n <= d_model else None
    values = []
    for weight in weights:
        root = np.sqrt(weight[labels])
        if gram is not None:
            product = gram * np.outer(root, root)
        else:
            scaled = matrix * root[:, None]
            product = scaled.T @ scaled
        eigenvalues = np.linalg.eigvalsh(product)
        values.append(spectral_entropy(np.sqrt(np.clip(eigenvalues, 0.0, None))))
    return np.asarray(values)
