"""Inputs of the stress tests on tiny models: twelve pairs, four updates."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from dsteer_tl.capture import CaptureConfiguration, capture_shifts
from dsteer_tl.lens_model import LoadOptions
from dsteer_tl.measurements import MeasurementConfiguration
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import probes_from_pairs
from dsteer_tl.preferences import PreferencePair, PreferenceSet
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.settings import StressConfiguration
from dsteer_tl.training import TrainingConfiguration

_NAMES = ("bird", "dog", "man", "river", "rain", "cat", "girl", "boy", "tree", "fox", "hen", "owl")
#: Two updates an epoch on the eight pairs that train.
RECIPE = TrainingConfiguration(
    epochs=2.0, batch_size=4, learning_rate=1e-3, warmup_steps=1, evaluate_every=2
)


def make_pairs() -> PreferenceSet:
    """Completions that differ in every axis, eight to train on and four held out."""
    return PreferenceSet(
        tuple(
            PreferencePair(
                f"The {name} was",
                " happy and she" + " sang" * (1 + index % 3) + ".",
                " sad. No. Bad times" + " came" * (index % 2) + ".",
                "train" if index < 8 else "held_out",
            )
            for index, name in enumerate(_NAMES)
        ),
        name="tiny",
    )


@cache
def _loaded(base: Path, policy: Path) -> ModelPair:
    return ModelPair.load(base, policy)


def make_inputs(folders: tuple[Path, Path], folder: Path, **settings: Any) -> StressInputs:
    """Inputs of a run with this base and policy, whose variants go to the folder."""
    base, policy = folders
    pairs, pair = make_pairs(), _loaded(base, policy)
    probes = probes_from_pairs(pair.tokenizer, pairs.held_out)
    return StressInputs(
        base=str(base),
        load_pair=lambda: pair,
        preferences=pairs,
        measured=pairs.held_out,
        training=RECIPE,
        shift_set=capture_shifts(pair, probes, configuration=CaptureConfiguration(progress=False)),
        load_probes=lambda: probes,
        scorer="vader",
        measurement=MeasurementConfiguration(draws=20, response_limit=6),
        settings=StressConfiguration(**settings),
        folder=folder,
        options=LoadOptions(),
        progress=False,
    )
