"""How far each token's state moves along v*, and how far off it.

With v̂* estimated on the prompts of the other half, a response's own shifts are never in the vector
that they are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dsteer_tl.capture import ShiftSet
from dsteer_tl.cosines import unit_rows
from dsteer_tl.errors import ShapeError
from dsteer_tl.preferences import EncodedPair


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossFitted:
    """v* of each half of the prompts, to be used on the other.

    Attributes:
        directions: Unit vectors; number k is from the prompts that are not in half k.
        first: The prompts of half 0; every other one, seen or not, is in half 1.
        position_kind: Which rows it is the mean of.
    """

    directions: Float[np.ndarray, "2 d_model"]
    first: frozenset[int]
    position_kind: str

    def half(self, prompts: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
        """Number of the direction that no row of the same prompt went into."""
        return np.where(np.isin(prompts, list(self.first)), 0, 1)


def vector_kind(shift_set: ShiftSet) -> str:
    """The position kind that v* is taken from: response, else divergence, last_prompt, any."""
    known = ("response", "divergence", "last_prompt")
    return next((kind for kind in known if kind in shift_set.kinds), shift_set.kinds[0])


def cross_fitted(shift_set: ShiftSet, site: str, seed: int) -> CrossFitted:
    """Unit v* at a site from each half of the prompts, so that no pair is in its own vector.

    Rows are of `vector_kind`.

    Raises:
        ShapeError: The site was not captured, or there are fewer than two prompts.
    """
    kind = vector_kind(shift_set)
    shifts, prompts = shift_set.shifts(site, kind), shift_set.prompts(kind)
    halves = shift_set.halves(kind, seed)
    if not all(halves):
        raise ShapeError(
            f"v* at {site!r}: found {len(np.unique(prompts))} prompts with rows of kind {kind!r}, "
            "expected at least 2: half of them estimate the vector that the others are split along"
        )
    means = [shifts[np.isin(prompts, list(other))].mean(axis=0) for other in halves[::-1]]
    return CrossFitted(directions=unit_rows(np.stack(means)), first=halves[0], position_kind=kind)


def prompt_numbers(encoded: Sequence[EncodedPair]) -> Int[np.ndarray, " pair"]:
    """For each pair the first pair with its prompt, as probes count prompts."""
    numbers: dict[tuple[int, ...], int] = {}
    return np.array([numbers.setdefault(item.prompt_ids, i) for i, item in enumerate(encoded)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShiftParts:
    """Each shift along a unit direction and off it, in the units of the residual stream.

    Attributes:
        along: ⟨δ, v̂⟩.
        off: ‖δ − ⟨δ, v̂⟩v̂‖.
        cos: ⟨δ, v̂⟩/‖δ‖, 0 for a zero shift.
        random: Mean of |cos| over random directions.
    """

    along: Float[np.ndarray, " row"]
    off: Float[np.ndarray, " row"]
    cos: Float[np.ndarray, " row"]
    random: Float[np.ndarray, " row"]


def shift_parts(
    shifts: Float[np.ndarray, "row d_model"],
    directions: Float[np.ndarray, "half d_model"],
    half: Int[np.ndarray, " row"],
    random: Float[np.ndarray, "draw d_model"],
) -> ShiftParts:
    """Split shifts along the unit direction of each row.

    Args:
        shifts: δ = policy − base, one row a token.
        directions: Unit vectors.
        half: Which of them is each row's.
        random: Random unit vectors, for the null.
    """
    own = directions[half]
    along = np.sum(shifts * own, axis=1)
    units = unit_rows(shifts)
    return ShiftParts(
        along=along,
        off=np.linalg.norm(shifts - along[:, None] * own, axis=1),
        cos=np.clip(np.sum(units * own, axis=1), -1.0, 1.0),
        random=np.abs(units @ random.T).mean(axis=1),
    )
