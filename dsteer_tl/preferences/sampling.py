"""On-policy preferences: prompts and completions from the base itself, ranked by a scorer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences.preference_set import PreferencePair, PreferenceSet
from dsteer_tl.preferences.sampled_text import (
    before_end,
    completion_text,
    cut_after_last_sentence,
    cut_at_word,
    left_pad,
    padding_token,
    survives,
)
from dsteer_tl.preferences.scorers import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Rounds of sampling, per round that would do without duplicates, before giving up.
_PATIENCE = 20


class Generate(Protocol):
    """Samples from a model: what the model adapter provides."""

    def __call__(
        self,
        input_ids: Int[Tensor, "batch position"],
        attention_mask: Int[Tensor, "batch position"],
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> Int[Tensor, "batch position_and_new"]:
        """Return the left-padded input with the sampled tokens after it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfiguration:
    """How on-policy preferences are sampled.

    Attributes:
        prompts: number of distinct prompts.
        prompt_tokens_min: fewest tokens of a prompt, special tokens apart.
        prompt_tokens_max: most tokens of a prompt.
        completions_per_prompt: k, of which the best and the worst make a pair.
        max_new_tokens: most tokens of a completion.
        temperature: softmax temperature.
        top_p: nucleus; 1 samples from the whole distribution.
        margin: least difference of score between best and worst.
        whole_sentences: cut completions after their last full sentence, where they have one.
        batch_size: sequences per call of the model; part of what decides the samples.
        seed: same seed, same pairs.
    """

    prompts: int = 384
    prompt_tokens_min: int = 4
    prompt_tokens_max: int = 12
    completions_per_prompt: int = 8
    max_new_tokens: int = 48
    temperature: float = 1.0
    top_p: float = 1.0
    margin: float = 0.2
    whole_sentences: bool = True
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        at_least = {
            "prompts": 1,
            "prompt_tokens_min": 1,
            "prompt_tokens_max": self.prompt_tokens_min,
            "completions_per_prompt": 2,
            "max_new_tokens": 1,
            "batch_size": 1,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}; expected at least {least}"
                )
        if not self.temperature > 0:
            raise ConfigurationError(f"temperature is {self.temperature}; expected above 0")
        if not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top_p is {self.top_p}; expected above 0 and at most 1")
        if not self.margin > 0:
            raise ConfigurationError(f"margin is {self.margin}; expected above 0")


def sample_preferences(
    generate: Generate,
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    configuration: SamplingConfiguration,
    *,
    name: str = "on-policy",
    progress: bool = True,
) -> PreferenceSet:
    """Sample prompts, sample completions, rank them: on-policy preferences from nothing.

    Raises:
        DataError: as the three steps.
    """
    prompts = sample_prompts(generate, tokenizer, configuration, progress=progress)
    completions = sample_completions(generate, tokenizer, prompts, configuration, progress=progress)
    return rank_preferences(prompts, completions, scorer, configuration.margin, name=name)


def sample_prompts(
    generate: Generate,
    tokenizer: PreTrainedTokenizerBase,
    configuration: SamplingConfiguration,
    *,
    progress: bool = True,
) -> list[str]:
    """Draw distinct openings from the model itself, from its beginning-of-sequence token.

    Each is cut at the end of a word, at a token length drawn uniformly between the configured
    bounds. A prompt is kept when its text, tokenised again, reads back as the same text within
    those bounds.

    Raises:
        DataError: the tokenizer has no token to begin from, or the model repeats itself too much
            to give as many distinct prompts.
    """
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if begin is None:
        raise DataError(
            "the tokenizer has neither a beginning- nor an end-of-sequence token to begin from; "
            "set tokenizer.bos_token, or give prompts of your own"
        )
    least, most = configuration.prompt_tokens_min, configuration.prompt_tokens_max
    random = np.random.default_rng([configuration.seed, 0])
    rounds = _PATIENCE * math.ceil(configuration.prompts / configuration.batch_size)
    prompts: dict[str, None] = {}
    with tqdm(
        total=configuration.prompts, desc="prompts", leave=False, disable=not progress
    ) as bar:
        for _ in range(rounds):
            ids = torch.full((configuration.batch_size, 1), int(begin), dtype=torch.long)
            sampled = generate(
                ids,
                torch.ones_like(ids),
                max_new_tokens=most + 1,  # one more shows whether the last word is whole
                temperature=configuration.temperature,
                top_p=configuration.top_p,
                seed=int(random.integers(2**31)),
            )
            lengths = random.integers(least, most, size=len(ids), endpoint=True)
            for row, length in zip(sampled[:, 1:].tolist(), lengths.tolist(), strict=True):
                text = cut_at_word(tokenizer, before_end(tokenizer, row), length)
                if survives(tokenizer, text, least, most):
                    prompts.setdefault(text)
            bar.update(min(len(prompts), configuration.prompts) - bar.n)
            if len(prompts) >= configuration.prompts:
                return list(prompts)[: configuration.prompts]
    raise DataError(
        f"the model gave {len(prompts)} distinct prompts of {least} to {most} tokens in {rounds} "
        f"batches of {configuration.batch_size}; expected {configuration.prompts}; ask for fewer "
        f"or longer ones, raise the temperature, or give prompts of your own"
    )


def sample_completions(
    generate: Generate,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    configuration: SamplingConfiguration,
    *,
    progress: bool = True,
) -> list[list[str]]:
    """Sample k completions of every prompt.

    A completion ends before the end-of-sequence token. It is empty when the model ended at once,
    or when its tokens cannot be written as a text that tokenises, after the prompt, to the same
    words (SentencePiece puts a space before a text that began inside a word); `rank_preferences`
    passes over those.

    Returns:
        For each prompt, k texts.

    Raises:
        DataError: a prompt has no tokens.
    """
    k = configuration.completions_per_prompt
    encoded = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            raise DataError(f"the prompt {prompt!r} has no tokens; expected at least one")
    random = np.random.default_rng([configuration.seed, 1])
    rows = [index for index in range(len(prompts)) for _ in range(k)]
    texts: list[list[str]] = [[] for _ in prompts]
    with tqdm(total=len(rows), desc="completions", leave=False, disable=not progress) as bar:
        for batch in _batches(rows, configuration.batch_size):
            input_ids, mask = left_pad(
                [encoded[index] for index in batch], padding_token(tokenizer)
            )
            sampled = generate(
                input_ids,
                mask,
                max_new_tokens=configuration.max_new_tokens,
                temperature=configuration.temperature,
                top_p=configuration.top_p,
                seed=int(random.integers(2**31)),
            )
            for index, row in zip(batch, sampled[:, input_ids.shape[1] :].tolist(), strict=True):
                text = completion_text(tokenizer, encoded[index], before_end(tokenizer, row))
                if configuration.whole_sentences:
                    text = cut_after_last_sentence(text)
                texts[index].append(text)
            bar.update(len(batch))
    return texts


def rank_preferences(
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    scorer: Scorer,
    margin: float,
    *,
    name: str = "on-policy",
) -> PreferenceSet:
    """Make a pair of the best and the worst completion of each prompt.

    Only the completions are scored: the prompt is the same on both sides. Empty ones are passed
    over. Prompts whose best and worst score differ by less than `margin` are counted as "below
    the margin".

    Raises:
        DataError: prompts and completions differ in number, the scorer returns another number of
            scores or one that is not finite, or no pair is left.
    """
    if len(prompts) != len(completions):
        raise DataError(
            f"{len(prompts)} prompts have {len(completions)} lists of completions; expected one "
            f"list a prompt"
        )
    candidates = [[text for text in texts if text.strip()] for texts in completions]
    flat = [text for texts in candidates for text in texts]
    scores = [float(score) for score in scorer(flat)]
    if len(scores) != len(flat):
        raise DataError(f"the scorer gave {len(scores)} scores for {len(flat)} texts")
    dropped: Counter[str] = Counter()
    pairs = []
    first = 0
    for prompt, texts in zip(prompts, candidates, strict=True):
        own = scores[first : first + len(texts)]
        first += len(texts)
        if not all(math.isfinite(score) for score in own):
            raise DataError(
                f"the scorer gave {own} for completions of {prompt!r}; expected numbers"
            )
        if len(texts) < 2:
            dropped["fewer than two completions"] += 1
            continue
        best, worst = own.index(max(own)), own.index(min(own))
        if own[best] - own[worst] < margin:
            dropped["below the margin"] += 1
        else:
            pairs.append(PreferencePair(prompt, texts[best], texts[worst], source=name))
    return PreferenceSet.from_pairs(pairs, name=name, dropped=dropped)


def _batches(rows: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
