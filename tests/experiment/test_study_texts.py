"""What a study reads: drawn prompts, labels from pairs that are not judged, swapped pairs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dsteer_tl.errors import ConfigurationError, DataError, RunError
from dsteer_tl.experiment.study_inputs import StudyInputs
from dsteer_tl.experiment.study_texts import (
    _of_pairs,
    _prompts,
    read_study_texts,
    save_study_texts,
)
from dsteer_tl.preferences import PreferencePair, PreferenceSet
from dsteer_tl.preferences.exchanging import exchanged_at_random
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import StudyTexts
from tests.models import tiny_tokenizer

PAIRS = PreferenceSet.from_pairs(
    [PreferencePair("so" * (1 + i // 2), f" good {i}", f" bad {i}") for i in range(40)],
    name="pairs",
).split(0.25, 0)


def inputs(**changes: Any) -> StudyInputs:
    """Inputs without models, which none of these functions load."""
    settings = ToxicityConfiguration(
        prompts="held_out", prompt_limit=6, max_new_tokens=4, labels="pairs"
    )
    found = {
        "configuration": replace(settings, **changes.pop("settings", {})),
        "preferences": PAIRS,
        "prompts": tuple(dict.fromkeys(PAIRS.held_out.prompts)),
        "training": object(),
    } | changes
    return cast(StudyInputs, SimpleNamespace(**found))


def test_prompts_of_a_sorted_file_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "sorted.jsonl"
    rows = [{"prompt": {"text": "so" * (1 + i)}, "toxicity": i} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tokenizer = tiny_tokenizer()

    def drawn(seed: int) -> list[str]:
        settings = {"prompts": f"realtoxicityprompts={path}", "seed": seed}
        rows = _prompts(inputs(settings=settings), tokenizer, 200)
        return [tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]

    first = drawn(0)
    assert len(first) == 6 and first == drawn(0) != drawn(1)
    lengths = [len(text) for text in first]
    assert lengths == sorted(lengths) and lengths != [2, 4, 6, 8, 10, 12]


def test_prompts_that_training_saw_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in dict.fromkeys(PAIRS.prompts)), "utf-8")
    settings = {"prompts": f"own={path}", "prompt_limit": 100}
    tokenizer = tiny_tokenizer()
    seen = set(PAIRS.train.prompts)
    rows = _prompts(inputs(settings=settings), tokenizer, 200)
    texts = [tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]
    assert set(texts) == set(PAIRS.prompts) - seen
    every = _prompts(inputs(settings=settings, training=None), tokenizer, 200)
    assert len(every) == len(set(PAIRS.prompts))
    with pytest.raises(DataError, match=r"gives 0 prompts that leave room for 4 new tokens"):
        _prompts(inputs(), tokenizer, 5)


def test_labels_never_come_from_prompts_that_are_judged() -> None:
    held_out = set(PAIRS.held_out.prompts)
    found = _of_pairs(inputs())
    of = {text.strip(): pair.prompt for pair in PAIRS for text in (pair.chosen, pair.rejected)}
    assert len(found) == 2 * len(PAIRS.train)
    assert not {of[text] for text in found} & held_out
    # Both pairs of a prompt, four texts, have its number.
    assert set(Counter(found.values()).values()) == {4}
    untrained = _of_pairs(inputs(training=None))
    assert not {of[text] for text in untrained} & held_out
    with pytest.raises(ConfigurationError, match="prompts of all of them"):
        _of_pairs(inputs(training=None, prompts=tuple(set(PAIRS.prompts))))
    with pytest.raises(ConfigurationError, match="prompts alone"):
        _of_pairs(inputs(preferences=None))


@pytest.mark.parametrize("seed", range(4))
def test_half_of_the_pairs_are_swapped(seed: int) -> None:
    found = exchanged_at_random(PAIRS, seed)
    swapped = [old.chosen == new.rejected for old, new in zip(PAIRS, found, strict=True)]
    assert sum(swapped) == len(PAIRS) // 2
    for old, new, turned in zip(PAIRS, found, swapped, strict=True):
        sides = (old.rejected, old.chosen) if turned else (old.chosen, old.rejected)
        assert (new.prompt, new.split, (new.chosen, new.rejected)) == (old.prompt, old.split, sides)
    assert found == exchanged_at_random(PAIRS, seed) != exchanged_at_random(PAIRS, seed + 10)
    assert not np.array_equal(swapped, np.sort(swapped))


def test_texts_come_back_and_damage_is_seen(tmp_path: Path) -> None:
    texts = StudyTexts(
        prompts=((1, 2), (3,)),
        windows=((4, 5, 6),),
        window_prompt=1,
        continuations={"base": ((7,), ()), "policy": ((), (8, 9))},
    )
    path = tmp_path / "texts.json"
    save_study_texts(texts, path)
    assert read_study_texts(path) == texts
    path.write_text('{"prompts": 3}', "utf-8")
    with pytest.raises(RunError, match="is damaged"):
        read_study_texts(path)
