"""Do the shifts of different prompts point the same way?

The statistics behind D-STEER's cosine histogram (Fig. 3, claim 6) and Lee et al.'s offset
(claim 26). A row that takes part in its own mean has a cosine of about 1/√n with it even when the
rows are pure noise, so every in-sample cosine comes with its leave-one-out twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dsteer_tl.errors import ShapeError

# A difference of equal numbers is not exactly zero in floating point; below this share of the
# length of what was subtracted, a remainder is rounding and carries no direction.
ROUNDING = 1e-13


def finite_rows(
    rows: Float[np.ndarray, "row d_model"], *, minimum: int = 1, name: str = "rows"
) -> Float[np.ndarray, "row d_model"]:
    """Returns the rows as float64 after checking their shape and content.

    Args:
        rows: Any real array of two dimensions.
        minimum: The fewest rows that the caller's statistic is defined for.
        name: What the caller calls them, for the message.

    Raises:
        ShapeError: Not two-dimensional, not real, too few rows, no columns, or NaN/inf inside.
    """
    return _finite(rows, 2, minimum, name)


def finite_vector(
    vector: Float[np.ndarray, " d_model"], *, name: str = "vector"
) -> Float[np.ndarray, " d_model"]:
    """Returns the vector as float64 after checking its shape and content.

    Raises:
        ShapeError: Not one-dimensional, not real, empty, or NaN/inf inside.
    """
    return _finite(vector, 1, 1, name)


def group_labels(groups: Sequence[object] | np.ndarray | None, n: int) -> Int[np.ndarray, " row"]:
    """Returns one integer 0…G−1 per row; without groups every row is its own group.

    Raises:
        ShapeError: There is not exactly one label per row.
    """
    if groups is None:
        return np.arange(n)
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ShapeError(
            f"groups: found shape {labels.shape}, expected ({n},): give one label per row"
        )
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def unit_rows(rows: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "row d_model"]:
    """Scales each row to length 1; a zero row stays zero, so that its cosines are 0."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0))


def centre(rows: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "row d_model"]:
    """Subtracts the mean row; what is left of a row by rounding alone is set to exactly zero.

    Raises:
        ShapeError: Fewer than two rows, wrong shape, or NaN/inf inside.
    """
    values = finite_rows(rows, minimum=2)
    centred = values - values.mean(axis=0)
    scale = np.linalg.norm(values, axis=1).max()
    centred[np.linalg.norm(centred, axis=1) <= ROUNDING * scale] = 0.0
    return np.asarray(centred)


def cosine(first: Float[np.ndarray, " d_model"], second: Float[np.ndarray, " d_model"]) -> float:
    """Cosine of two vectors; 0 if either is zero.

    Raises:
        ShapeError: The vectors differ in length, or hold NaN/inf.
    """
    one, two = finite_vector(first, name="first"), finite_vector(second, name="second")
    if one.shape != two.shape:
        raise ShapeError(
            f"cosine: found lengths {one.size} and {two.size}, expected equal ones: "
            "compare vectors of one site"
        )
    return float(np.clip(unit_rows(one) @ unit_rows(two), -1.0, 1.0))


def mean_shift(shifts: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, " d_model"]:
    """The steering vector v* = (1/n) Σ δ⁽ⁱ⁾ (D-STEER, claim 6), in the units of the shifts.

    Raises:
        ShapeError: Wrong shape, no rows, or NaN/inf inside.
    """
    return np.asarray(finite_rows(shifts, name="shifts").mean(axis=0))


def cosines_to_mean(shifts: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, " row"]:
    """The paper's statistic cos θ⁽ⁱ⁾ = ⟨δ⁽ⁱ⁾, v*⟩ / (‖δ⁽ⁱ⁾‖ ‖v*‖), each row inside its own mean.

    For isotropic noise in d ≫ n dimensions its expectation is about 1/√n, not 0: report
    `leave_one_out_cosines` beside it.

    Raises:
        ShapeError: Wrong shape, fewer than two rows, or NaN/inf inside.
    """
    values = finite_rows(shifts, minimum=2, name="shifts")
    return _clipped(unit_rows(values) @ unit_rows(values.mean(axis=0)))


def leave_one_out_cosines(
    shifts: Float[np.ndarray, "row d_model"],
    groups: Sequence[object] | np.ndarray | None = None,
) -> Float[np.ndarray, " row"]:
    """Cosine of each row with the mean over the rows of all *other* groups.

    With the prompt as the group, the response rows of one prompt are left out together, so that a
    prompt never vouches for itself. The control of claim 6.

    Args:
        shifts: One shift per row.
        groups: One label per row; without it each row is its own group.

    Raises:
        ShapeError: Wrong shape, NaN/inf inside, or fewer than two groups.
    """
    values = finite_rows(shifts, minimum=2, name="shifts")
    labels = group_labels(groups, len(values))
    count = int(labels.max()) + 1
    if count < 2:
        raise ShapeError(
            f"leave-one-out cosines: found 1 group in {len(values)} rows, expected at least 2: "
            "give shifts of more than one prompt"
        )
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, labels, values)
    # Sums before and after each group instead of total − group: no cancellation, so one very
    # long shift does not drown the others in its rounding.
    others = np.zeros_like(sums)
    others[1:] += np.cumsum(sums[:-1], axis=0)
    others[:-1] += np.cumsum(sums[:0:-1], axis=0)[::-1]
    return _clipped(np.sum(unit_rows(values) * unit_rows(others)[labels], axis=1))


def pairwise_cosine_mean(rows: Float[np.ndarray, "row d_model"], centred: bool = False) -> float:
    """Mean cosine over all pairs of different rows (claim 3).

    Closed form from the unit vectors, Σ_{i≠j} cos(i, j) = ‖Σ uᵢ‖² − Σ ‖uᵢ‖², so no n×n matrix.
    Pairs with a zero row count as 0.

    Args:
        rows: One vector per row.
        centred: Subtract the mean row first: what agreement is left once the shared offset is
            gone. Isotropic noise then gives −1/(n−1).

    Raises:
        ShapeError: Wrong shape, fewer than two rows, or NaN/inf inside.
    """
    values = centre(rows) if centred else finite_rows(rows, minimum=2)
    units = unit_rows(values)
    n = len(units)
    total = units.sum(axis=0)
    return float((total @ total - np.sum(units * units)) / (n * (n - 1)))


def sampled_pair_cosines(
    rows: Float[np.ndarray, "row d_model"], *, pairs: int, seed: int, centred: bool = True
) -> Float[np.ndarray, " pair"]:
    """Cosines of randomly drawn pairs of different rows: the distribution behind the mean.

    Args:
        rows: One vector per row.
        pairs: How many pairs to draw (with replacement over pairs).
        seed: Seed of the draw.
        centred: Subtract the mean row first.

    Raises:
        ShapeError: Wrong shape, fewer than two rows, or NaN/inf inside.
    """
    values = centre(rows) if centred else finite_rows(rows, minimum=2)
    generator = np.random.default_rng(seed)
    first = generator.integers(len(values), size=pairs)
    second = (first + generator.integers(1, len(values), size=pairs)) % len(values)
    units = unit_rows(values)
    return _clipped(np.sum(units[first] * units[second], axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineStatistics:
    """How well the shifts agree with their mean.

    Attributes:
        cos: Cosine of each row with the mean of all rows (the paper's, in-sample).
        cos_loo: Cosine of each row with the mean over the other groups.
        mean: Mean of `cos`.
        sd: Sample standard deviation of `cos` (n − 1 in the denominator).
        loo_mean: Mean of `cos_loo`.
        zero_rows: Rows of length zero; their cosines are defined as 0 and are in the means.
    """

    cos: Float[np.ndarray, " row"]
    cos_loo: Float[np.ndarray, " row"]
    mean: float
    sd: float
    loo_mean: float
    zero_rows: int


def cosine_statistics(
    shifts: Float[np.ndarray, "row d_model"],
    groups: Sequence[object] | np.ndarray | None = None,
) -> CosineStatistics:
    """Computes in-sample and leave-one-out cosines of the shifts (claim 6, Fig. 3).

    Args:
        shifts: One shift δ⁽ⁱ⁾ = h_policy − h_base per row.
        groups: One label (the prompt) per row; without it each row is its own group.

    Raises:
        ShapeError: Wrong shape, NaN/inf inside, fewer than two rows or groups.
    """
    values = finite_rows(shifts, minimum=2, name="shifts")
    cos = cosines_to_mean(values)
    cos_loo = leave_one_out_cosines(values, groups)
    return CosineStatistics(
        cos=cos,
        cos_loo=cos_loo,
        mean=float(cos.mean()),
        sd=float(cos.std(ddof=1)),
        loo_mean=float(cos_loo.mean()),
        zero_rows=int(np.sum(~values.any(axis=1))),
    )


def _clipped(cosines: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(cosines, -1.0, 1.0))


def _finite(values: np.ndarray, ndim: int, minimum: int, name: str) -> np.ndarray:
    array = np.asarray(values)
    shape = "(row, d_model)" if ndim == 2 else "(d_model,)"
    if array.ndim != ndim:
        raise ShapeError(
            f"{name}: found {array.ndim} dimensions, shape {array.shape}, expected {ndim}, "
            f"{shape}: flatten prompts and positions first"
        )
    if array.dtype.kind not in "fiub":
        raise ShapeError(
            f"{name}: found dtype {array.dtype}, expected real numbers: convert to float32"
        )
    if array.shape[0] < minimum or array.shape[-1] < 1:
        raise ShapeError(
            f"{name}: found shape {array.shape}, expected {shape} with at least {minimum} along "
            "the first axis and 1 column: give more data"
        )
    array = array.astype(np.float64)
    bad = ~np.isfinite(array)
    if bad.any():
        where = np.argwhere(bad)[0]
        place = f"row {where[0]}, column {where[1]}" if ndim == 2 else f"entry {where[0]}"
        touched = f" in {int(bad.any(axis=1).sum())} of {len(array)} rows" if ndim == 2 else ""
        raise ShapeError(
            f"{name}: found {int(bad.sum())} NaN or infinite entries{touched}, the first at "
            f"{place}, expected finite numbers: check the precision of the capture"
        )
    return array
