"""The loss `kto`, which has a trainer of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from dsteer_tl.lens_model import LoadOptions, load_model
from dsteer_tl.preferences import PreferenceSet
from dsteer_tl.training import train_dpo
from dsteer_tl.training.trainers import _unpaired_dataset
from tests.training.conftest import settings


def test_a_pair_is_two_rows_in_a_mixed_order(preferences: PreferenceSet) -> None:
    rows = list(_unpaired_dataset(preferences, seed=0))
    assert Counter((row["prompt"], row["completion"], row["label"]) for row in rows) == Counter(
        (pair.prompt, text, label)
        for pair in preferences
        for text, label in ((pair.chosen, True), (pair.rejected, False))
    )
    labels = [row["label"] for row in rows]
    assert labels != sorted(labels) and labels != [True, False] * len(preferences)
    assert rows == list(_unpaired_dataset(preferences, seed=0))
    assert rows != list(_unpaired_dataset(preferences, seed=1))


def test_training_on_single_texts(base: Path, preferences: PreferenceSet, tmp_path: Path) -> None:
    """At the start every row has KTO's loss 1 − σ(0); three updates see each of six pairs once."""
    result = train_dpo(
        base,
        preferences,
        tmp_path / "policy",
        settings(loss_type="kto", max_steps=-1, epochs=1.0),
        progress=False,
    )
    losses = result.training[result.training["name"] == "loss"].set_index("step")["value"]
    assert losses[1] == pytest.approx(0.5, abs=1e-4)
    assert losses.index.max() == 3 and losses[3] < 0.5
    before, after = (
        dict(load_model(folder, LoadOptions()).named_parameters())
        for folder in (base, result.policy)
    )
    for name, parameter in after.items():
        assert torch.equal(parameter, before[name]) == (name in result.frozen), name
