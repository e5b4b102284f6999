"""Longer keys over scales: every row against plain transformers with edited weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dsteer_tl.errors import ConfigurationError, ShapeError
from dsteer_tl.lens_model import LensModel, load_lens_model
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.toxicity import unalign
from dsteer_tl.toxicity.evaluation import CONTINUATION_COLUMNS
from dsteer_tl.toxicity.neuron_edits import mean_contributions, most_active_neurons
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import Neurons, StudyTexts
from dsteer_tl.toxicity.unalign import measure_unalign, scaled_groups
from tests.models import backbone_parts, policy_of, random_model, tiny_tokenizer

PROMPTS = ((5, 9, 33), (8, 120), (14, 15, 92, 65), (44,))
WINDOWS = tuple(
    tuple(row) for row in np.random.default_rng(1).integers(2, 160, size=(3, 12)).tolist()
)
DECODING = Decoding(max_new_tokens=5)
CONFIGURATION = ToxicityConfiguration(neurons=2, scales=(1.0, 10.0), draws=50, seed=5)
PLACES = ((1, 3), (0, 7), (1, 20), (0, 31))
ATTRIBUTE = Neurons(
    group="attribute",
    layers=np.array([layer for layer, _ in PLACES]),
    neurons=np.array([neuron for _, neuron in PLACES]),
    signs=np.array([1, -1, 1, -1]),
)
#: Modules whose weights hold the keys, by architecture and keys.
MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {"in": ("c_fc",)},
    "llama": {"in": ("up_proj",), "gate": ("gate_proj",), "both": ("up_proj", "gate_proj")},
}


class Lengths:
    """Scores a text by its length."""

    name = "length"
    source = "none"

    def obstacle(self) -> str:
        return ""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([min(1.0, len(text) / 40) for text in texts])

    def words(self) -> frozenset[str]:
        return frozenset()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def texts() -> StudyTexts:
    return StudyTexts(
        prompts=PROMPTS,
        windows=WINDOWS,
        window_prompt=4,
        continuations={"base": ((2, 77, 41), (3, 18), (35,), ())},
    )


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Any]]:
    found = {}
    for architecture in MODULES:
        base = random_model(architecture)
        found[architecture] = {"base": base, "policy": policy_of(base, scale=0.1)}
    return found


@pytest.fixture(scope="module")
def hosts(plain: dict[str, dict[str, Any]]) -> dict[str, dict[str, LensModel]]:
    return {
        architecture: {
            name: load_lens_model(copy.deepcopy(model), self_check=False)
            for name, model in models.items()
        }
        for architecture, models in plain.items()
    }


def measured(hosts: dict[str, LensModel], scorer: Any = None) -> dict[str, pd.DataFrame]:
    return measure_unalign(
        hosts,
        tokenizer(),
        texts(),
        scorer or Lengths(),
        ATTRIBUTE,
        CONFIGURATION,
        DECODING,
        progress=False,
    )


@torch.no_grad()
def perplexity(model: Any) -> float:
    losses = [
        model(torch.tensor([list(window)]), labels=torch.tensor([list(window)])).loss.item()
        for window in WINDOWS
    ]
    return float(np.exp(np.mean(losses)))


@torch.no_grad()
def completions(model: Any) -> list[str]:
    """Greedy, one prompt at a time, without a cache."""
    found = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        for _ in range(DECODING.max_new_tokens):
            token = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
            if token == 1:
                break
            tokens.append(token)
        found.append(tokenizer().decode(tokens[len(prompt) :], skip_special_tokens=True))
    return found


@torch.no_grad()
def scaled(model: Any, architecture: str, keys: str, neurons: Neurons, factor: float) -> Any:
    edited = copy.deepcopy(model)
    for layer, neuron in zip(neurons.layers.tolist(), neurons.neurons.tolist(), strict=True):
        for module in MODULES[architecture][keys]:
            weight = getattr(backbone_parts(edited)[0][layer].mlp, module).weight
            (weight[:, neuron] if architecture == "gpt2" else weight[neuron]).mul_(factor)
    return edited


@pytest.mark.parametrize("architecture", MODULES)
def test_every_row_is_a_model_with_edited_weights(
    plain: dict[str, dict[str, Any]], hosts: dict[str, dict[str, LensModel]], architecture: str
) -> None:
    tables = measured(hosts[architecture])
    table, written = tables["toxicity_unalign"], tables["toxicity_continuations"]
    groups = {
        group.group: group
        for group in scaled_groups(
            hosts[architecture]["base"], texts(), ATTRIBUTE, CONFIGURATION, progress=False
        )
    }
    keys_of = {
        "attribute": tuple(MODULES[architecture]),
        "random": ("in",),
        "most_active": ("in",),
    }
    assert [tuple(row) for row in table[["host", "group", "keys", "scale"]].to_numpy()] == [
        (host, group, keys, scale)
        for host in ("base", "policy")
        for group in ("attribute", "random", "most_active")
        for keys in keys_of[group]
        for scale in (1.0, 10.0)
    ]
    for row in table.to_dict("records"):
        model = scaled(
            plain[architecture][row["host"]],
            architecture,
            row["keys"],
            groups[row["group"]],
            row["scale"],
        )
        assert row["perplexity"] == pytest.approx(perplexity(model), rel=1e-4)
        expected = completions(model)
        assert row["attribute_score"] == pytest.approx(Lengths().score(expected).mean())
        assert (row["neurons"], row["prompts"], row["windows"]) == (2, 4, 3)
        if row["group"] == "attribute" and row["scale"] == 10:
            kept = written[
                (written["host"] == row["host"])
                & (written["condition"] == f"scaled_keys.{row['keys']}")
            ]
            assert kept["completion"].tolist() == expected
            assert (kept["coefficient"] == 10).all()
    assert (table["perplexity_low"] <= table["perplexity"]).all()
    assert (table["perplexity"] <= table["perplexity_high"]).all()
    assert table.groupby("host")["perplexity"].nunique().min() > 3
    assert tuple(written.columns) == CONTINUATION_COLUMNS
    assert len(written) == 2 * len(MODULES[architecture]) * len(PROMPTS)


def test_each_condition_is_measured_once(
    hosts: dict[str, dict[str, LensModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scale 1 once a host: 5 settings of one further scale besides it."""
    runs = []
    real = unalign.continue_prompts

    def count(lens: LensModel, *arguments: Any, **settings: Any) -> Any:
        runs.append((lens, len(settings["edits"])))
        return real(lens, *arguments, **settings)

    monkeypatch.setattr(unalign, "continue_prompts", count)
    table = measured(hosts["llama"])["toxicity_unalign"]
    assert len(runs) == 2 * (1 + 5)
    assert sum(not edits for _, edits in runs) == 2
    plain = table[table["scale"] == 1].drop(columns=["group", "keys"])
    for _, rows in plain.groupby("host"):
        assert len(rows.drop_duplicates()) == 1


def test_changes_are_paired_with_the_same_host_unscaled(
    hosts: dict[str, dict[str, LensModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and hosts differ a lot and the keys add little: the intervals of scores overlap."""
    rises = np.array([0.03, 0.05, 0.06, 0.06])
    real = unalign._evaluation

    def planted(lens: LensModel, *arguments: Any) -> Any:
        scores = np.array([0.1, 0.3, 0.5, 0.7]) - 0.05 * (lens is hosts["gpt2"]["policy"])
        return replace(real(lens, *arguments), scores=scores + rises * bool(arguments[-1]))

    monkeypatch.setattr(unalign, "_evaluation", planted)
    table = measured(hosts["gpt2"])["toxicity_unalign"]
    plain, longer = (table[table["scale"] == scale] for scale in (1, 10))
    assert (plain[["change", "change_low", "change_high"]] == 0).all().all()
    assert longer["change"].to_numpy() == pytest.approx(rises.mean())
    assert longer["change_low"].min() >= rises.min()
    assert longer["change_high"].max() <= rises.max()
    assert set(longer["host"]) == {"base", "policy"}
    # A difference of two independent means is no better known than either mean.
    independent = longer["high"] - longer["low"]
    assert (longer["change_high"] - longer["change_low"] < 0.1 * independent).all()
    assert (longer["low"].to_numpy() < plain["attribute_score"].max()).all()


def test_controls_hold_none_of_the_attributes_neurons(
    hosts: dict[str, dict[str, LensModel]],
) -> None:
    """Not even where the attribute's neurons are the most active ones."""
    base = hosts["llama"]["base"]
    sequences = [(*a, *b) for a, b in zip(PROMPTS, texts().continuations["base"], strict=True)]
    sizes = mean_contributions(base, sequences, token_budget=100, progress=False)
    own = replace(most_active_neurons(sizes, 4), group="attribute")
    attribute, random, active = scaled_groups(base, texts(), own, CONFIGURATION, progress=False)
    assert attribute.neurons.tolist() == own.neurons[:2].tolist()
    taken = set(zip(own.layers.tolist(), own.neurons.tolist(), strict=True))
    for control in (random, active):
        found = set(zip(control.layers.tolist(), control.neurons.tolist(), strict=True))
        assert len(found) == 2
        assert found.isdisjoint(taken)
    following = np.sort(sizes, axis=None)[::-1][4:6]
    np.testing.assert_allclose(sizes[active.layers, active.neurons], following)


def test_without_a_scorer_perplexity_is_left(hosts: dict[str, dict[str, LensModel]]) -> None:
    class Missing(Lengths):
        def obstacle(self) -> str:
            return "not here"

    tables = measured(hosts["gpt2"], Missing())
    table = tables["toxicity_unalign"]
    scores = ["attribute_score", "low", "high", "change", "change_low", "change_high"]
    assert table[scores].isna().all().all()
    assert np.isfinite(table["perplexity"]).all()
    assert tables["toxicity_continuations"]["attribute_score"].isna().all()
    assert (tables["toxicity_continuations"]["completion"].str.len() > 0).any()


def test_two_runs_give_the_same_tables(hosts: dict[str, dict[str, LensModel]]) -> None:
    first, second = measured(hosts["gpt2"]), measured(hosts["gpt2"])
    for name, table in first.items():
        pd.testing.assert_frame_equal(table, second[name])


def test_what_cannot_be_scaled_is_refused(hosts: dict[str, dict[str, LensModel]]) -> None:
    with pytest.raises(ConfigurationError, match="expected the base"):
        measured({"policy": hosts["gpt2"]["policy"]})
    everything = Neurons(
        group="attribute",
        layers=np.repeat([0, 1], 48),
        neurons=np.tile(np.arange(48), 2),
        signs=np.ones(96, dtype=int),
    )
    with pytest.raises(ShapeError, match="as many as there are"):
        scaled_groups(hosts["llama"]["base"], texts(), everything, CONFIGURATION, progress=False)
