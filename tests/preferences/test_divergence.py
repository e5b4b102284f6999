from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.errors import DataError
from dsteer_tl.preferences import (
    EncodedPair,
    PreferencePair,
    divergence_position,
    encode_pair,
    load_preferences,
)

tokens = st.lists(st.integers(0, 3), max_size=8).map(tuple)
prompts = st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple)


@settings(deadline=None, max_examples=200)
@given(prompt=prompts, chosen=tokens, rejected=tokens)
def test_position_is_the_end_of_the_longest_common_context(
    prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...]
) -> None:
    found = divergence_position(EncodedPair(prompt, chosen, rejected))
    n = min(len(chosen), len(rejected))
    if found is None:
        assert chosen[:n] == rejected[:n]
        return
    first, second = prompt + chosen, prompt + rejected
    end = found.position + 1
    assert end >= len(prompt)
    assert first[:end] == second[:end]
    assert (first[end], second[end]) == (found.chosen_token, found.rejected_token)
    assert found.chosen_token != found.rejected_token


@settings(deadline=None, max_examples=30)
@given(prompt=prompts, chosen=tokens, rejected=tokens)
def test_swapping_the_completions_swaps_the_tokens(
    prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...]
) -> None:
    there = divergence_position(EncodedPair(prompt, chosen, rejected))
    back = divergence_position(EncodedPair(prompt, rejected, chosen))
    assert (there is None) == (back is None)
    if there is not None and back is not None:
        assert there.position == back.position
        assert (there.chosen_token, there.rejected_token) == (
            back.rejected_token,
            back.chosen_token,
        )


def test_a_prompt_without_tokens_has_no_context() -> None:
    with pytest.raises(DataError, match="no common context"):
        divergence_position(EncodedPair((), (1,), (2,)))
    found = divergence_position(EncodedPair((), (0, 1), (0, 2)))
    assert found is not None
    assert found.position == 0


def test_special_tokens_are_the_prompts_alone(stories_tokenizer: Any) -> None:
    encoded = encode_pair(stories_tokenizer, PreferencePair("Once upon", "a time", "a table"))
    assert encoded.prompt_ids[0] == stories_tokenizer.bos_token_id
    assert stories_tokenizer.bos_token_id not in encoded.chosen_ids + encoded.rejected_ids
    assert stories_tokenizer.decode(encoded.chosen_ids) == "a time"


def test_real_pairs_diverge_at_their_texts_difference(
    preference_folder: Path, gpt2_tokenizer: Any
) -> None:
    preferences = load_preferences(preference_folder / "hh_helpful_base_test.jsonl.gz")
    for pair in preferences.limit(100, 0):
        encoded = encode_pair(gpt2_tokenizer, pair)
        found = divergence_position(encoded)
        assert found is not None
        ids = encoded.prompt_ids + encoded.chosen_ids
        context = gpt2_tokenizer.decode(ids[: found.position + 1])
        assert (pair.prompt + pair.chosen).startswith(context.rstrip("\ufffd"))
        assert (pair.prompt + pair.rejected).startswith(context.rstrip("\ufffd"))
