"""How many directions does the change have?

Singular values, their entropy and effective rank, uncentred as in D-STEER (Figs. 4a, 4b, claims
7–9, 18) and centred as the control: an uncentred spectrum is dominated by the mean whenever the
mean is long, so a small σ₂/σ₁ says nothing that the mean cosine has not said.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dsteer_tl.cosines import centre, finite_rows
from dsteer_tl.errors import ShapeError

# Below this share of the length of the mean, its projection on a direction is rounding and
# cannot orient the direction.
_SIGN_TOLERANCE = 1e-12
_ORTHONORMAL_TOLERANCE = 1e-4  # directions may have been stored in float32


def spectral_entropy(singular_values: Float[np.ndarray, " component"]) -> float:
    """Entropy −Σ pⱼ ln pⱼ in nats of the normalised spectrum pⱼ = σⱼ²/Σσ² (Fig. 4a, claim 9).

    0 for rank one, ln k for k equal singular values; NaN when all are zero.

    Raises:
        ShapeError: Not one-dimensional, negative, or not finite.
    """
    values = np.asarray(singular_values, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
        raise ShapeError(
            f"singular values: found shape {values.shape} with {int(np.sum(values < 0))} negative "
            f"and {int(np.sum(~np.isfinite(values)))} not finite, expected one axis of finite "
            "values ≥ 0: pass singular values, not eigenvalues or a matrix"
        )
    share = _share(values)
    share = share[share > 0]
    return float(max(0.0, -np.sum(share * np.log(share)))) if share.size else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Singular value decomposition of a set of rows.

    Attributes:
        singular_values: σ₁ ≥ σ₂ ≥ … of rows/√n, in the units of the rows; all of them.
        directions: uⱼ, orthonormal: the left singular vectors of the paper's ΔH (d × N), so the
            right singular vectors of our row matrix. Oriented so that the mean row projects
            on them with ≥ 0; where the mean is orthogonal, the largest entry is positive.
            May hold fewer components than `singular_values` (see `spectrum`'s `keep`).
        share: σⱼ²/Σσ²; zeros if all singular values are zero.
        centred: Whether the mean row was subtracted first.
        n: Number of rows.
    """

    singular_values: Float[np.ndarray, " component"]
    directions: Float[np.ndarray, "component d_model"]
    share: Float[np.ndarray, " component"]
    centred: bool
    n: int

    @property
    def entropy(self) -> float:
        """Spectral entropy in nats; NaN if the rows are all zero."""
        return spectral_entropy(self.singular_values)

    @property
    def effective_rank(self) -> float:
        """exp(entropy): how many equal directions would have this entropy."""
        return float(np.exp(self.entropy))

    @property
    def sigma_ratio(self) -> float:
        """σ₂/σ₁ (claim 7); 0 with a single component, NaN if the rows are all zero."""
        if self.singular_values[0] == 0:
            return float("nan")
        if self.singular_values.size < 2:
            return 0.0
        return float(self.singular_values[1] / self.singular_values[0])


def spectrum(
    rows: Float[np.ndarray, "row d_model"], *, centred: bool = False, keep: int | None = None
) -> Spectrum:
    """Singular value decomposition of rows/√n in float64 (LAPACK).

    Args:
        rows: One vector per row.
        centred: Subtract the mean row first, which makes it a principal component analysis.
        keep: How many directions to return; all min(n, d_model) by default. The singular values
            are always complete, as the entropy needs them.

    Raises:
        ShapeError: Wrong shape, fewer than two rows, or NaN/inf inside.
    """
    values = finite_rows(rows, minimum=2)
    n = len(values)
    matrix = centre(values) if centred else values
    _, singular_values, directions = np.linalg.svd(matrix / np.sqrt(n), full_matrices=False)
    return oriented_spectrum(singular_values, directions[:keep], values.mean(axis=0), centred, n)


def leading_components(
    rows: Float[np.ndarray, "row d_model"], count: int, *, centred: bool = False
) -> tuple[Float[np.ndarray, " component"], Float[np.ndarray, "component d_model"]]:
    """The first singular values of rows/√n and their directions, without the rest.

    By the eigenvectors of the smaller of the two Gram matrices, so that null distributions can
    afford it; singular values agree with `spectrum` to about 1e-8 of the largest.

    Raises:
        ShapeError: Wrong shape, fewer than two rows, or NaN/inf inside.
    """
    matrix = (centre(rows) if centred else finite_rows(rows, minimum=2)) / np.sqrt(len(rows))
    wide = matrix.shape[0] < matrix.shape[1]
    values, vectors = np.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    singular_values = np.sqrt(np.clip(values[::-1][:count], 0.0, None))
    directions = vectors.T[::-1][:count]
    if wide:
        directions = directions @ matrix
        norms = np.linalg.norm(directions, axis=1, keepdims=True)
        directions = np.divide(directions, norms, out=np.zeros_like(directions), where=norms > 0)
    return singular_values, directions


def row_entropy(rows: Float[np.ndarray, "row d_model"], centred: bool = False) -> float:
    """Spectral entropy of the rows in nats, without directions.

    By the eigenvalues of the smaller of the two Gram matrices, so that a bootstrap can afford
    it; agrees with `spectrum(rows).entropy` to about 1e-12. Resampled rows repeat and so have
    fewer distinct directions: a bootstrap interval of an entropy sits low when n ≲ d_model.

    Raises:
        ShapeError: Wrong shape, fewer than two rows, or NaN/inf inside.
    """
    matrix = centre(rows) if centred else finite_rows(rows, minimum=2)
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return spectral_entropy(np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentMass:
    """How the squared length of each row spreads over directions.

    Attributes:
        mass: Mean over rows of ⟨xᵢ, uⱼ⟩²/‖xᵢ‖².
        per_row: The same for each row; sums to at most 1 over components.
        zero_rows: Rows of length zero; their shares are defined as 0 and are in the mean.
    """

    mass: Float[np.ndarray, " component"]
    per_row: Float[np.ndarray, "row component"]
    zero_rows: int


def mass_per_component(
    rows: Float[np.ndarray, "row d_model"], directions: Float[np.ndarray, "component d_model"]
) -> ComponentMass:
    """Share of each row's squared length on each direction (claim 18).

    Unlike σⱼ²/Σσ², which long rows dominate, each row counts the same. For the centred variant
    pass `centre(rows)` and the directions of the centred spectrum.

    Args:
        rows: One vector per row.
        directions: Orthonormal rows, such as `Spectrum.directions`.

    Raises:
        ShapeError: Wrong shapes, NaN/inf inside, or directions that are not orthonormal.
    """
    values = finite_rows(rows)
    basis = finite_rows(directions, name="directions")
    check_orthonormal(basis, values.shape[1])
    norms = np.sum(values * values, axis=1, keepdims=True)
    squares = (values @ basis.T) ** 2
    per_row = np.divide(squares, norms, out=np.zeros_like(squares), where=norms > 0)
    return ComponentMass(
        mass=per_row.mean(axis=0), per_row=per_row, zero_rows=int(np.sum(norms == 0))
    )


def check_orthonormal(basis: Float[np.ndarray, "component d_model"], d_model: int) -> None:
    """Refuses directions that are not orthonormal rows of length d_model.

    Raises:
        ShapeError: Another width, or BBᵀ differs from the identity by more than 1e-4.
    """
    if basis.shape[1] != d_model:
        raise ShapeError(
            f"directions: found d_model {basis.shape[1]}, expected {d_model}: "
            "use directions of the same site"
        )
    error = float(np.abs(basis @ basis.T - np.eye(len(basis))).max())
    if error > _ORTHONORMAL_TOLERANCE:
        raise ShapeError(
            f"directions: found rows that differ from orthonormal by {error:.2g}, expected at most "
            f"{_ORTHONORMAL_TOLERANCE:g}: pass Spectrum.directions or orthonormalise them"
        )


def _share(singular_values: np.ndarray) -> np.ndarray:
    top = singular_values.max(initial=0.0)
    if top == 0:
        return np.zeros_like(singular_values)
    squares = (singular_values / top) ** 2  # scaled, so that tiny shifts do not underflow
    return np.asarray(squares / squares.sum())


def oriented_spectrum(
    singular_values: Float[np.ndarray, " component"],
    directions: Float[np.ndarray, "component d_model"],
    mean: Float[np.ndarray, " d_model"],
    centred: bool,
    n: int,
) -> Spectrum:
    """A `Spectrum` whose directions point along the mean, or have a positive largest entry."""
    projections = directions @ mean
    largest = np.take_along_axis(
        directions, np.abs(directions).argmax(axis=1, keepdims=True), axis=1
    )[:, 0]
    orienting = np.where(
        np.abs(projections) > _SIGN_TOLERANCE * np.linalg.norm(mean), projections, largest
    )
    return Spectrum(
        singular_values=singular_values,
        directions=np.ascontiguousarray(directions * np.where(orienting < 0, -1.0, 1.0)[:, None]),
        share=_share(singular_values),
        centred=centred,
        n=n,
    )
