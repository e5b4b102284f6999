"""Continuations do not depend on batches, and F1 is what the paper counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsteer_tl.directions import SteeringVector
from dsteer_tl.errors import HookError, ShapeError
from dsteer_tl.lens_model import Edit, LensModel, load_lens_model
from dsteer_tl.sites import FINAL
from dsteer_tl.steering.interventions import Intervention
from dsteer_tl.steering.packed_generation import generate_rows
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.toxicity.continuing import (
    continue_prompts,
    length_batches,
    unigram_f1,
    until_end,
)
from tests.models import random_model
from tests.steering.tiny_steering import tokens, vector

GREEDY = Decoding(max_new_tokens=6)
SAMPLED = Decoding(max_new_tokens=6, temperature=1.2, top_p=0.95, seed=5)
PROMPTS = [tokens(length, seed) for seed, length in enumerate((7, 1, 4, 12, 4))]
TOKENS = st.lists(st.integers(0, 5), max_size=8)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lens(request: pytest.FixtureRequest) -> LensModel:
    return load_lens_model(random_model(request.param))


@pytest.fixture(scope="module")
def llama() -> LensModel:
    return load_lens_model(random_model("llama"))


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED])
def test_batches_change_nothing(lens: LensModel, decoding: Decoding) -> None:
    whole = continue_prompts(lens, PROMPTS, decoding)
    assert len(set(whole)) >= 4
    for rows in (1, 2, 3):
        assert continue_prompts(lens, PROMPTS, decoding, batch_rows=rows) == whole
    alone = [continue_prompts(lens, [p], decoding, seeds=[i])[0] for i, p in enumerate(PROMPTS)]
    assert alone == whole


def test_greedy_is_the_likeliest_token_of_a_plain_forward_pass(lens: LensModel) -> None:
    for prompt, found in zip(PROMPTS, continue_prompts(lens, PROMPTS, GREEDY), strict=True):
        ids = list(prompt)
        for _ in range(GREEDY.max_new_tokens):
            batch = torch.tensor([ids])
            ids.append(int(lens.forward(batch, torch.ones_like(batch))[0, -1].argmax()))
            if ids[-1] in lens.end_token_ids:
                ids.pop()
                break
        assert tuple(ids[len(prompt) :]) == found


def test_a_seed_is_a_prompts_own(llama: LensModel) -> None:
    whole = continue_prompts(llama, PROMPTS, SAMPLED, seeds=[11, 12, 13, 14, 15])
    back = continue_prompts(llama, PROMPTS[::-1], SAMPLED, seeds=[15, 14, 13, 12, 11])
    assert back[::-1] == whole
    assert continue_prompts(llama, PROMPTS, SAMPLED) != whole
    same = continue_prompts(llama, [PROMPTS[0]] * 3, SAMPLED, seeds=[4, 4, 9])
    assert same[0] == same[1] != same[2]


def test_packed_rows_draw_the_same_numbers(lens: LensModel) -> None:
    steering = vector(f"resid_post.{lens.n_layers - 1}", size=3.0)
    item = Intervention(name="v", vectors=(steering,), positions="all")
    packed = generate_rows(lens, PROMPTS, [(item, 0.0), (item, -1.5)], SAMPLED)
    plain = continue_prompts(lens, PROMPTS, SAMPLED)
    steered = continue_prompts(lens, PROMPTS, SAMPLED, edits=[steering.edit(-1.5)])
    assert [row[0].tokens for row in packed] == plain
    assert [row[1].tokens for row in packed] == steered
    assert steered != plain


def test_the_end_of_the_sequence_is_left_out(llama: LensModel) -> None:
    (end,) = llama.end_token_ids
    pull = SteeringVector(100 * llama.W_U[:, end].double().numpy(), FINAL, "end", "x", 1)
    assert continue_prompts(llama, PROMPTS, GREEDY, edits=[pull.edit()]) == [()] * len(PROMPTS)
    assert until_end([5, 1, 1], [1]) == (5,)
    assert until_end([5, 6], [1, 2]) == (5, 6)
    assert until_end([2, 5], [1, 2]) == ()
    assert until_end([5, 6], ()) == (5, 6)


def test_what_cannot_be_continued_is_refused(llama: LensModel) -> None:
    assert continue_prompts(llama, [], GREEDY) == []
    with pytest.raises(ShapeError, match="prompt 1 has no tokens"):
        continue_prompts(llama, [(3,), ()], GREEDY)
    with pytest.raises(ShapeError, match="found 2 prompts and 1 seeds"):
        continue_prompts(llama, [(3,), (4,)], GREEDY, seeds=[0])
    with pytest.raises(ShapeError, match="batch_rows is 0"):
        continue_prompts(llama, [(3,)], GREEDY, batch_rows=0)
    with pytest.raises(ShapeError, match="exceed the context"):
        continue_prompts(llama, [tokens(60)], GREEDY)
    with pytest.raises(HookError, match=r"resid_post\.9"):
        continue_prompts(llama, [(3,)], GREEDY, edits=[Edit("resid_post.9", lambda x: x)])


def test_batches_hold_prompts_of_similar_length() -> None:
    assert length_batches(PROMPTS, 2) == [[1, 2], [4, 0], [3]]


def test_f1_of_a_few_texts() -> None:
    # Two 2s in common: precision 2/4, recall 2/3, harmonic mean 4/7.
    assert unigram_f1([1, 2, 2, 3], [2, 2, 4]) == pytest.approx(4 / 7)
    assert unigram_f1([2, 2, 2, 2], [2, 3]) == pytest.approx(2 / 6)
    assert unigram_f1([5, 6], [7]) == 0.0
    assert unigram_f1([], [1, 2]) == unigram_f1([1], []) == unigram_f1([], []) == 0.0


@given(TOKENS, TOKENS, st.randoms())
def test_f1_is_the_harmonic_mean_of_precision_and_recall(one, two, random) -> None:
    found = unigram_f1(one, two)
    common = sum(min(one.count(token), two.count(token)) for token in set(one))
    if common:
        precision, recall = common / len(one), common / len(two)
        assert found == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert found == 0
    shuffled = random.sample(one, len(one))
    assert unigram_f1(two, shuffled) == found
    assert (found == 1) == (bool(one) and sorted(one) == sorted(two))
    assert np.isfinite(found)
