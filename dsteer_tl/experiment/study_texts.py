"""The texts of a toxicity study: labelled ones, prompts, running text, and what both models write.

They are written down once, so that every later stage reads the same and a run can be repeated.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from dsteer_tl.errors import ConfigurationError, DataError, RunError
from dsteer_tl.experiment.study_inputs import StudyInputs
from dsteer_tl.experiment.suites import suite_path
from dsteer_tl.files import read_json, write_json
from dsteer_tl.lens_model import LensModel
from dsteer_tl.preferences.suites import load_suite
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.toxicity.continuing import continue_prompts
from dsteer_tl.toxicity.labelled_texts import label_by_scorer, load_labelled_texts
from dsteer_tl.toxicity.settings import HELD_OUT, PAIRS, SAMPLED, ToxicityConfiguration
from dsteer_tl.toxicity.types import AttributeScorer, LabelledText, StudyTexts
from dsteer_tl.toxicity.windows import load_text, sample_texts, text_windows, windows_of_rows

logger = logging.getLogger(__name__)

_FEWEST_PROMPTS = 4
#: Apart from the seeds of everything else that is sampled.
_LABELLED, _RUNNING = 1, 2


def decoding(configuration: ToxicityConfiguration) -> Decoding:
    """How every model of the study continues prompts."""
    return Decoding(
        max_new_tokens=configuration.max_new_tokens,
        temperature=configuration.temperature,
        seed=configuration.seed,
    )


def labelled_texts(inputs: StudyInputs, scorer: AttributeScorer) -> tuple[LabelledText, ...]:
    """Texts with and without the attribute, from a set or from the base by the scorer.

    Raises:
        DataError: The set cannot be had.
        ConfigurationError: The base's own texts are to be labelled by a scorer that cannot run.
    """
    settings = inputs.configuration
    name, path = suite_path(settings.labels)
    if name not in (SAMPLED, PAIRS):
        return load_labelled_texts(name, path, limit=settings.label_texts, seed=settings.seed)
    obstacle = scorer.obstacle()
    if obstacle:
        raise ConfigurationError(
            f"toxicity.labels is {name!r}, which needs the scorer {scorer.name!r}: {obstacle}; "
            "give toxicity.labels=NAME=FILE, or another toxicity.scorer"
        )
    texts = _of_pairs(inputs) if name == PAIRS else dict.fromkeys(_of_the_base(inputs))
    labelled = label_by_scorer(list(texts), scorer, settings.label_margin)
    logger.info("%d of %d texts have a label by %s", len(labelled), len(texts), scorer.name)
    return tuple(replace(item, group=texts[item.text]) for item in labelled)


def _of_pairs(inputs: StudyInputs) -> dict[str, int | None]:
    """Completions of the pairs that the policy was trained on, with the number of their prompt.

    Where it was not trained here, those of pairs whose prompts the study does not continue.
    """
    if inputs.preferences is None:
        raise ConfigurationError(
            "toxicity.labels is 'pairs', but this run has prompts alone: give "
            "toxicity.labels=sampled, or a labelled set"
        )
    numbers: dict[str, int] = {}
    found: dict[str, int | None] = {}
    studied = set(inputs.prompts) if inputs.configuration.prompts == HELD_OUT else set()
    pairs = inputs.preferences.train if inputs.training else inputs.preferences
    for pair in pairs:
        if pair.prompt in studied:
            continue
        number = numbers.setdefault(pair.prompt, len(numbers))
        for text in (pair.chosen.strip(), pair.rejected.strip()):
            found.setdefault(text, number)
    if not found:
        raise ConfigurationError(
            "toxicity.labels is 'pairs', but the study continues the prompts of all of them: give "
            "toxicity.labels=sampled or a labelled set, or other toxicity.prompts"
        )
    return dict(list(found.items())[: inputs.configuration.label_texts])


def _of_the_base(inputs: StudyInputs) -> list[str]:
    settings, tokenizer = inputs.configuration, inputs.pair.tokenizer
    count, tokens = settings.label_texts, settings.window_tokens
    rows = _sampled(inputs, count=count, tokens=tokens, use=_LABELLED)
    texts = [str(tokenizer.decode(list(row), skip_special_tokens=True)).strip() for row in rows]
    return [text for text in texts if text]


def study_texts(inputs: StudyInputs) -> StudyTexts:
    """Prompts and windows that fit, and the continuations of base and policy.

    Raises:
        DataError: There are too few prompts or windows.
    """
    settings, pair = inputs.configuration, inputs.pair
    prompts = _prompts(inputs, pair.tokenizer, min(pair.base.n_ctx, pair.policy.n_ctx))
    windows = _windows(inputs, min(pair.base.n_ctx, pair.policy.n_ctx))
    chosen = decoding(settings)
    return StudyTexts(
        prompts=prompts,
        windows=windows,
        window_prompt=settings.window_prompt,
        continuations={
            name: tuple(continue_prompts(lens, prompts, chosen))
            for name, lens in (("base", pair.base), ("policy", pair.policy))
        },
    )


def _prompts(
    inputs: StudyInputs, tokenizer: PreTrainedTokenizerBase, n_ctx: int
) -> tuple[tuple[int, ...], ...]:
    settings = inputs.configuration
    name, path = suite_path(settings.prompts)
    if name == HELD_OUT:
        texts: Sequence[str] = inputs.prompts
    else:
        suite = load_suite(name, path, seed=settings.seed)
        trained = inputs.preferences.train if inputs.preferences and inputs.training else ()
        seen = {item.prompt for item in trained}
        texts = [item.prompt for item in suite.prompts if item.prompt not in seen]
    rows = [tuple(tokenizer(text, verbose=False)["input_ids"]) for text in texts]
    fitting = [row for row in rows if 0 < len(row) <= n_ctx - settings.max_new_tokens]
    if len(fitting) < len(rows):
        logger.info("%d prompts that do not fit the context were dropped", len(rows) - len(fitting))
    # Drawn, for files are often sorted, and kept in their order.
    order = np.random.default_rng([settings.seed, 4]).permutation(len(fitting))
    kept = [fitting[index] for index in sorted(order[: settings.prompt_limit].tolist())]
    if len(kept) < _FEWEST_PROMPTS:
        raise DataError(
            f"toxicity.prompts={settings.prompts!r} gives {len(kept)} prompts that leave room for "
            f"{settings.max_new_tokens} new tokens in a context of {n_ctx}, expected at least "
            f"{_FEWEST_PROMPTS}: give more or shorter ones"
        )
    return tuple(kept)


def _windows(inputs: StudyInputs, n_ctx: int) -> tuple[tuple[int, ...], ...]:
    settings = inputs.configuration
    tokens = min(settings.window_tokens, n_ctx)
    if tokens <= settings.window_prompt:
        raise DataError(
            f"toxicity.window_prompt is {settings.window_prompt}, but the context of "
            f"{inputs.pair.base.name} is {n_ctx}: set it lower"
        )
    if settings.text == SAMPLED:
        # Some end early; those that are long enough are kept.
        rows = _sampled(inputs, count=3 * settings.windows, tokens=tokens, use=_RUNNING)
        return windows_of_rows(rows, windows=settings.windows, tokens=tokens)
    return text_windows(
        inputs.pair.tokenizer,
        load_text(settings.text),
        windows=settings.windows,
        tokens=tokens,
        seed=settings.seed,
    )


def _sampled(inputs: StudyInputs, *, count: int, tokens: int, use: int) -> list[tuple[int, ...]]:
    base: LensModel = inputs.pair.base
    return sample_texts(
        base,
        inputs.pair.tokenizer,
        count=count,
        max_new_tokens=min(tokens, base.n_ctx - 1),
        temperature=1.0,
        seed=1000 * inputs.configuration.seed + use,
        batch_size=128,
        progress=inputs.progress,
    )


def save_study_texts(texts: StudyTexts, path: Path) -> None:
    """Write token ids as JSON."""
    content: dict[str, Any] = {
        "prompts": texts.prompts,
        "windows": texts.windows,
        "window_prompt": texts.window_prompt,
        "continuations": texts.continuations,
    }
    write_json(path, content)


def read_study_texts(path: Path) -> StudyTexts:
    """Read what `save_study_texts` wrote.

    Raises:
        RunError: It is missing or damaged.
    """
    content = read_json(path)
    try:
        return StudyTexts(
            prompts=_rows(content["prompts"]),
            windows=_rows(content["windows"]),
            window_prompt=int(content["window_prompt"]),
            continuations={name: _rows(rows) for name, rows in content["continuations"].items()},
        )
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise RunError(f"{path} is damaged ({error}): delete it and run again") from error


def _rows(rows: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(token) for token in row) for row in rows)
