"""Streaming second moments: the spectrum of any number of rows in d_model² memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from dsteer_tl.cosines import finite_rows
from dsteer_tl.errors import ShapeError
from dsteer_tl.spectra import Spectrum, oriented_spectrum

#: Numbers of a block of rows that is in work at once, 32 MiB as float64.
_BLOCK = 2**22
#: Rows and columns mirrored at once.
_TILE = 512
#: One direction in so many is few: they alone are computed then, as all cost several times more.
_FEW = 8


class GramAccumulator:
    """Streaming second moments: the spectrum of any number of rows in d_model² memory.

    Holds the count n, the mean μ and the scatter around the mean Σ (x−μ)(x−μ)ᵀ in float64, updated
    by the pairwise formulas of Chan, Golub and LeVeque (1983). Keeping the scatter and not Σ xxᵀ
    means that the centred spectrum loses no digits where it matters: when the mean dominates.
    Merging in any grouping or order gives the same result up to rounding, so processes and shards
    can be merged freely.

    A block of b rows with mean m adds Σ (x−m)(x−m)ᵀ + (m−μ)(m−μ)ᵀ·nb/(n+b): b+1 rows of one
    symmetric rank-k update (BLAS ``dsyrk``), b·d_model² operations, in place. Beside the d_model²
    numbers that are kept, memory is that of one block of rows.
    """

    def __init__(self, d_model: int) -> None:
        if d_model < 1:
            raise ShapeError(f"Gram accumulator: found d_model {d_model}, expected at least 1")
        self._count = 0
        self._mean = np.zeros(d_model)
        # In the order of Fortran, which BLAS updates in place. Only the upper triangle is kept up
        # to date; `_symmetric` copies it to the lower one.
        self._scatter = np.zeros((d_model, d_model), order="F")

    @property
    def count(self) -> int:
        """Number of rows seen."""
        return self._count

    @property
    def mean(self) -> Float[np.ndarray, " d_model"]:
        """Mean of the rows seen; zeros before the first."""
        return self._mean.copy()

    @property
    def gram(self) -> Float[np.ndarray, "d_model d_model"]:
        """Σ xxᵀ over the rows seen, uncentred, not divided by n."""
        found = np.outer(self._mean, self._count * self._mean)
        found += self._symmetric()
        return found

    @property
    def scatter_trace(self) -> float:
        """Σ ‖x−μ‖² over the rows seen."""
        return float(np.trace(self._scatter))

    def update(self, rows: Float[np.ndarray, "row d_model"]) -> None:
        """Adds rows; an empty block changes nothing.

        Raises:
            ShapeError: Wrong shape, wrong d_model, or NaN/inf inside; nothing is added then.
        """
        values = np.asarray(rows)
        if values.ndim != 2 or values.size <= _BLOCK:
            checked = finite_rows(values, minimum=0)
            self._check_width(checked.shape[1])
            self._add(checked)
            return
        finite_rows(values[:0], minimum=0)  # real numbers
        self._check_width(values.shape[1])
        if not all(np.isfinite(block).all() for block in _blocks(values)):
            finite_rows(values)  # says how many and where
        for block in _blocks(values):
            self._add(finite_rows(block))

    def merge(self, other: GramAccumulator) -> None:
        """Adds what another accumulator has seen; the other stays as it is.

        Raises:
            ShapeError: The other one has another d_model.
        """
        self._check_width(other._mean.size)
        if other._count == 0:
            return
        gap, count = other._mean - self._mean, other._count
        self._scatter += other._scatter
        self._shift(gap, count, np.empty((1, gap.size)))

    def spectrum(self, *, centred: bool = False, keep: int | None = None) -> Spectrum:
        """Spectrum of the rows seen, by eigendecomposition of the second moments over n.

        Squaring costs half the digits: singular values below about 1e-8 σ₁ are rounding.
        Entropy and shares are not touched by that.

        Args:
            centred: Around the mean.
            keep: How many directions to return, all by default; few cost a third of the time.

        Raises:
            ShapeError: Fewer than two rows were seen.
        """
        if self._count < 2:
            raise ShapeError(
                f"Gram accumulator: found {self._count} rows, expected at least 2: "
                "update it before asking for a spectrum"
            )
        moments = self._symmetric().copy() if centred else self.gram
        moments /= self._count
        eigenvalues, directions = _eigen(moments, keep)
        components = min(self._count, self._mean.size)
        singular_values = np.sqrt(np.maximum(eigenvalues[::-1][:components], 0.0))
        kept = directions[:components][:keep]
        return oriented_spectrum(singular_values, kept, self._mean, centred, self._count)

    def to_state(self) -> dict[str, np.ndarray]:
        """Returns the state as contiguous arrays that safetensors can store."""
        return {
            "count": np.array([self._count], dtype=np.int64),
            "mean": self._mean.copy(),
            "scatter": np.array(self._symmetric().T),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> GramAccumulator:
        """Restores an accumulator from `to_state`, exactly.

        Raises:
            ShapeError: An array is missing or the shapes do not belong together.
        """
        missing = sorted({"count", "mean", "scatter"} - set(state))
        if missing:
            raise ShapeError(
                f"Gram accumulator: state lacks {', '.join(missing)}, expected count, mean and "
                "scatter: pass what to_state returned"
            )
        mean = np.array(state["mean"], dtype=np.float64)
        scatter = np.array(np.asarray(state["scatter"]).T, dtype=np.float64, order="F")
        count = np.asarray(state["count"]).reshape(-1)
        if mean.ndim != 1 or scatter.shape != (mean.size, mean.size) or count.size != 1:
            raise ShapeError(
                f"Gram accumulator: found mean {mean.shape}, scatter {scatter.shape} and count "
                f"{count.shape}, expected (d,), (d, d) and (1,): damaged, capture again"
            )
        restored = cls.__new__(cls)
        restored._count, restored._mean, restored._scatter = int(count[0]), mean, scatter
        return restored

    def _check_width(self, width: int) -> None:
        if width != self._mean.size:
            raise ShapeError(
                f"Gram accumulator: found d_model {width}, expected {self._mean.size}: "
                "use one accumulator per site and model"
            )

    def _add(self, values: np.ndarray) -> None:
        if len(values) == 0:
            return
        mean = values.mean(axis=0)
        gap = mean - self._mean
        added = np.empty((len(values) + 1, mean.size))
        np.subtract(values, mean, out=added[:-1])
        self._shift(gap, len(values), added)

    def _shift(self, gap: np.ndarray, count: int, added: np.ndarray) -> None:
        """Takes in ``count`` rows by the gap to their mean; the last added row is free for it."""
        from scipy.linalg.blas import dsyrk

        total = self._count + count
        added[-1] = gap * np.sqrt(self._count * count / total)
        self._scatter = dsyrk(1.0, added.T, beta=1.0, c=self._scatter, overwrite_c=1)
        self._mean = self._mean + gap * (count / total)
        self._count = total

    def _symmetric(self) -> np.ndarray:
        """The scatter, both triangles."""
        d_model = self._mean.size
        for start in range(0, d_model, _TILE):
            stop = min(start + _TILE, d_model)
            corner = self._scatter[start:stop, start:stop]
            corner[:] = np.triu(corner) + np.triu(corner, 1).T
            self._scatter[stop:, start:stop] = self._scatter[start:stop, stop:].T
        return self._scatter


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _eigen(moments: np.ndarray, keep: int | None) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues, ascending, and the eigenvectors of the largest, as rows, largest first."""
    d_model = len(moments)
    if keep is None or keep > d_model // _FEW:
        eigenvalues, vectors = np.linalg.eigh(moments)
        return eigenvalues, vectors.T[::-1]
    eigenvalues = np.linalg.eigvalsh(moments)
    if keep == 0:
        return eigenvalues, np.zeros((0, d_model))
    from scipy.linalg import eigh

    _, vectors = eigh(moments, subset_by_index=[d_model - keep, d_model - 1], overwrite_a=True)
    return eigenvalues, vectors.T[::-1]
