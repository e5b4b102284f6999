"""The logit lens of a group of tokens: its norm, its control, and its halves."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import Gather, LensModel, load_lens_model
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.toxicity import target_lens
from dsteer_tl.toxicity.continuing import continue_prompts
from dsteer_tl.toxicity.target_lens import (
    LENS_COLUMNS,
    lens_log_probabilities,
    neutral_tokens,
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
    # 0 takes 1; 2 takes 5, which is nearer than 3.
    assert neutral_tokens(log_p, np.array([2, 0]), range(6)).tolist() == [5, 1]
    assert neutral_tokens(log_p, np.array([2, 0]), [1, 3, 4]).tolist() == [3, 1]
    assert neutral_tokens(log_p, np.array([2, 0]), [4]).tolist() == [4]
    assert neutral_tokens(log_p, np.array([2, 0]), [0, 2]).tolist() == []


@given(st.lists(st.floats(-20, 0), min_size=2, max_size=30), st.data())
def test_neutral_tokens_are_one_to_one(values, data) -> None:
    log_p = np.array(values)
    count = data.draw(st.integers(1, len(values) // 2))
    targets = np.array(data.draw(st.permutations(range(len(values))))[:count])
    found = neutral_tokens(log_p, targets, range(len(values)))
    assert len(set(found.tolist())) == len(found) == count
    assert not set(found.tolist()) & set(targets.tolist())
    # The likeliest target chooses first.
    first = max(targets.tolist(), key=lambda each: (log_p[each], -each))
    others = [abs(log_p[first] - log_p[i]) for i in range(len(values)) if i not in targets]
    chosen = found[targets.tolist().index(first)]
    assert abs(log_p[first] - log_p[chosen]) == pytest.approx(min(others))


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
    monkeypatch.setattr(target_lens, "_BLOCK_LOGITS", 2 * VOCABULARY)
    np.testing.assert_allclose(lens_log_probabilities(lens, rows, GROUPS), whole, atol=1e-5)
    assert lens_log_probabilities(lens, rows, [np.array([], dtype=int)])[0].max() == -np.inf


def test_the_table() -> None:
    found = table()
    assert found.columns.tolist() == list(LENS_COLUMNS)
    assert len(found) == 2 * 2 * 2
    assert found["place"].tolist()[:4] == ["resid_mid", "resid_mid", "resid_post", "resid_post"]
    assert found["layer"].tolist() == [0] * 4 + [1] * 4
    count = len(target_tokens(TOKENIZER, WORDS, VOCABULARY))
    assert count > 3
    assert (found["tokens"] == count).all()
    assert (found["prompts"] == 5).all()  # the other 4 chose the neutral tokens
    assert found["base"].between(0, 1).all()
    assert (found["low"] <= found["log_ratio"]).all()
    assert (found["log_ratio"] <= found["high"]).all()


def halves(seed: int) -> tuple[list[int], list[int]]:
    order = np.random.default_rng(seed).permutation(9).tolist()
    return order[:4], order[4:]


def chosen_neutral(choosing: list[int]) -> np.ndarray:
    """The neutral tokens by plain passes over some of the prompts."""
    log_p = np.mean(
        [next_token_log_p(tiny_pair().base, s)[n:].mean(axis=0) for s, n in read(choosing)], axis=0
    )
    targets = target_tokens(TOKENIZER, WORDS, VOCABULARY)
    return neutral_tokens(log_p, targets, range(2, min(VOCABULARY, len(TOKENIZER))))


def read(prompts: list[int]) -> list[tuple[tuple[int, ...], int]]:
    """Each sequence with the place of its last prompt token."""
    written = texts().continuations["base"]
    return [((*texts().prompts[i], *written[i]), len(texts().prompts[i]) - 1) for i in prompts]


def test_the_last_layer_of_the_table_is_what_the_models_would_say() -> None:
    """Neutral tokens from one half of the prompts, both groups reported on the other."""
    pair, (choosing, judging) = tiny_pair(), halves(1)
    groups = {
        "attribute": target_tokens(TOKENIZER, WORDS, VOCABULARY),
        "neutral": chosen_neutral(choosing),
    }
    last = table()[(table()["place"] == "resid_post") & (table()["layer"] == 1)].set_index("group")
    for group, ids in groups.items():
        p = {
            role: np.array(
                [
                    np.exp(next_token_log_p(getattr(pair, role), s)[n:, ids]).sum(axis=1).mean()
                    for s, n in read(judging)
                ]
            )
            for role in ("base", "policy")
        }
        found = last.loc[group]
        assert found["base"] == pytest.approx(p["base"].mean(), rel=1e-4)
        assert found["policy"] == pytest.approx(p["policy"].mean(), rel=1e-4)
        assert found["log_ratio"] == pytest.approx(np.log(p["policy"] / p["base"]).mean(), abs=1e-4)
    assert last.loc["attribute", "base"] != last.loc["neutral", "base"]


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
