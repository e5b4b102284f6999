"""Ragged rows into padded batches."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.lens_model import length_sorted_batches, pad

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, budget=st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(length_sorted_batches(lengths, budget))
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS)
def test_the_budget_does_not_change_the_order(lengths: list[int]) -> None:
    def order(budget: int) -> list[int]:
        return [index for batch in length_sorted_batches(lengths, budget) for index in batch]

    assert order(1) == order(10**6)


def test_pad() -> None:
    right = pad([(5, 6, 7), (8,)], pad_token_id=9)
    assert right.ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert right.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert right.offsets == (0, 0) and right.indices == (0, 1)
    left = pad([(5, 6, 7), (8,)], side="left", pad_token_id=9, indices=[4, 2])
    assert left.ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert left.offsets == (0, 2) and left.indices == (4, 2)
    assert left.ids.dtype == torch.long
