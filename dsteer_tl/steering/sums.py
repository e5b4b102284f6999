"""Statistics of single tokens, added up over the sequences that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsteer_tl.steering.reference import ROLES, Reference, Role
from dsteer_tl.steering.scored import STATISTICS, Batch, Scored


class Sums:
    """Adds per-token statistics up into `Scored`.

    Args:
        coefficients: How many.
        sequences: How many.
        asked: Models that are compared with; what belongs to another stays NaN.
    """

    def __init__(self, coefficients: int, sequences: int, asked: Sequence[Role] = ROLES) -> None:
        of_asked = {f"{kind}_{role}" for kind in ("kl", "top1") for role in asked}
        measured = of_asked | {"log_probability"}
        self._sums = {
            name: np.full((coefficients, sequences), 0.0 if name in measured else np.nan)
            for name in STATISTICS
        }
        self._unsteered = {
            role: np.full(sequences, 0.0 if role in asked else np.nan) for role in ROLES
        }
        self._tokens = np.zeros(sequences, dtype=np.int64)

    def note(self, batch: Batch, reference: Reference) -> None:
        """Count the tokens of a batch and add up what the unsteered models give them."""
        np.add.at(self._tokens, batch.owner, 1)
        for role in reference.asked:
            values = reference.models[role].log_probability(batch.targets)
            self._unsteered[role] += by_sequence(values[None], batch, len(self._tokens))[0]

    def add(
        self, first: int, batch: Batch, statistics: Mapping[str, Float[Tensor, "... token"]]
    ) -> None:
        """Add the statistics of one coefficient, or of several from the first on."""
        for name, values in statistics.items():
            found = by_sequence(values.reshape(-1, values.shape[-1]), batch, len(self._tokens))
            self._sums[name][first : first + len(found)] += found

    def scored(self) -> Scored:
        """The sums so far."""
        return Scored(
            **self._sums,
            base_log_probability=self._unsteered["base"],
            policy_log_probability=self._unsteered["policy"],
            tokens=self._tokens,
        )


def by_sequence(
    values: Float[Tensor, "coefficient token"], batch: Batch, sequences: int
) -> Float[np.ndarray, "coefficient sequence"]:
    """Sums over the tokens of each sequence."""
    owner = torch.from_numpy(batch.owner).to(values.device)
    sums = values.new_zeros(len(values), sequences).index_add_(1, owner, values)
    return np.asarray(sums.cpu().numpy(), dtype=np.float64)
