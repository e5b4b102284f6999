"""Preference pairs from running text: a greedy continuation against one that has the attribute.

The recipe of Lee et al. 2024 (sec. 4.2), who make 24,576 pairs: prompts are sentences of
WikiText-2, chosen is the model's greedy continuation, rejected one that PPLM pulls to the probe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float
from scipy.special import expit
from tqdm.auto import tqdm

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.preferences.preference_set import PreferencePair, PreferenceSet
from dsteer_tl.preferences.sampled_text import (
    SENTENCE_END,
    before_end,
    completion_text,
    cut_at_word,
    decode,
    encode,
    survives,
)
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.toxicity.continuing import continue_prompts
from dsteer_tl.toxicity.guided_generation import GuidanceConfiguration, guided_continuations
from dsteer_tl.toxicity.text_features import text_features
from dsteer_tl.toxicity.types import AttributeScorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dsteer_tl.toxicity.linear_probe import LinearProbe


#: From prompts and their continuations to attribute scores.
Judge = Callable[[Sequence[tuple[str, str]]], Float[np.ndarray, " text"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuationConfiguration:
    """How pairs are made from running text.

    Attributes:
        text: Where prompts come from: ``wikitext-train`` (the training split of the hub's
            WikiText-2: windows and perplexities use the test split), or a text file.
        prompts: Number of distinct prompts; pairs below the margin make the set smaller.
        prompt_tokens_min: Fewest tokens of a prompt, special tokens apart.
        prompt_tokens_max: Most tokens of a prompt.
        max_new_tokens: Most tokens of a continuation.
        rejected: ``guided``: one continuation that the probe pulls towards the attribute.
            ``selected``: of several plain samples the one with the highest attribute score.
        samples: Samples a prompt for ``selected``.
        temperature: Softmax temperature of rejected continuations; the chosen one is greedy.
        top_p: Their nucleus; 1 samples from the whole distribution.
        guidance: How far ``guided`` goes.
        margin: By how much the attribute score of rejected exceeds that of chosen, at least.
        batch_size: Sequences a call of the model.
        seed: Same seed, same pairs.
    """

    text: str = "wikitext-train"
    prompts: int = 24_576
    prompt_tokens_min: int = 8
    prompt_tokens_max: int = 32
    max_new_tokens: int = 20
    rejected: Literal["guided", "selected"] = "guided"
    samples: int = 16
    temperature: float = 1.0
    top_p: float = 0.9
    guidance: GuidanceConfiguration = field(default_factory=GuidanceConfiguration)
    margin: float = 0.1
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        least = self.prompt_tokens_min
        rules = (
            (self.rejected in ("guided", "selected"), "rejected", "'guided' or 'selected'"),
            (self.prompts >= 1, "prompts", "at least 1"),
            (least >= 1, "prompt_tokens_min", "at least 1"),
            (self.prompt_tokens_max >= least, "prompt_tokens_max", f"at least {least}"),
            (self.max_new_tokens >= 1, "max_new_tokens", "at least 1"),
            (self.samples >= 1, "samples", "at least 1"),
            (self.temperature > 0, "temperature", "above 0"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1"),
            (self.margin > 0, "margin", "above 0"),
            (self.batch_size >= 1, "batch_size", "at least 1"),
        )
        for holds, name, expected in rules:
            if not holds:
                found = getattr(self, name)
                raise ConfigurationError(f"continuations: {name} is {found!r}; expected {expected}")

    @property
    def decoding(self) -> Decoding:
        """How rejected continuations are sampled."""
        return Decoding(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        )


def continuation_pairs(
    lens: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    configuration: ContinuationConfiguration,
    *,
    scorer: AttributeScorer | None = None,
    probe: LinearProbe | None = None,
    name: str = "continuations",
    progress: bool = True,
) -> PreferenceSet:
    """Make the pairs: prompts from text, chosen greedy, rejected guided or selected.

    A scorer, where one is given, judges the continuation alone. Without one the probe judges: σ of
    its logit on the mean residual of prompt and continuation. Guidance climbs that very number, so
    the margin then says that guidance worked, not that a reader would agree. The paper states no
    margin. What is dropped is counted by reason.

    Args:
        lens: The base, which writes both continuations.
        tokenizer: Its tokenizer.
        lines: Running text.
        configuration: The recipe.
        scorer: Judges, and selects.
        probe: Guides; judges and selects where there is no scorer.
        name: What reports call the set.
        progress: Show bars.

    Raises:
        ConfigurationError: ``guided`` has no probe, or nothing judges, or the scorer cannot run.
        DataError: The text gives too few prompts, or no pair is left.
        ShapeError: Prompt and continuation do not fit the context.
    """
    judge = _judge(lens, tokenizer, scorer, probe, progress)
    prompts = text_prompts(tokenizer, lines, configuration)
    rows = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    others = _candidates(lens, tokenizer, rows, configuration, probe, progress)
    greedy = replace(configuration.decoding, temperature=0.0)
    chosen = _plain(lens, rows, greedy, configuration.batch_size, progress)

    def text(row: list[int], ids: tuple[int, ...]) -> str:
        return completion_text(tokenizer, row, before_end(tokenizer, list(ids)))

    each = len(others) // len(rows)
    texts = [
        (text(row, chosen[i]), [text(row, ids) for ids in others[i * each : (i + 1) * each]])
        for i, row in enumerate(rows)
    ]
    return _pairs(prompts, texts, judge, configuration.margin, name)


def text_prompts(
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    configuration: ContinuationConfiguration,
) -> list[str]:
    """Distinct beginnings of sentences, cut at the end of a word: the prompts of pairs.

    Sentences come in an order drawn from the seed, each with a token length drawn uniformly between
    the bounds. A prompt is kept when its text, tokenised again, reads back as the same text within
    those bounds. Blank lines and headings (lines that begin with ``=``) have no sentences.

    Raises:
        DataError: There are fewer prompts in the text than are asked for.
    """
    sentences = list(dict.fromkeys(sentence for line in lines for sentence in _sentences(line)))
    least, most = configuration.prompt_tokens_min, configuration.prompt_tokens_max
    random = np.random.default_rng([configuration.seed, 2])
    lengths = random.integers(least, most, size=len(sentences), endpoint=True)
    prompts: dict[str, None] = {}
    for index in random.permutation(len(sentences)):
        ids = encode(tokenizer, sentences[index])
        prompt = cut_at_word(tokenizer, ids, int(lengths[index]))
        if survives(tokenizer, prompt, least, most):
            prompts.setdefault(prompt)
        if len(prompts) == configuration.prompts:
            return list(prompts)
    raise DataError(
        f"the text has {len(sentences)} different sentences and gives {len(prompts)} distinct "
        f"prompts of {least} to {most} tokens; expected {configuration.prompts}: ask for fewer, "
        "or give more text"
    )


def _judge(
    lens: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    scorer: AttributeScorer | None,
    probe: LinearProbe | None,
    progress: bool,
) -> Judge:
    if scorer is not None:
        if obstacle := scorer.obstacle():
            raise ConfigurationError(f"the scorer {scorer.name!r} cannot judge: {obstacle}")
        return lambda written: scorer.score([text for _, text in written])
    if probe is None:
        raise ConfigurationError(
            "continuations need a scorer or a probe to judge by, found neither: give one"
        )

    def by_probe(written: Sequence[tuple[str, str]]) -> Float[np.ndarray, " text"]:
        # Joined as tokens: SentencePiece takes the space off a text that begins with a whole word.
        tokens = [encode(tokenizer, prompt) + encode(tokenizer, text) for prompt, text in written]
        joined = [decode(tokenizer, ids) for ids in tokens]
        features = text_features(lens, tokenizer, joined, probe.site, progress=progress)
        return np.asarray(expit(features @ probe.weight + probe.bias))

    return by_probe


def _sentences(line: str) -> list[str]:
    line = line.strip()
    if line.startswith("="):  # a heading
        return []
    starts = [0, *(match.end() for match in SENTENCE_END.finditer(line))]
    parts = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
    return [part for part in parts if part]


def _candidates(
    lens: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    configuration: ContinuationConfiguration,
    probe: LinearProbe | None,
    progress: bool,
) -> list[tuple[int, ...]]:
    """Continuations of which one may be rejected, equally many a prompt."""
    size = configuration.batch_size
    if configuration.rejected == "selected":
        repeated = [row for row in rows for _ in range(configuration.samples)]
        return _plain(lens, repeated, configuration.decoding, size, progress)
    if probe is None:
        raise ConfigurationError("guided continuations need a probe: give one, or select instead")
    return guided_continuations(
        lens,
        rows,
        probe,
        configuration.guidance,
        decoding=configuration.decoding,
        unread=tokenizer.all_special_ids,
        batch_size=size,
        progress=progress,
    )


def _plain(
    lens: LensModel,
    rows: Sequence[list[int]],
    decoding: Decoding,
    batch_size: int,
    progress: bool,
) -> list[tuple[int, ...]]:
    """What the model writes by itself; every row has random numbers of its own."""
    found: list[tuple[int, ...]] = []
    with tqdm(total=len(rows), desc="continuations", leave=False, disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            seeds = range(start, start + len(batch))
            found += continue_prompts(lens, batch, decoding, seeds=seeds, batch_rows=batch_size)
            bar.update(len(batch))
    return found


def _pairs(
    prompts: Sequence[str],
    texts: Sequence[tuple[str, list[str]]],
    judge: Judge,
    margin: float,
    name: str,
) -> PreferenceSet:
    """Of each prompt its chosen text against the candidate with the highest score."""
    each = zip(prompts, texts, strict=True)
    all_texts = [(prompt, text) for prompt, (one, others) in each for text in (one, *others)]
    written = [(prompt, text) for prompt, text in all_texts if text.strip()]
    scores = dict(zip(written, judge(written).tolist(), strict=True)) if written else {}
    dropped: Counter[str] = Counter()
    pairs = []
    for prompt, (chosen, candidates) in zip(prompts, texts, strict=True):
        own = [text for text in candidates if text.strip()]
        rejected = max(own, key=lambda text: scores[prompt, text], default="")
        # What is empty or the same on both sides is dropped and counted by `from_pairs`.
        usable = chosen.strip() and rejected and chosen.strip() != rejected.strip()
        if usable and scores[prompt, rejected] - scores[prompt, chosen] < margin:
            dropped["below the margin"] += 1
        else:
            pairs.append(PreferencePair(prompt, chosen, rejected, source=name))
    return PreferenceSet.from_pairs(pairs, name=name, dropped=dropped)
