"""`Moments`: what one pass over the shifts of a site keeps of them, whatever their number.

Rows grow with the prompts; moments do not. For each site and position kind they hold the second
moments of the shifts (`GramAccumulator`), and sums of the shifts and of their directions.

The mean cosine with any vector v needs no second pass, since it is linear in the directions::

    (1/n) Σ cos(δ⁽ⁱ⁾, v) = (1/n) Σ ⟨δ⁽ⁱ⁾/‖δ⁽ⁱ⁾‖, v/‖v‖⟩ = ⟨ū, v/‖v‖⟩,   ū = (1/n) Σ δ⁽ⁱ⁾/‖δ⁽ⁱ⁾‖

also with v* = (1/n) Σ δ⁽ⁱ⁾ itself, which is known at the end only. Sums are kept for ten folds of
prompts apart, so that each fold is also judged by the v* of the other nine; and once more with each
prompt's shifts times ±1 at random, which is the null where there is no shared direction.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from dsteer_tl.cosines import finite_rows, unit_rows
from dsteer_tl.errors import ShapeError
from dsteer_tl.gram_accumulator import GramAccumulator

#: Folds of prompts.
FOLDS = 10
#: A prompt's fold and sign come from different mixes of its number.
_FOLD_SALT, _SIGN_SALT = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
_VECTORS = ("sums", "unit_sums")
_STATE = ("counts", "norms", *_VECTORS)


class Moments:
    """Second moments and sums of the shifts at one site and position kind, in float64.

    Attributes:
        gram: Count, mean and scatter of the shifts.
    """

    def __init__(self, d_model: int) -> None:
        self.gram = GramAccumulator(d_model)
        self._counts = np.zeros(FOLDS, dtype=np.int64)
        self._norms = np.zeros(2)  # Σ‖δ‖ and Σ‖δ‖²
        # As they are, and with signs by prompt.
        self._sums = np.zeros((2, FOLDS, d_model))
        self._unit_sums = np.zeros((2, FOLDS, d_model))

    @property
    def n(self) -> int:
        """Number of shifts seen."""
        return self.gram.count

    @property
    def mean_norm(self) -> float:
        """Mean of ‖δ‖; NaN before the first row."""
        return float(self._norms[0] / self.n) if self.n else float("nan")

    @property
    def mean_square_norm(self) -> float:
        """Mean of ‖δ‖²; NaN before the first row."""
        return float(self._norms[1] / self.n) if self.n else float("nan")

    @property
    def mean(self) -> Float[np.ndarray, " d_model"]:
        """The steering vector v*, the mean of the shifts."""
        return self.gram.mean

    @property
    def mean_direction(self) -> Float[np.ndarray, " d_model"]:
        """ū, the mean of δ/‖δ‖: ⟨ū, v/‖v‖⟩ is the mean cosine of the shifts with v."""
        return np.asarray(self._unit_sums[0].sum(axis=0) / max(self.n, 1))

    def update(
        self, shifts: Float[np.ndarray, "row d_model"], prompts: Int[np.ndarray, " row"]
    ) -> None:
        """Takes in shifts and the numbers of their prompts; an empty block changes nothing.

        Raises:
            ShapeError: Wrong shapes, or NaN/inf inside; nothing is added then.
        """
        values = finite_rows(shifts, minimum=0, name="shifts")
        numbers = np.asarray(prompts)
        if numbers.shape != (len(values),):
            raise ShapeError(
                f"prompts: found shape {numbers.shape}, expected ({len(values)},): give the number "
                "of the prompt of each shift"
            )
        self.gram.update(values)
        folds, signs = folds_and_signs(numbers)
        norms = np.linalg.norm(values, axis=1)
        weights = np.zeros((2, FOLDS, len(values)))
        weights[0, folds, np.arange(len(values))] = 1.0
        weights[1] = weights[0] * signs
        self._counts += np.bincount(folds, minlength=FOLDS)
        self._norms += norms.sum(), np.sum(norms**2)
        self._sums += weights @ values
        self._unit_sums += weights @ unit_rows(values)

    def merge(self, other: Moments) -> None:
        """Adds what another has seen; the other stays as it is.

        Raises:
            ShapeError: The other one has another d_model.
        """
        self.gram.merge(other.gram)
        self._counts = self._counts + other._counts
        self._norms = self._norms + other._norms
        self._sums = self._sums + other._sums
        self._unit_sums = self._unit_sums + other._unit_sums

    def flipped_mean(self) -> Float[np.ndarray, " d_model"]:
        """The mean of the shifts times their prompts' signs: v* where no direction is shared."""
        return np.asarray(self._sums[1].sum(axis=0) / max(self.n, 1))

    def cos_mean(self, *, flipped: bool = False) -> float:
        """Mean cosine of the shifts with v*, each inside its own mean; NaN where v* is zero.

        Args:
            flipped: Of the shifts times their prompts' signs.
        """
        which = int(flipped)
        return self._cosines(self._unit_sums[which].sum(axis=0), self._sums[which].sum(axis=0))

    def cos_held_out(self, *, flipped: bool = False) -> float:
        """Mean cosine of each fold's shifts with the v* of the other folds.

        All shifts of a prompt are in one fold, so that no prompt vouches for itself. NaN where
        there is one fold alone.

        Args:
            flipped: Of the shifts times their prompts' signs.
        """
        sums, units = self._sums[int(flipped)], self._unit_sums[int(flipped)]
        occupied = np.flatnonzero(self._counts)
        if len(occupied) < 2:
            return float("nan")
        # Sums over the others and not total − own: no cancellation.
        return float(
            sum(
                self._cosines(units[fold], sums[occupied[occupied != fold]].sum(axis=0))
                for fold in occupied
            )
        )

    def _cosines(self, unit_sum: np.ndarray, vector: np.ndarray) -> float:
        norm = float(np.linalg.norm(vector))
        return float(unit_sum @ vector / norm) / self.n if norm > 0 and self.n else float("nan")

    def to_state(self) -> dict[str, np.ndarray]:
        """The state as contiguous arrays that safetensors can store."""
        own = {name: np.array(getattr(self, f"_{name}")) for name in _STATE}
        return {**self.gram.to_state(), **own}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Moments:
        """Restores moments from `to_state`, exactly.

        Raises:
            ShapeError: An array is missing or the shapes do not belong together.
        """
        gram = GramAccumulator.from_state(state)
        empty = cls(1)
        d_model = gram.mean.size
        for name in _STATE:
            shape = getattr(empty, f"_{name}").shape
            shape = (*shape[:-1], d_model) if name in _VECTORS else shape
            if name not in state or state[name].shape != shape:
                found = state[name].shape if name in state else "nothing"
                raise ShapeError(
                    f"moments: found {found} for {name}, expected {shape}: damaged, "
                    "accumulate again"
                )
            setattr(empty, f"_{name}", np.array(state[name]))
        empty.gram = gram
        return empty


def folds_and_signs(
    prompts: Int[np.ndarray, " row"],
) -> tuple[Int[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """A fold and a sign for each row, from the number of its prompt alone.

    By the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), so that neither the order of the
    prompts nor the process plays a part.
    """
    numbers = np.asarray(prompts).astype(np.uint64)
    folds = _mixed(numbers + np.uint64(_FOLD_SALT)) % np.uint64(FOLDS)
    signs = _mixed(numbers + np.uint64(_SIGN_SALT)) >> np.uint64(63)
    return folds.astype(np.int64), 1.0 - 2.0 * signs.astype(np.float64)


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
