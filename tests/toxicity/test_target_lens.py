"""The logit lens of a group of tokens: its norm, its control, and its halves."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl import lens as lens_module
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens import lens_log_probabilities
from dsteer_tl.lens_model import Gather, LensModel, load_lens_model
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.toxicity import target_lens
from dsteer_tl.toxicity.continuing import continue_prompts
from dsteer_tl.toxicity.target_lens import (
    LENS_COLUMNS,
    NEUTRAL_DRAWS,
    neutral_groups,
    target_lens_table,
    target_tokens,
)
from dsteer_tl.toxicity.types import StudyTexts
from tests.models import VOCABULARY, random_model, tiny_tokenizer
from tests.steering.tiny_steering import tokens
from tests.tiny_pairs import tiny_pair

TOKENIZER = tiny_tokenizer()
WORDS = frozenset({"the", "he", "was", "and"})
SEQUENCE = tokens(9, 4)
GROUPS = [np.array([5, 9, 40]), np.array([7])]


@cache
def lens_of(architecture: str) -> LensModel:
    return load_lens_model(random_model(architecture))


@cache
def texts() -> StudyTexts:
    prompts = tuple((0, *tokens(2 + seed % 4, seed)) for seed in range(9))
    written = continue_prompts(tiny_pair().base, prompts, Decoding(max_new_tokens=5))
    written = [row[: index % 6] for index, row in enumerate(written)]  # ragged, and empty ones
    return StudyTexts(
        prompts=prompts, windows=(), window_prompt=1, continuations={"base": tuple(written)}
    )


def streams(
    lens: LensModel, sequence: tuple[int, ...], places: list[str]
) -> dict[str, torch.Tensor]:
    ids = torch.tensor([sequence])
    every = Gather(torch.zeros(len(sequence), dtype=torch.long), torch.arange(len(sequence)))
    return lens.capture(ids, torch.ones_like(ids), places, every)


def next_token_log_p(lens: LensModel, sequence: tuple[int, ...]) -> np.ndarray:
    ids = torch.tensor([sequence])
    logits = lens.forward(ids, torch.ones_like(ids))[0].detach().double()
    found: np.ndarray = torch.log_softmax(logits, -1).numpy()
    return found


@cache
def table() -> pd.DataFrame:
    pair = tiny_pair()
    return target_lens_table(pair.base, pair.policy, TOKENIZER, texts(), WORDS, draws=50, seed=1)


def test_tokens_with_and_without_a_space() -> None:
    found = target_tokens(TOKENIZER, {"the", "yes"}, VOCABULARY)
    decoded = [TOKENIZER.decode([each]) for each in found]
    assert sorted(decoded) == [" the", " yes", "The", "yes"]
    once = target_tokens(TOKENIZER, {"once"}, VOCABULARY)  # listed case-folded, spelt with capital
    assert [TOKENIZER.decode([each]) for each in once] == ["Once"]
    assert len(target_tokens(TOKENIZER, {"<s>", "</s>", "zebra", ""}, VOCABULARY)) == 0
    fewer = target_tokens(TOKENIZER, {"the", "yes"}, int(found.max()))
    assert fewer.tolist() == found.tolist()[:-1]


def test_neutral_tokens_are_the_nearest_that_are_free() -> None:
    log_p = np.array([-1.0, -1.2, -5.0, -5.4, -3.0, -5.1])

    def nearest(targets: list[int], candidates: Collection[int]) -> list[list[int]]:
        found = neutral_groups(log_p, np.array(targets), candidates, draws=2, nearest=1)
        return found.tolist()

    # The likeliest first: 0 takes 1; 2 takes 5, which is nearer than 3.
    assert nearest([2, 0], range(6)) == [[1, 5]] * 2
    assert nearest([2, 0], [1, 3, 4]) == [[1, 3]] * 2
    assert nearest([2, 0], [4]) == [[4]] * 2
    assert nearest([2, 0], [0, 2]) == [[], []]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-20, 0), min_size=2, max_size=30), st.data())
def test_neutral_groups_hold_one_near_token_a_target(values, data) -> None:
    log_p = np.array(values)
    count = data.draw(st.integers(1, len(values) // 2))
    nearest = data.draw(st.integers(1, 8))
    targets = np.array(data.draw(st.permutations(range(len(values))))[:count])
    found = neutral_groups(log_p, targets, range(len(values)), draws=3, nearest=nearest)
    assert found.shape == (3, count)
    ranked = np.sort(log_p[targets])[::-1]
    for group in found.tolist():
        assert len(set(group)) == count
        assert not set(group) & set(targets.tolist())
        free = [i for i in range(len(values)) if i not in targets]
        for height, token in zip(ranked, group, strict=True):
            closer = sum(abs(log_p[i] - height) < abs(log_p[token] - height) for i in free)
            assert closer < nearest
            free.remove(token)


def test_neutral_groups_are_drawn_independently_and_evenly() -> None:
    log_p = np.linspace(-9.0, -1.0, 400)
    targets = np.array([50, 200, 350])
    found = neutral_groups(log_p, targets, range(400), draws=1200, nearest=20, seed=3)
    again = neutral_groups(log_p, targets, range(400), draws=1200, nearest=20, seed=3)
    np.testing.assert_array_equal(found, again)
    other = neutral_groups(log_p, targets, range(400), draws=1200, nearest=20, seed=4)
    assert (found != other).mean() > 0.9
    for column, target in zip(found.T, targets[::-1], strict=True):
        tokens_drawn, counts = np.unique(column, return_counts=True)
        assert tokens_drawn.tolist() == [i for i in range(target - 10, target + 11) if i != target]
        assert counts.min() > 30 and counts.max() < 95  # 60 ± 8 each
    offsets = found - targets[::-1]
    correlations = np.corrcoef(np.vstack([offsets[1:].T, offsets[:-1].T]))
    assert np.abs(correlations[np.triu_indices(6, 1)]).max() < 0.12  # nor with the group before


def test_a_group_draws_what_it_does_not_hold_yet() -> None:
    log_p = np.zeros(8)  # all as near
    found = neutral_groups(log_p, np.array([0, 1, 2]), range(8), draws=200, nearest=60)
    assert {tuple(sorted(group)) for group in found.tolist()} == set(
        itertools.combinations(range(3, 8), 3)
    )
    # With no more candidates than targets there is one group.
    few = neutral_groups(log_p, np.array([0, 1, 2]), [0, 5, 6, 7], draws=20, nearest=60)
    assert {tuple(sorted(group)) for group in few.tolist()} == {(5, 6, 7)}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_the_last_layer_is_the_model_itself(architecture: str) -> None:
    lens = lens_of(architecture)
    rows = streams(lens, SEQUENCE, ["resid_post.1"])["resid_post.1"]
    found = lens_log_probabilities(lens, rows, GROUPS)
    log_p = next_token_log_p(lens, SEQUENCE)
    expected = [np.logaddexp.reduce(log_p[:, group], axis=1) for group in GROUPS]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_norm_is_that_of_each_layer_and_not_the_last_ones(architecture: str) -> None:
    lens = lens_of(architecture)
    captured = streams(lens, SEQUENCE, ["resid_post.0", "resid_mid.1", "resid_post.1"])
    last = captured.pop("resid_post.1").double()
    weights = {name: each.double() for name, each in lens.norm_parameters.items()}
    gain, bias = weights["weight"], weights.get("bias", torch.zeros(()))

    def centred(x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(-1, keepdim=True) if architecture == "gpt2" else x

    def size(x: torch.Tensor) -> torch.Tensor:
        epsilon = 1e-5 if architecture == "gpt2" else 1e-6
        return (centred(x).square().mean(-1, keepdim=True) + epsilon).sqrt()

    def log_p(x: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
        h = centred(x) / scale * gain + bias
        every = torch.log_softmax(h @ lens.W_U.double() + lens.b_U.double(), -1)
        return np.stack([every[:, group].logsumexp(-1).detach().numpy() for group in GROUPS])

    for place, rows in captured.items():
        stream = rows.double()
        found = lens_log_probabilities(lens, rows, GROUPS)
        np.testing.assert_allclose(found, log_p(stream, size(stream)), atol=2e-5, err_msg=place)
        # With the scale of the last layer, kept from the forward pass, it is another number.
        cached = log_p(stream, size(last))
        assert np.abs(cached - found).max() > 0.05, place


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = lens_of("llama")
    rows = streams(lens, SEQUENCE, ["resid_post.0"])["resid_post.0"]
    whole = lens_log_probabilities(lens, rows, GROUPS)
    monkeypatch.setattr(lens_module, "_BLOCK_LOGITS", 2 * VOCABULARY)
    np.testing.assert_allclose(lens_log_probabilities(lens, rows, GROUPS), whole, atol=1e-5)
    empty = np.array([], dtype=int)
    assert lens_log_probabilities(lens, rows, [empty]).tolist() == [[-np.inf] * len(rows)]
    mixed = lens_log_probabilities(lens, rows, [GROUPS[0], empty, GROUPS[1]])
    np.testing.assert_allclose(mixed[[0, 2]], whole, atol=1e-5)
    assert (mixed[1] == -np.inf).all()
    # The whole vocabulary at once has probability 1, and parts of it add up.
    parts = np.array_split(np.random.default_rng(0).permutation(VOCABULARY), 7)
    found = lens_log_probabilities(lens, rows, [np.arange(VOCABULARY), *parts])
    np.testing.assert_allclose(found[0], 0, atol=1e-5)
    np.testing.assert_allclose(np.logaddexp.reduce(found[1:]), 0, atol=1e-5)


def test_groups_too_unlikely_for_float32_keep_their_logarithm() -> None:
    model = random_model(tie_word_embeddings=False)
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[:80] = 60 * head.weight[0]  # logits 60 times those of one token
    lens = load_lens_model(model, self_check=False)
    rows = streams(lens, SEQUENCE, ["resid_post.1"])["resid_post.1"]
    log_p = next_token_log_p(lens, SEQUENCE)
    unlikely = [np.array([90, 91]), np.array([100])]
    expected = np.stack([np.logaddexp.reduce(log_p[:, group], axis=1) for group in unlikely])
    assert expected.min() < -105  # exp is 0 in float32
    found = lens_log_probabilities(lens, rows, unlikely)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_the_table() -> None:
    found = table()
    assert found.columns.tolist() == list(LENS_COLUMNS)
    assert len(found) == 2 * 2 * 2
    assert found["place"].tolist()[:4] == ["resid_mid", "resid_mid", "resid_post", "resid_post"]
    assert found["layer"].tolist() == [0] * 4 + [1] * 4
    count = len(target_tokens(TOKENIZER, WORDS, VOCABULARY))
    assert count > 3
    assert (found["tokens"] == count).all()
    assert NEUTRAL_DRAWS == 20
    assert found["draws"].tolist() == [1, 20] * 4
    assert (found["prompts"] == 5).all()  # the other 4 chose the neutral tokens
    assert found["base"].between(0, 1).all()
    assert (found["low"] <= found["log_ratio"]).all()
    assert (found["log_ratio"] <= found["high"]).all()


def halves(seed: int) -> tuple[list[int], list[int]]:
    order = np.random.default_rng(seed).permutation(9).tolist()
    return order[:4], order[4:]


def drawn_neutral(choosing: list[int], seed: int) -> list[np.ndarray]:
    """The neutral groups by plain passes over some of the prompts."""
    log_p = np.mean(
        [next_token_log_p(tiny_pair().base, s)[n:].mean(axis=0) for s, n in read(choosing)], axis=0
    )
    targets = target_tokens(TOKENIZER, WORDS, VOCABULARY)
    usable = range(2, min(VOCABULARY, len(TOKENIZER)))
    return list(neutral_groups(log_p, targets, usable, seed=seed))


def read(prompts: list[int]) -> list[tuple[tuple[int, ...], int]]:
    """Each sequence with the place of its last prompt token."""
    written = texts().continuations["base"]
    return [((*texts().prompts[i], *written[i]), len(texts().prompts[i]) - 1) for i in prompts]


def test_the_last_layer_of_the_table_is_what_the_models_would_say() -> None:
    """Neutral tokens from one half of the prompts, all groups reported on the other."""
    pair, (choosing, judging) = tiny_pair(), halves(1)
    groups = {
        "attribute": [target_tokens(TOKENIZER, WORDS, VOCABULARY)],
        "neutral": drawn_neutral(choosing, seed=1),
    }
    last = table()[(table()["place"] == "resid_post") & (table()["layer"] == 1)].set_index("group")
    log_p = {
        role: [next_token_log_p(getattr(pair, role), s)[n:] for s, n in read(judging)]
        for role in ("base", "policy")
    }
    for group, drawn in groups.items():
        p = {  # draw, prompt
            role: np.array(
                [[np.exp(each[:, ids]).sum(axis=1).mean() for each in rows] for ids in drawn]
            )
            for role, rows in log_p.items()
        }
        found = last.loc[group]
        assert found["base"] == pytest.approx(p["base"].mean(), rel=1e-4)
        assert found["policy"] == pytest.approx(p["policy"].mean(), rel=1e-4)
        ratios = np.log(p["policy"] / p["base"]).mean(axis=1)
        assert found["log_ratio"] == pytest.approx(ratios.mean(), abs=1e-4)
        if group == "neutral":  # the range of the groups, and of nothing else
            assert len(ratios) == 20
            assert found["low"] == pytest.approx(ratios.min(), abs=1e-4)
            assert found["high"] == pytest.approx(ratios.max(), abs=1e-4)
            assert ratios.max() - ratios.min() > 0.01
    assert last.loc["attribute", "base"] != last.loc["neutral", "base"]


def single_words() -> list[tuple[int, str]]:
    """Tokens that are the only ones of their word."""
    texts = [TOKENIZER.decode([each]).strip().casefold() for each in range(2, len(TOKENIZER))]
    return [(i, text) for i, text in enumerate(texts, start=2) if text and texts.count(text) == 1]


def lowered(policy: LensModel, ids: Sequence[int], by: float) -> LensModel:
    """The model with a smaller bias of some tokens."""
    b_U = policy.b_U.clone()
    b_U[list(ids)] -= by
    changed = copy.copy(policy)
    changed.readout = replace(policy.readout, b_U=b_U)
    return changed


def last_rows(policy: LensModel, words: list[str], seed: int) -> pd.DataFrame:
    found = target_lens_table(
        tiny_pair().base, policy, TOKENIZER, texts(), words, draws=50, seed=seed
    )
    return found[(found["place"] == "resid_post") & (found["layer"] == 1)].set_index("group")


def test_words_for_which_nothing_was_meant_lie_inside_the_neutral_range() -> None:
    """Any tokens as words, 40 times: 19 of 21 lie between the lowest and the highest of 20."""
    pool, generator = single_words(), np.random.default_rng(0)
    inside, by_prompts = [], []
    for seed in range(40):
        chosen = generator.choice(len(pool), size=6, replace=False)
        found = last_rows(tiny_pair().policy, [pool[place][1] for place in chosen], seed)
        assert found["tokens"].tolist() == [6, 6]
        value, neutral = found.loc["attribute", "log_ratio"], found.loc["neutral"]
        inside.append(neutral["low"] <= value <= neutral["high"])
        own = found.loc["attribute"]
        by_prompts.append(own["low"] <= neutral["log_ratio"] <= own["high"])
    assert 0.8 <= np.mean(inside) <= 1
    # The interval over prompts does not know that other tokens change otherwise.
    assert np.mean(by_prompts) < np.mean(inside) - 0.1


def test_planted_suppression_lies_outside_the_neutral_range() -> None:
    """The readout of the policy lowers six tokens, and nothing else than the usual."""
    pool = single_words()
    outside = []
    for seed in range(5):
        places = np.random.default_rng(seed).choice(len(pool), size=6, replace=False)
        ids, words = zip(*(pool[place] for place in places), strict=True)
        policy = lowered(tiny_pair().policy, ids, by=2.0)
        found = last_rows(policy, list(words), seed)
        neutral = found.loc["neutral"]
        outside.append(found.loc["attribute", "high"] < neutral["low"])
    assert all(outside)


def test_a_model_against_itself_changes_nothing() -> None:
    base = tiny_pair().base
    found = target_lens_table(base, base, TOKENIZER, texts(), WORDS, draws=20, token_budget=9)
    assert (found[["log_ratio", "low", "high"]] == 0).all(axis=None)
    np.testing.assert_array_equal(found["base"], found["policy"])


def test_batches_change_nothing() -> None:
    pair = tiny_pair()
    found = target_lens_table(
        pair.base, pair.policy, TOKENIZER, texts(), WORDS, draws=50, seed=1, token_budget=9
    )
    pd.testing.assert_frame_equal(found, table(), rtol=1e-4, atol=1e-5)


def test_few_tokens_are_left_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair()
    every = {TOKENIZER.decode([each]).strip().casefold() for each in range(VOCABULARY)}
    found = target_lens_table(pair.base, pair.policy, TOKENIZER, texts(), every, draws=20)
    tokens_of = found.groupby("group")["tokens"].unique()
    # Only a blank is no word: one group as often as groups are drawn, and no range.
    assert tokens_of["attribute"].tolist() == [len(TOKENIZER) - 3]
    assert tokens_of["neutral"].tolist() == [1]
    few = found[found["group"] == "neutral"]
    np.testing.assert_allclose(few["low"], few["high"], atol=1e-12)
    none = np.empty((20, 0), dtype=np.int64)
    monkeypatch.setattr(target_lens, "neutral_groups", lambda *_, **__: none)
    found = target_lens_table(pair.base, pair.policy, TOKENIZER, texts(), every, draws=20)
    assert found["group"].unique().tolist() == ["attribute"]


def test_words_that_are_no_tokens_leave_an_empty_table(caplog: pytest.LogCaptureFixture) -> None:
    pair = tiny_pair()
    with caplog.at_level(logging.WARNING):
        found = target_lens_table(pair.base, pair.policy, TOKENIZER, texts(), {"zebra"})
    assert found.columns.tolist() == list(LENS_COLUMNS)
    assert not len(found)
    assert "none of the attribute's 1 words is a token" in caplog.text


def test_prompts_without_continuations_are_refused() -> None:
    pair = tiny_pair()
    few = replace(texts(), prompts=texts().prompts[:3], continuations={"base": ((), (), ())})
    with pytest.raises(ShapeError, match="found 3 prompts, expected at least 4"):
        target_lens_table(pair.base, pair.policy, TOKENIZER, few, WORDS)
    with pytest.raises(ShapeError, match="found 0 continuations of the base for 9 prompts"):
        target_lens_table(
            pair.base, pair.policy, TOKENIZER, replace(texts(), continuations={}), WORDS
        )
