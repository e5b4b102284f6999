"""A tiny base, a few pairs, and settings under which training takes two seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsteer_tl.preferences import PreferencePair, PreferenceSet
from dsteer_tl.training import TrainingConfiguration
from tests.models import random_model, save_checkpoint

WORDS = ["bird", "river", "old man", "dog", "rain", "flowers", "little bird", "water"]


def settings(**changes: Any) -> TrainingConfiguration:
    """Four updates of two pairs, recorded at every second."""
    small = {"max_steps": 4, "batch_size": 2, "evaluate_every": 2, "learning_rate": 1e-3}
    return TrainingConfiguration(**small | {"warmup_steps": 1} | changes)


def make_preferences(train: int = 6, held_out: int = 2) -> PreferenceSet:
    """Pairs of unequal length, the first ones for training."""
    pairs = [
        PreferencePair(
            f"Once the {word} was",
            " happy and" + " blue" * (index % 3),
            " sad" + " no" * (index % 2),
            split="train" if index < train else "held_out",
        )
        for index, word in enumerate(WORDS[: train + held_out])
    ]
    return PreferenceSet.from_pairs(pairs, name="tiny")


@pytest.fixture(scope="session")
def preferences() -> PreferenceSet:
    return make_preferences()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(random_model(), tmp_path_factory.mktemp("training") / "base")
