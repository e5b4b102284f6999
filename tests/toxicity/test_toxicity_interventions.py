"""Vectors subtracted at the policy's perplexity, and the controls that make it mean something."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dsteer_tl.cosines import pairwise_cosine_mean
from dsteer_tl.directions import SteeringVector
from dsteer_tl.errors import ConfigurationError, ShapeError, SpaceError
from dsteer_tl.lens_model import Edit, LensModel, load_lens_model
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.toxicity.continuing import continue_prompts
from dsteer_tl.toxicity.evaluation import CONTINUATION_COLUMNS, evaluate
from dsteer_tl.toxicity.interventions import (
    FALLBACK,
    MeasuredInterventions,
    measure_interventions,
    random_control,
)
from dsteer_tl.toxicity.perplexity import LastLayerWindows, window_losses
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import StudyTexts
from tests.models import VOCABULARY, random_model, tiny_tokenizer
from tests.steering.tiny_steering import tokens, vector
from tests.tiny_pairs import tiny_pair
from tests.toxicity.test_evaluation import VowelShare

SITE = "resid_post.1"
DECODING = Decoding(max_new_tokens=4, temperature=1.0, seed=2)
CONFIGURATION = ToxicityConfiguration(draws=50, seed=3)
PROBE = replace(vector(SITE, size=3.0), name="probe")
VALUE = replace(vector(SITE, seed=1, size=0.5), name="MLP.v[1,7]")
CONTROL = replace(vector(SITE, seed=2), name="random_value_vector")
TOKENIZER = tiny_tokenizer()


@cache
def texts() -> StudyTexts:
    """Windows that the base wrote, which every change makes more surprising."""
    starts = [(0, *tokens(2, seed)) for seed in range(12)]
    sampling = Decoding(max_new_tokens=14, temperature=1.0)
    written = continue_prompts(tiny_pair().base, starts, sampling)
    windows = [(*a, *b) for a, b in zip(starts, written, strict=True)]
    prompts = tuple((0, *tokens(length, 7)) for length in (3, 6, 2, 5, 4, 1))
    kept = tuple(window for window in windows if len(window) > 8)
    assert len(kept) > 6
    return StudyTexts(prompts=prompts, windows=kept, window_prompt=4, continuations={})


def measure(**changes: Any) -> MeasuredInterventions:
    pair = tiny_pair()
    given: dict[str, Any] = {
        "models": {"base": pair.base, "policy": pair.policy},
        "tokenizer": TOKENIZER,
        "texts": texts(),
        "scorer": VowelShare(),
        "vectors": [PROBE, VALUE],
        "controls": [CONTROL],
        "configuration": CONFIGURATION,
        "decoding": DECODING,
        "batch_rows": 40,
        **changes,
    }
    return measure_interventions(**given)


@cache
def measured() -> MeasuredInterventions:
    other = load_lens_model(random_model("llama", seed=9), name="other")
    pair = tiny_pair()
    return measure(models={"base": pair.base, "policy": pair.policy, "random_weights": other})


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return measured().tables["toxicity_interventions"]


def row(table: pd.DataFrame, vector: str, matched: bool = True) -> pd.Series:
    (found,) = (
        r for _, r in table[table["vector"] == vector].iterrows() if r["matched"] == matched
    )
    return found


def edit_of(table: pd.DataFrame, name: str) -> Edit:
    """x − αv at every token, prompt included, as a plain hook."""
    alpha = float(row(table, name)["coefficient"])
    known = {item.name: item for item in (PROBE, VALUE, CONTROL)}
    item = known.get(name) or random_control(PROBE, CONFIGURATION.seed)
    return item.edit(-alpha)


def test_rows_and_columns(table: pd.DataFrame) -> None:
    vectors = ["probe", "MLP.v[1,7]", "random", "random_value_vector", "logit_bias"]
    expected = ["base", "policy", "random_weights", *vectors, "random"]
    expected += [name for name in vectors for _ in range(2)]
    assert table["vector"].tolist() == expected
    assert table["role"].tolist()[:8] == ["anchor"] * 3 + ["attribute"] * 2 + ["control"] * 3
    assert table["matched"].tolist() == [False] * 3 + [True] * 5 + [False] * 11
    assert table.columns.tolist() == [
        *("vector", "role", "coefficient", "norm", "matched"),
        *("perplexity", "perplexity_low", "perplexity_high", "attribute_score", "low", "high"),
        *("change", "change_low", "change_high", "f1", "f1_low", "f1_high", "prompts", "windows"),
    ]
    assert table["matched"].dtype == bool
    assert (table["prompts"] == 6).all()
    assert (table["coefficient"] >= 0).all()


def test_matched_settings_have_the_policys_perplexity(table: pd.DataFrame) -> None:
    base, policy = (
        window_losses(lens, texts().windows).perplexity
        for lens in (tiny_pair().base, tiny_pair().policy)
    )
    assert policy > 1.01 * base
    found = table[table["matched"]]["perplexity"]
    assert len(found) == 5
    np.testing.assert_allclose(found, policy, rtol=0.005)
    rise = (found - base) / (policy - base)
    np.testing.assert_allclose(rise, 1, atol=0.03)


@pytest.mark.parametrize("name", ["probe", "MLP.v[1,7]", "random", "random_value_vector"])
def test_a_vector_is_subtracted_at_every_token(table: pd.DataFrame, name: str) -> None:
    """Numbers without a forward pass, and packed texts, are those of a plain hook."""
    found, base = row(table, name), tiny_pair().base
    hooked = evaluate(
        base, texts(), TOKENIZER, VowelShare(), DECODING, edits=[edit_of(table, name)]
    )
    assert found["perplexity"] == pytest.approx(hooked.losses.perplexity, rel=1e-5)
    assert found["attribute_score"] == pytest.approx(hooked.scores.mean())
    assert found["f1"] == pytest.approx(hooked.f1.mean())
    change = hooked.scores - measured().anchors["base"].scores
    assert found["change"] == pytest.approx(change.mean())
    rows = measured().tables["toxicity_continuations"]
    rows = rows[(rows["condition"] == name) & (rows["coefficient"] == found["coefficient"])]
    assert rows["host"].unique().tolist() == ["base"]
    assert tuple(rows["completion"]) == (*hooked.completions, *hooked.window_completions)


def test_the_steered_texts_differ(table: pd.DataFrame) -> None:
    rows = measured().tables["toxicity_continuations"]
    plain = rows[rows["condition"] == "base"]["completion"].tolist()
    strong = table[table["vector"] == "probe"]["coefficient"].max()
    steered = rows[(rows["condition"] == "probe") & (rows["coefficient"] == strong)]
    assert steered["completion"].tolist() != plain[: len(steered)]
    assert rows.columns.tolist() == list(CONTINUATION_COLUMNS)


def test_norms_and_doses(table: pd.DataFrame) -> None:
    sizes = {"probe": PROBE.norm, "MLP.v[1,7]": VALUE.norm, "random": PROBE.norm}
    for name, size in sizes.items():
        own = table[table["vector"] == name]
        np.testing.assert_allclose(own["norm"], own["coefficient"] * size)
        alpha = row(table, name)["coefficient"]
        doses = own[own["f1"].isna()]
        np.testing.assert_allclose(doses["coefficient"], [0.5 * alpha, 2 * alpha])
        assert doses["perplexity"].is_monotonic_increasing
        assert doses["attribute_score"].notna().all()
    equal = row(table[table["f1"].notna()], "random", matched=False)
    assert equal["norm"] == pytest.approx(row(table, "probe")["norm"])
    assert equal["coefficient"] != row(table, "random")["coefficient"]


def test_anchors_are_the_models_themselves(table: pd.DataFrame) -> None:
    anchors = table[table["role"] == "anchor"].set_index("vector")
    assert (anchors[["coefficient", "norm", "change"]].loc["base"] == 0).all()
    for name, lens in (("base", tiny_pair().base), ("policy", tiny_pair().policy)):
        own = evaluate(lens, texts(), TOKENIZER, VowelShare(), DECODING)
        assert anchors["perplexity"][name] == pytest.approx(own.losses.perplexity)
        assert measured().anchors[name].completions == own.completions
        assert anchors["f1"][name] == pytest.approx(own.f1.mean())
    assert set(measured().anchors) == {"base", "policy", "random_weights"}
    assert anchors["perplexity"]["random_weights"] > 2 * anchors["perplexity"]["policy"]


def test_the_logit_bias_is_what_the_probe_does_without_reading_the_context(
    table: pd.DataFrame,
) -> None:
    base = tiny_pair().base

    def logits() -> np.ndarray:
        rows = []
        for window in texts().windows:
            ids = torch.tensor([window])
            rows.append(base.forward(ids, torch.ones_like(ids))[0, :-1].detach().double().numpy())
        return np.concatenate(rows)

    before = logits()
    with base.hooks([edit_of(table, "probe")]):
        bias = (logits() - before).mean(axis=0)
    bias -= bias.mean()
    found = row(table, "logit_bias")
    assert found["norm"] == pytest.approx(found["coefficient"] * np.linalg.norm(bias), rel=1e-4)
    added = LastLayerWindows(base, texts().windows).losses(found["coefficient"], logit_bias=bias)
    assert found["perplexity"] == pytest.approx(added.perplexity, rel=1e-4)
    # Added, not subtracted: the other sign is another perplexity.
    other = LastLayerWindows(base, texts().windows).losses(-found["coefficient"], logit_bias=bias)
    assert abs(other.loss - added.loss) > 1e-3


def test_the_random_control_is_centred() -> None:
    """Not uniform on [0, 1), whose draws all point along (1, …, 1)."""
    draws = np.stack([random_control(PROBE, seed).values for seed in range(800)])
    np.testing.assert_allclose(np.linalg.norm(draws, axis=1), PROBE.norm)
    scale = PROBE.norm / np.sqrt(draws.shape[1])  # standard deviation of an entry
    assert np.abs(draws.mean(axis=0)).max() < 5 * scale / np.sqrt(len(draws))
    assert np.abs(draws.mean(axis=1)).max() < 5 * scale / np.sqrt(draws.shape[1])
    assert abs(pairwise_cosine_mean(draws)) < 0.005
    uniform = np.random.default_rng(0).random(draws.shape)
    assert pairwise_cosine_mean(uniform) > 0.7
    assert random_control(PROBE, 1).name == "random"
    assert random_control(PROBE, 1).space == SITE
    assert not np.allclose(random_control(PROBE, 1).unit, PROBE.unit)


def test_the_same_run_gives_the_same_tables_however_it_is_packed() -> None:
    once, again = (measure(batch_rows=rows).tables for rows in (40, 7))
    for name, table in once.items():
        pd.testing.assert_frame_equal(table, again[name], rtol=1e-5)


def test_a_policy_that_reads_no_worse_cannot_be_matched(caplog: pytest.LogCaptureFixture) -> None:
    base = tiny_pair().base
    with caplog.at_level(logging.WARNING):
        found = measure(models={"base": base, "policy": base}, scorer=None)
    table = found.tables["toxicity_interventions"]
    assert "not above the base's" in caplog.text
    assert not table["matched"].any()
    aim = FALLBACK * window_losses(base, texts().windows).perplexity
    np.testing.assert_allclose(table["perplexity"][2:7], aim, rtol=0.005)
    assert (table["coefficient"][2:] > 0).all()
    assert table[["attribute_score", "change", "low", "change_high"]].isna().all(axis=None)
    assert table["f1"][:8].notna().all()


def test_an_aim_that_no_coefficient_reaches_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsteer_tl.toxicity import interventions

    monkeypatch.setattr(interventions, "coefficient_at", lambda *_, **__: None)
    with caplog.at_level(logging.WARNING):
        table = measure(vectors=[PROBE], controls=[]).tables["toxicity_interventions"]
    assert "no coefficient of probe raises the loss" in caplog.text
    assert not table["matched"].any()
    assert np.isfinite(table["perplexity"]).all()


def test_what_cannot_be_compared_is_refused() -> None:
    base, policy = tiny_pair().base, tiny_pair().policy
    other: LensModel = load_lens_model(random_model("llama", num_hidden_layers=3))
    with pytest.raises(ConfigurationError, match="expected base and policy"):
        measure(models={"base": base})
    with pytest.raises(ConfigurationError, match="'probe' among the latter"):
        measure(vectors=[VALUE])
    with pytest.raises(ConfigurationError, match="not all different"):
        measure(controls=[CONTROL, replace(VALUE)])
    with pytest.raises(ConfigurationError, match="not all different"):
        measure(controls=[replace(CONTROL, name="random")])
    with pytest.raises(ShapeError, match="random_value_vector is zero"):
        measure(controls=[replace(CONTROL, values=np.zeros(32))])
    with pytest.raises(SpaceError, match=r"cannot act at 'resid_post\.2'"):
        measure(models={"base": other, "policy": policy})
    alien = SteeringVector(PROBE.values, SITE, "probe", "x", 1, readouts=("0" * 64,))
    with pytest.raises(SpaceError, match="another model"):
        measure(vectors=[alien])
    assert base.d_vocab == VOCABULARY
