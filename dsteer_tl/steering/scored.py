"""What a steered model says of given tokens: log-probabilities, divergences, agreement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import Gather, LensModel, length_sorted_batches, pad
from dsteer_tl.sites import FINAL

#: Statistics of `Scored`, one array each.
STATISTICS = ("log_probability", "kl_base", "kl_policy", "top1_base", "top1_policy")


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Tokens to score: a completion after its prompt."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scored:
    """Sums over the completion tokens of each sequence, for a grid of coefficients.

    Attributes:
        log_probability: Σ log p_steered(token), in nats.
        kl_base: Σ KL(base‖steered) over positions, in nats.
        kl_policy: Σ KL(policy‖steered).
        top1_base: Positions at which the steered model's likeliest token is the base's.
        top1_policy: The same for the policy's.
        base_log_probability: Σ log p_base(token), unsteered.
        policy_log_probability: Σ log p_policy(token), unsteered.
        tokens: Completion tokens of each sequence.
    """

    log_probability: Float[np.ndarray, "coefficient sequence"]
    kl_base: Float[np.ndarray, "coefficient sequence"]
    kl_policy: Float[np.ndarray, "coefficient sequence"]
    top1_base: Float[np.ndarray, "coefficient sequence"]
    top1_policy: Float[np.ndarray, "coefficient sequence"]
    base_log_probability: Float[np.ndarray, " sequence"]
    policy_log_probability: Float[np.ndarray, " sequence"]
    tokens: Int[np.ndarray, " sequence"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Right-padded sequences with the positions whose next token is scored.

    Attributes:
        ids, mask: The padded tokens.
        prompt_lengths: Prompt tokens of each row.
        rows, positions: Row and position of each scored token's predecessor.
        targets: The scored tokens.
        owner: Index of the sequence of each scored token.
    """

    ids: Int[Tensor, "batch position"]
    mask: Int[Tensor, "batch position"]
    prompt_lengths: tuple[int, ...]
    rows: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    targets: Int[Tensor, " token"]
    owner: Int[np.ndarray, " token"]

    @property
    def scored(self) -> Gather:
        """Where the scored tokens are predicted."""
        return Gather(self.rows, self.positions)

    def at_tokens(self, tensor: Tensor) -> Tensor:
        """The rows of ``[batch, position, …]`` that predict the scored tokens."""
        return tensor[self.rows.to(tensor.device), self.positions.to(tensor.device)]


def batches(sequences: Sequence[TokenSequence], token_budget: int) -> Iterator[Batch]:
    """Sequences of similar length together.

    Raises:
        ShapeError: A sequence has no prompt or no completion token.
    """
    for index, sequence in enumerate(sequences):
        if not sequence.prompt_ids or not sequence.completion_ids:
            raise ShapeError(
                f"sequence {index}: found {len(sequence.prompt_ids)} prompt and "
                f"{len(sequence.completion_ids)} completion tokens, expected at least one of each"
            )
    rows = [[*item.prompt_ids, *item.completion_ids] for item in sequences]
    for indices in length_sorted_batches([len(row) for row in rows], token_budget):
        padded = pad([rows[index] for index in indices])
        places = [
            (row, position, rows[index][position + 1], index)
            for row, index in enumerate(indices)
            for position in range(len(sequences[index].prompt_ids) - 1, len(rows[index]) - 1)
        ]
        columns = list(zip(*places, strict=True))
        yield Batch(
            padded.ids,
            padded.mask,
            tuple(len(sequences[index].prompt_ids) for index in indices),
            torch.tensor(columns[0]),
            torch.tensor(columns[1]),
            torch.tensor(columns[2]),
            np.array(columns[3]),
        )


@torch.inference_mode()
def token_log_probabilities(
    lens: LensModel, sequences: Sequence[TokenSequence], *, token_budget: int = 8192
) -> list[list[float]]:
    """Log p of every completion token under one unsteered model, in nats."""
    found: list[list[float]] = [[] for _ in sequences]
    scored = [index for index, item in enumerate(sequences) if item.completion_ids]
    for batch in batches([sequences[index] for index in scored], token_budget):
        # Read out at the scored tokens alone: prompts and pads need no unembedding.
        gather = Gather(batch.rows, batch.positions)
        h = lens.capture(batch.ids, batch.mask, [FINAL], gather)[FINAL]
        logits = lens.readout(h.to(lens.device))
        targets = batch.targets.to(logits.device)[:, None]
        values = (logits.gather(1, targets)[:, 0] - logits.logsumexp(dim=-1)).tolist()
        for owner, value in zip(batch.owner.tolist(), values, strict=True):
            found[scored[owner]].append(value)
    return found
