"""Prompt suites by name: what steered models are asked, and what a good answer may look like."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences.hub import read_hub
from dsteer_tl.preferences.prompts import load_prompts
from dsteer_tl.preferences.records import (
    Record,
    check_file,
    first_text,
    open_text,
    read_records,
    split_answers,
    truth,
)
from dsteer_tl.preferences.source import load_preferences

_PROMPT_FIELD = "{prompt}"


@dataclass(frozen=True, slots=True)
class SuitePrompt:
    """One prompt of a suite.

    Attributes:
        prompt: What the model is given.
        references: Texts that a good completion may be compared with; none for many suites.
    """

    prompt: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSuite:
    """Prompts that are asked together and reported under one name.

    Attributes:
        name: As in the column ``suite`` of the table ``sweep``.
        prompts: The prompts, each once, in the order of their source.
        source: The hub's name and split, or the path.
        harmful: Whether the suite was made to draw out harm or toxicity. False for HH, which
            mixes such prompts with harmless ones, and for a user's own file.
    """

    name: str
    prompts: tuple[SuitePrompt, ...]
    source: str
    harmful: bool

    def __len__(self) -> int:
        return len(self.prompts)


def load_suite(
    name: str,
    path: str | Path | None = None,
    *,
    limit: int = 0,
    seed: int = 0,
    template: str = _PROMPT_FIELD,
) -> PromptSuite:
    r"""The prompts of a suite, from the hub by its name or from a file.

    Each prompt is kept once, with the references of all its rows, and empty prompts are left out.
    References are the chosen replies (HH), the top-ranked one (OASST1), the best, then the other
    correct answers (TruthfulQA). AdvBench's target is what an attack wants, and a continuation of
    RealToxicityPrompts is what the web said: neither is a reference.

    Args:
        name: ``"hh"`` (Bai et al. 2022), ``"oasst1"`` (Köpf et al. 2023), ``"truthfulqa"`` (Lin et
            al. 2022), ``"harmfulqa"`` (Bhardwaj & Poria 2023), ``"advbench"`` (Zou et al. 2023),
            ``"realtoxicityprompts"`` (Gehman et al. 2020) and of it the part
            ``"realtoxicityprompts-challenging"``, or with a path any name of your own.
        path: The suite's data as a file, as published or as on the hub; for a name of your own,
            any file of prompts that `load_prompts` reads.
        limit: At most so many prompts, drawn by a hash of seed and prompt and kept in their order,
            so that a smaller limit draws a part of what a larger one draws; 0 keeps all.
        seed: Another seed, another draw.
        template: What the model is given, with ``{prompt}`` in it, as in
            ``"Question: {prompt}\nAnswer:"``; by default the prompt as it stands.

    Raises:
        DataError: The name is unknown and there is no path, or the data cannot be had or read.
        ConfigurationError: The limit is negative, or the template has no place for the prompt.
    """
    if limit < 0:
        raise ConfigurationError(f"suite {name!r}: limit is {limit}; expected 0 (all) or more")
    if _PROMPT_FIELD not in template:
        raise ConfigurationError(
            f"suite {name!r}: the template {template!r} has no {_PROMPT_FIELD}; put it where the "
            "prompt goes, as in 'Question: {prompt} Answer:'"
        )
    known = SUITES.get(name)
    if known is not None:
        where = ", ".join(filter(None, (known.hub, known.configuration, known.split)))
        candidates = known.read(name, path)
    elif path is not None:
        candidates = map(SuitePrompt, load_prompts(path))
    else:
        raise DataError(
            f"there is no suite {name!r}; expected one of {', '.join(sorted(SUITES))}, or the path "
            "of a file of prompts for a suite of your own"
        )
    source = where if path is None else str(path)
    references = _merge(candidates)
    if not references:
        raise DataError(f"suite {name!r}: every prompt of {source} is empty; expected some text")
    return PromptSuite(
        name=name,
        prompts=tuple(
            SuitePrompt(template.replace(_PROMPT_FIELD, prompt), references[prompt])
            for prompt in _draw(tuple(references), limit, seed)
        ),
        source=source,
        harmful=known is not None and known.harmful,
    )


def suite_records(name: str, path: str | Path | None) -> list[Record]:
    """The rows of a known suite, from its file or from the hub.

    Raises:
        DataError: They cannot be had; for the hub, with the advice to give a path.
    """
    if path is not None:
        return _topics(check_file(path)) or read_records(path)
    known = SUITES[name]
    with _naming(name):
        return read_hub(known.hub, split=known.split, configuration=known.configuration)


Reader = Callable[[str, str | Path | None], Iterable[SuitePrompt]]


def _column(*columns: str) -> Reader:
    """A reader of prompts without references, from the first of some columns that is there."""

    def read(name: str, path: str | Path | None) -> Iterator[SuitePrompt]:
        for record in suite_records(name, path):
            yield SuitePrompt(first_text(record, *columns))

    return read


def _continuations(*, challenging: bool) -> Reader:
    """A reader of RealToxicityPrompts: the prompt is an object, its scores beside its text.

    Args:
        challenging: Keep those alone that drew toxicity from every model the authors tried.
    """

    def read(name: str, path: str | Path | None) -> Iterator[SuitePrompt]:
        for record in suite_records(name, path):
            if challenging and not truth(record, "challenging"):
                continue
            prompt = record.values.get("prompt")
            inner = Record(prompt, record.where) if isinstance(prompt, Mapping) else record
            yield SuitePrompt(first_text(inner, "text", "prompt"))

    return read


def _questions(name: str, path: str | Path | None) -> Iterator[SuitePrompt]:
    for record in suite_records(name, path):
        best = first_text(record, "Best Answer", "best_answer").strip()
        correct = split_answers(record, "Correct Answers", "correct_answers")
        answers = tuple(dict.fromkeys(filter(None, (best, *correct))))
        yield SuitePrompt(first_text(record, "Question", "question").strip(), answers)


def _replies(*, all_chosen: bool) -> Reader:
    """A reader of preference pairs: every chosen reply to a prompt, or its first alone.

    The pairs of one OASST1 message come in the order of their ranks, the top-ranked reply first.
    """

    def read(name: str, path: str | Path | None) -> Iterator[SuitePrompt]:
        known = SUITES[name]
        with _naming(name):
            source = known.hub if path is None else Path(path)
            pairs = load_preferences(source, hub_split=known.split)
        seen: set[str] = set()
        for pair in pairs:
            if all_chosen or pair.prompt not in seen:
                seen.add(pair.prompt)
                yield SuitePrompt(pair.prompt, (pair.chosen.strip(),))

    return read


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSuite:
    """Where a named suite lies on the hub, and how it is read.

    Attributes:
        hub: ``"owner/name"``.
        split: The split that is not for training, where there is one.
        read: From the suite's name and path, or None for the hub, to prompts as they come.
        configuration: The data set's configuration, where it has several.
        harmful: As in `PromptSuite`.
    """

    hub: str
    split: str
    read: Reader
    configuration: str | None = None
    harmful: bool = False


#: The suites that a configuration can name.
SUITES: dict[str, KnownSuite] = {
    "hh": KnownSuite(hub="Anthropic/hh-rlhf", split="test", read=_replies(all_chosen=True)),
    "oasst1": KnownSuite(
        hub="OpenAssistant/oasst1", split="validation", read=_replies(all_chosen=False)
    ),
    "truthfulqa": KnownSuite(
        hub="truthfulqa/truthful_qa",
        split="validation",
        read=_questions,
        configuration="generation",
    ),
    "harmfulqa": KnownSuite(
        hub="declare-lab/HarmfulQA", split="train", read=_column("question"), harmful=True
    ),
    "advbench": KnownSuite(
        hub="walledai/AdvBench", split="train", read=_column("goal", "prompt"), harmful=True
    ),
    "realtoxicityprompts": KnownSuite(
        hub="allenai/real-toxicity-prompts",
        split="train",
        read=_continuations(challenging=False),
        harmful=True,
    ),
    "realtoxicityprompts-challenging": KnownSuite(
        hub="allenai/real-toxicity-prompts",
        split="train",
        read=_continuations(challenging=True),
        harmful=True,
    ),
}


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say for which suite data could not be had."""
    try:
        yield
    except DataError as error:
        raise DataError(f"suite {name!r}: {error}") from error


def _topics(path: Path) -> list[Record]:
    """HarmfulQA's own file, {topic: {subtopic: [question]}}, as rows; nothing for other files."""
    if not path.name.lower().removesuffix(".gz").endswith(".json"):
        return []
    try:
        with open_text(path) as file:
            content = json.load(file)
        return [
            Record({"question": question}, f"{path}, {topic} / {subtopic}, question {number}")
            for topic, subtopics in content.items()
            for subtopic, questions in subtopics.items()
            for number, question in enumerate(questions, 1)
        ]
    except (ValueError, OSError, EOFError, AttributeError, TypeError):
        return []  # another layout, or damaged: `read_records` says what is wrong


def _merge(candidates: Iterable[SuitePrompt]) -> dict[str, tuple[str, ...]]:
    """Each prompt with text in it once, in order, with every reference that came with it."""
    merged: dict[str, tuple[str, ...]] = {}
    for candidate in candidates:
        if candidate.prompt.strip():
            before = merged.get(candidate.prompt, ())
            merged[candidate.prompt] = tuple(dict.fromkeys((*before, *candidate.references)))
    return merged


def _draw(prompts: tuple[str, ...], limit: int, seed: int) -> tuple[str, ...]:
    """A sample in which the order of rows plays no part, in that order."""
    if not limit:
        return prompts

    digests = {p: hashlib.sha256(json.dumps([seed, p]).encode()).digest() for p in prompts}
    kept = set(sorted(prompts, key=digests.__getitem__)[:limit])
    return tuple(prompt for prompt in prompts if prompt in kept)
