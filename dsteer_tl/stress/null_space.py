"""Subspaces of two sets of rows: how far they overlap, and what of a row lies outside.

Jain et al. 2024 (arXiv 2407.10264) find that safety fine-tuning leaves benign inputs alone and
moves unsafe ones into the null space of the weights. Without weights that were aligned layer by
layer, what can be asked of any pair is where a shift lies: inside the subspace that benign
activations of the base fill, or outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from dsteer_tl.cosines import finite_rows
from dsteer_tl.errors import DependencyError, ShapeError
from dsteer_tl.spectra import check_orthonormal, leading_components, spectrum


@dataclass(frozen=True, slots=True, eq=False)
class EnergySubspace:
    """The subspace that holds most of the variance of rows.

    Attributes:
        mean: Mean row.
        directions: Orthonormal directions, largest variance first.
        share: Share of the total variance that they hold.
    """

    mean: Float[np.ndarray, " d_model"]
    directions: Float[np.ndarray, "component d_model"]
    share: float

    @property
    def rank(self) -> int:
        """Number of directions."""
        return len(self.directions)

    @property
    def isotropic_share_outside(self) -> float:
        """Share of ‖x‖² outside where x has no preferred direction: 1 − k / d_model."""
        return 1 - self.rank / self.mean.size


def energy_subspace(rows: Float[np.ndarray, "row d_model"], share: float = 0.95) -> EnergySubspace:
    """The fewest principal components that hold a share of the variance of rows.

    With n rows there are at most n − 1: rows that did not shape the subspace have more of their
    energy outside, however like the others they are. Compare only rows of the same standing, none
    of which shaped it (cross-fitting).

    Args:
        rows: One vector per row, centred here.
        share: Of Σ‖x − mean‖², in (0, 1].

    Raises:
        ShapeError: Wrong shape, fewer than two rows, NaN/inf inside, rows that are all equal, or a
            share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ShapeError(f"energy subspace: found share {share}, expected above 0 and at most 1")
    values = finite_rows(rows, minimum=2)
    found = spectrum(values, centred=True)
    if not found.singular_values.any():
        raise ShapeError(
            f"energy subspace: all {len(values)} rows are equal, expected rows that differ: give "
            "more prompts"
        )
    held = np.cumsum(found.share)
    rank = int(np.searchsorted(held, share * (1 - 1e-12)) + 1)
    rank = min(rank, int((found.singular_values > 0).sum()))
    return EnergySubspace(values.mean(axis=0), found.directions[:rank], float(held[rank - 1]))


def share_outside(
    rows: Float[np.ndarray, "row d_model"], directions: Float[np.ndarray, "component d_model"]
) -> Float[np.ndarray, " row"]:
    """Share of ‖x‖² outside a subspace, 1 − ‖Bx‖²/‖x‖² with orthonormal rows B; 0 for a zero row.

    Raises:
        ShapeError: Wrong shapes, NaN/inf inside, or directions that are not orthonormal.
    """
    values = finite_rows(rows)
    basis = finite_rows(directions, name="directions")
    check_orthonormal(basis, values.shape[1])
    whole = np.sum(values * values, axis=1)
    inside = np.sum((values @ basis.T) ** 2, axis=1)
    share = np.divide(inside, whole, out=np.ones_like(whole), where=whole > 0)
    return np.asarray(np.clip(1 - share, 0.0, 1.0))


def subspace_overlap(
    first: Float[np.ndarray, "row d_model"],
    second: Float[np.ndarray, "row d_model"],
    components: int,
    *,
    centred: bool = False,
) -> float:
    """Overlap of the spans of the top-k principal components of two sets of rows, in [0, 1].

    ‖U₁U₂ᵀ‖²_F / k by `transformer_lens.tools.analysis.projection_kernel`: the mean squared cosine
    of the principal angles. Random subspaces have `random_overlap`; two halves of one set of rows
    say how much estimation from as many rows can reach.

    Args:
        first: One vector per row.
        second: One vector per row, in the same space.
        components: k.
        centred: Take the mean row away first; without, shifts share their mean for certain.

    Raises:
        ShapeError: Wrong shapes, or fewer independent rows than components.
        DependencyError: TransformerLens is older than 4.3 and has no projection kernel.
    """
    try:
        from transformer_lens.tools.analysis.projection_kernel import (
            orthonormal_subspace,
            projection_kernel,
        )
    except ImportError as error:
        raise DependencyError(
            "the overlap of subspaces needs transformer_lens.tools.analysis.projection_kernel: "
            "install transformer-lens 4.3 or newer"
        ) from error
    bases = []
    for rows in (first, second):
        singular_values, directions = leading_components(rows, components, centred=centred)
        if len(directions) < components or singular_values[-1] <= 1e-7 * singular_values[0]:
            raise ShapeError(
                f"subspace overlap: found {len(rows)} rows of rank below {components}, expected "
                f"at least {components}: give more prompts, or ask for fewer components"
            )
        # Eigenvectors of a Gram matrix are orthogonal to about 1e-8: QR makes it rounding.
        exact = np.linalg.qr(directions.T)[0]
        bases.append(orthonormal_subspace(torch.from_numpy(exact), rank=components))
    return float(projection_kernel(*bases).normalized)


def random_overlap(d_model: int, components: int) -> tuple[float, float]:
    """Mean and standard deviation of `subspace_overlap` between random subspaces.

    The mean is k / d_model (`random_projection_kernel_moments` of TransformerLens).

    Raises:
        DependencyError: As `subspace_overlap`.
    """
    try:
        from transformer_lens.tools.analysis.projection_kernel import (
            random_projection_kernel_moments,
        )
    except ImportError as error:
        raise DependencyError(
            "the overlap of random subspaces needs transformer-lens 4.3 or newer"
        ) from error
    moments = random_projection_kernel_moments(d_model, components)
    return float(moments.mean) / components, float(moments.variance) ** 0.5 / components
