"""Ragged token sequences into padded batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows of token ids with their attention mask.

    Attributes:
        ids: Token ids; pads hold ``pad_token_id`` of the caller's choice and are masked.
        mask: 1 on real tokens, 0 on pads.
        offsets: How far each row was moved to the right (0 when padded on the right).
        indices: For each row, its place in the sequence that was batched.
    """

    ids: Int[Tensor, "batch position"]
    mask: Int[Tensor, "batch position"]
    offsets: tuple[int, ...]
    indices: tuple[int, ...]


def pad(
    rows: Sequence[Sequence[int]],
    *,
    side: str = "right",
    pad_token_id: int = 0,
    device: torch.device | str = "cpu",
    indices: Sequence[int] | None = None,
) -> PaddedBatch:
    """Pad rows to one length. Which id pads does not matter: the mask hides it."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    offsets = []
    for index, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        ids[index, start : start + len(row)] = torch.as_tensor(row, dtype=torch.long)
        mask[index, start : start + len(row)] = 1
        offsets.append(start)
    return PaddedBatch(
        ids.to(device),
        mask.to(device),
        tuple(offsets),
        tuple(indices if indices is not None else range(len(rows))),
    )


def length_sorted_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length whose padded size stays within ``token_budget``.

    Sorting by length keeps the share of pads small; a single row longer than the budget makes a
    batch of its own.
    """
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        grown = max(width, lengths[index])
        if batch and grown * (len(batch) + 1) > token_budget:
            yield batch
            batch, grown = [], lengths[index]
        batch.append(index)
        width = grown
    if batch:
        yield batch
