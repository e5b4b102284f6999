from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences import (
    PreferencePair,
    SamplingConfiguration,
    get_scorer,
    rank_preferences,
    sample_completions,
    sample_preferences,
    sample_prompts,
)
from dsteer_tl.preferences.sampled_text import cut_after_last_sentence, cut_at_word, left_pad

SMALL = SamplingConfiguration(
    prompts=8, completions_per_prompt=4, max_new_tokens=24, batch_size=16, seed=3
)


class Fake:
    """Gives prepared continuations, row after row, and keeps what it was asked."""

    def __init__(self, tokenizer: Any, continuations: list[list[int]]) -> None:
        self.tokenizer, self.continuations = tokenizer, continuations
        self.calls: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] = []

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **settings: Any
    ) -> torch.Tensor:
        self.calls.append((input_ids, attention_mask, settings))
        new = [self.continuations.pop(0) for _ in input_ids]
        width = max(map(len, new))
        end = self.tokenizer.eos_token_id
        padded = torch.tensor([row + [end] * (width - len(row)) for row in new])
        return torch.cat([input_ids, padded], dim=1)


def test_the_real_model_gives_the_same_pairs_for_the_same_seed(
    stories_generate: Callable[..., Any], stories_tokenizer: Any
) -> None:
    scorer = get_scorer("vader")
    first = sample_preferences(stories_generate, stories_tokenizer, scorer, SMALL)
    assert first == sample_preferences(stories_generate, stories_tokenizer, scorer, SMALL)
    other = sample_preferences(stories_generate, stories_tokenizer, scorer, replace(SMALL, seed=4))
    assert first.pairs != other.pairs
    assert len(first) + sum(first.dropped.values()) == SMALL.prompts
    for pair in first:
        best, worst = scorer([pair.chosen, pair.rejected])
        assert best - worst >= SMALL.margin
        assert "</s>" not in pair.chosen + pair.rejected


def test_prompts_of_the_real_model_are_distinct_whole_words_in_bounds(
    stories_generate: Callable[..., Any], stories_tokenizer: Any
) -> None:
    prompts = sample_prompts(stories_generate, stories_tokenizer, replace(SMALL, prompts=20))
    assert len(set(prompts)) == len(prompts) == 20
    for prompt in prompts:
        ids = stories_tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert 4 <= len(ids) <= 12
        assert stories_tokenizer.decode(ids) == prompt == prompt.rstrip()


def test_completions_of_the_real_model_join_as_tokens(
    stories_generate: Callable[..., Any], stories_tokenizer: Any
) -> None:
    prompts = ["Once upon a time", "One day, Tim"]
    texts = sample_completions(stories_generate, stories_tokenizer, prompts, SMALL)
    assert [len(row) for row in texts] == [4, 4]
    assert len({text for row in texts for text in row}) > 4
    for prompt, row in zip(prompts, texts, strict=True):
        for text in row:
            ids = stories_tokenizer(prompt)["input_ids"]
            ids = ids + stories_tokenizer(text, add_special_tokens=False)["input_ids"]
            joined = stories_tokenizer.decode(ids, skip_special_tokens=True)
            assert "  " not in joined
            assert joined.startswith(prompt)


def test_prompts_are_cut_at_words_and_repeats_passed_over(gpt2_tokenizer: Any) -> None:
    texts = ["The cat sat on", "The cat sat on", "The unforgettableness of", "A dog ran to"]
    fake = Fake(gpt2_tokenizer, [gpt2_tokenizer(t)["input_ids"][:5] for t in texts])
    settings = SamplingConfiguration(
        prompts=2, prompt_tokens_min=4, prompt_tokens_max=4, batch_size=4
    )
    # "The unforgett…" is cut inside its second word, so one token is left of it: too short
    assert sample_prompts(fake, gpt2_tokenizer, settings) == ["The cat sat on", "A dog ran to"]
    ids, mask, asked = fake.calls[0]
    assert ids.tolist() == [[gpt2_tokenizer.bos_token_id]] * 4
    assert mask.tolist() == [[1]] * 4
    assert asked["max_new_tokens"] == 5


def test_a_model_that_repeats_itself_is_reported(gpt2_tokenizer: Any) -> None:
    ids = gpt2_tokenizer("The cat sat on it")["input_ids"]
    fake = Fake(gpt2_tokenizer, [ids] * 1000)
    settings = SamplingConfiguration(
        prompts=2, prompt_tokens_min=4, prompt_tokens_max=4, batch_size=4
    )
    with pytest.raises(DataError, match=r"1 distinct prompts of 4 to 4 tokens.*expected 2"):
        sample_prompts(fake, gpt2_tokenizer, settings)


def test_completions_end_before_the_end_and_keep_their_space(gpt2_tokenizer: Any) -> None:
    def ids(text: str) -> list[int]:
        return list(gpt2_tokenizer(text)["input_ids"])

    end = gpt2_tokenizer.eos_token_id
    fake = Fake(
        gpt2_tokenizer,
        [
            [*ids(" sat. It slept. And"), end, *ids(" gone")],
            [end],
            ids(" ran away"),
            ids(' said "No!" and') + ids(" 🙂")[:-1],
        ],
    )
    settings = SamplingConfiguration(completions_per_prompt=2, batch_size=3)
    texts = sample_completions(fake, gpt2_tokenizer, ["The black cat", "Dog"], settings)
    assert texts == [[" sat. It slept.", ""], [" ran away", ' said "No!"']]
    first, mask, _ = fake.calls[0]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert first[2, -1] == ids("Dog")[0]
    assert fake.calls[0][2]["seed"] != fake.calls[1][2]["seed"]


def test_whole_sentences_may_be_left_off(gpt2_tokenizer: Any) -> None:
    ids = gpt2_tokenizer(" sat. And then")["input_ids"]
    settings = SamplingConfiguration(completions_per_prompt=2, whole_sentences=False)
    texts = sample_completions(Fake(gpt2_tokenizer, [ids, ids]), gpt2_tokenizer, ["Cat"], settings)
    assert texts == [[" sat. And then"] * 2]


def test_a_completion_that_cannot_be_written_is_empty(stories_tokenizer: Any) -> None:
    comma = stories_tokenizer.convert_tokens_to_ids(",")
    word = stories_tokenizer("there", add_special_tokens=False)["input_ids"]
    fake = Fake(stories_tokenizer, [[comma, *word], word])
    settings = SamplingConfiguration(completions_per_prompt=2)
    texts = sample_completions(fake, stories_tokenizer, ["Once"], settings)
    assert texts == [["", "there"]]


def test_best_stands_against_worst_by_the_margin() -> None:
    completions = [["aa", "a a a", "", "a"], ["a a", "b b"], ["a", " "]]
    preferences = rank_preferences(["p", "q", "r"], completions, get_scorer("length"), 2.0)
    assert list(preferences) == [PreferencePair("p", "a a a", "aa", source="on-policy")]
    assert preferences.dropped == {"below the margin": 1, "fewer than two completions": 1}
    with pytest.raises(DataError, match="2 below the margin"):
        rank_preferences(["p", "q"], completions[:2], get_scorer("length"), 2.1)


@pytest.mark.parametrize(
    ("scores", "message"), [([1.0], "1 scores for 2 texts"), ([1.0, float("nan")], "nan")]
)
def test_scorers_that_misbehave_are_reported(scores: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rank_preferences(["p"], [["a", "b"]], lambda _: scores, 0.1)


def test_prompts_and_completions_must_match() -> None:
    with pytest.raises(DataError, match="2 prompts have 1 lists"):
        rank_preferences(["p", "q"], [["a", "b"]], get_scorer("length"), 0.1)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("One. Two", "One."),
        ('He said "No!" and', 'He said "No!"'),
        ("It costs 3.5 and", "It costs 3.5 and"),
        ("Why? Oh… so", "Why? Oh…"),
        ("none", "none"),
        ("", ""),
    ],
)
def test_cut_after_last_sentence(text: str, cut: str) -> None:
    assert cut_after_last_sentence(text) == cut


def test_cut_at_word_keeps_words_that_ended(gpt2_tokenizer: Any) -> None:
    ids = gpt2_tokenizer("The cat unforgettableness")["input_ids"]
    assert cut_at_word(gpt2_tokenizer, ids, 2) == "The cat"
    assert cut_at_word(gpt2_tokenizer, ids, 3) == "The cat"
    assert cut_at_word(gpt2_tokenizer, ids, len(ids)) == "The cat unforgettableness"


def test_left_pad_aligns_ends() -> None:
    ids, mask = left_pad([[1], [2, 3]], 9)
    assert ids.tolist() == [[9, 1], [2, 3]]
    assert mask.tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompts", 0),
        ("prompt_tokens_max", 3),
        ("completions_per_prompt", 1),
        ("batch_size", 0),
        ("temperature", 0.0),
        ("top_p", 1.5),
        ("margin", 0.0),
    ],
)
def test_configurations_that_cannot_work_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"{name} is {value}; expected")):
        SamplingConfiguration(**{name: value})
