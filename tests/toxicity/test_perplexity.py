"""Losses of windows: against forward passes of one window, and without a pass at the last layer."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.directions import SteeringVector
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import LensModel, load_lens_model
from dsteer_tl.sites import resid_post
from dsteer_tl.toxicity import perplexity
from dsteer_tl.toxicity.perplexity import (
    LastLayerWindows,
    WindowLosses,
    coefficient_at,
    window_losses,
)
from tests.models import VOCABULARY, random_model
from tests.steering.tiny_steering import WIDTH, tokens, vector

WINDOWS = [tokens(length, seed) for seed, length in enumerate((9, 2, 14, 9, 5))]
VECTOR = np.random.default_rng(0).normal(size=WIDTH)


@cache
def lens_of(architecture: str) -> LensModel:
    return load_lens_model(random_model(architecture))


def last(lens: LensModel, values: np.ndarray = VECTOR) -> SteeringVector:
    return SteeringVector(values, resid_post(lens.n_layers - 1), "v", "x", 1)


def one_by_one(lens: LensModel, bias: np.ndarray | None = None) -> np.ndarray:
    """Every window by itself, in float64 from the logits on."""
    nats = []
    for window in WINDOWS:
        ids = torch.tensor([window])
        logits = lens.forward(ids, torch.ones_like(ids))[0].detach().double()
        logits = logits if bias is None else logits + torch.from_numpy(bias)
        log_p = torch.log_softmax(logits, -1)
        nats.append(-sum(float(log_p[i, token]) for i, token in enumerate(window[1:])))
    return np.array(nats)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("budget", [1, 20, 4096])
def test_padding_and_batches_change_nothing(architecture: str, budget: int) -> None:
    lens = lens_of(architecture)
    found = window_losses(lens, WINDOWS, token_budget=budget)
    np.testing.assert_allclose(found.nats, one_by_one(lens), rtol=1e-5)
    assert found.tokens.tolist() == [8, 1, 13, 8, 4]
    assert len(found) == 5


def test_large_vocabularies_shorten_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    lens, widest = lens_of("llama"), []
    before = lens.forward
    monkeypatch.setattr(
        lens, "forward", lambda ids, mask: (widest.append(ids.numel()), before(ids, mask))[1]
    )
    monkeypatch.setattr(perplexity, "_PASS_LOGITS", 20 * VOCABULARY)
    found = window_losses(lens, WINDOWS)
    assert max(widest) <= 20
    np.testing.assert_allclose(found.nats, one_by_one(lens), rtol=1e-5)


def test_perplexity_weighs_tokens_and_not_windows() -> None:
    losses = WindowLosses(nats=np.array([2.0, 12.0]), tokens=np.array([1, 3]))
    assert losses.loss == 3.5
    assert losses.perplexity == pytest.approx(np.exp(3.5))
    interval = losses.interval(draws=500, seed=0)
    # The only resamples: the first window twice, both, the second twice.
    assert (interval.low, interval.high) == pytest.approx((np.exp(2), np.exp(4)))
    assert interval.value == losses.perplexity
    alone = WindowLosses(nats=np.array([2.0]), tokens=np.array([1])).interval(draws=9, seed=0)
    assert alone.value == pytest.approx(np.exp(2))
    assert np.isnan([alone.low, alone.high]).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_the_last_layer_without_a_pass_is_the_hooked_model(architecture: str) -> None:
    lens = lens_of(architecture)
    windows = LastLayerWindows(lens, WINDOWS, token_budget=20)
    assert len(windows) == 5
    plain = windows.losses()
    np.testing.assert_allclose(plain.nats, one_by_one(lens), rtol=1e-5)
    for coefficient in (-1.3, 0.0, 25.0):
        with lens.hooks([last(lens).edit(coefficient)]):
            expected = one_by_one(lens)
        found = windows.losses(coefficient, vector=VECTOR)
        np.testing.assert_allclose(found.nats, expected, rtol=2e-5)
        assert found.tokens.tolist() == plain.tokens.tolist()
        edits = [last(lens).edit(coefficient)]
        hooked = window_losses(lens, WINDOWS, edits=edits, token_budget=20)
        np.testing.assert_allclose(hooked.nats, expected, rtol=2e-5)
    assert abs(windows.losses(1.0, vector=VECTOR).loss - plain.loss) > 1e-3


def test_half_precision_adds_as_the_hook_does() -> None:
    lens = load_lens_model(random_model("llama").to(torch.bfloat16))
    windows = LastLayerWindows(lens, WINDOWS)
    assert windows.rows.dtype == torch.bfloat16
    hooked = window_losses(lens, WINDOWS, edits=[last(lens).edit(0.7)]).nats
    found = windows.losses(0.7, vector=VECTOR)
    np.testing.assert_allclose(found.nats, hooked, rtol=1e-3)


def test_blocks_bound_the_logits_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lens, seen = lens_of("llama"), []
    whole = LastLayerWindows(lens, WINDOWS).losses(0.7, vector=VECTOR)
    monkeypatch.setattr(perplexity, "_BLOCK_LOGITS", 3 * VOCABULARY)
    windows = LastLayerWindows(lens, WINDOWS)
    readout = windows.readout
    windows.readout = lambda rows: (seen.append(len(rows)), readout(rows))[1]
    np.testing.assert_allclose(windows.losses(0.7, vector=VECTOR).nats, whole.nats, rtol=1e-5)
    assert max(seen) == 3
    assert sum(seen) == whole.tokens.sum()


def test_a_logit_bias_is_added_to_the_logits() -> None:
    lens = lens_of("gemma2")  # after the soft-capping
    windows = LastLayerWindows(lens, WINDOWS)
    bias = np.random.default_rng(1).normal(size=VOCABULARY)
    found = windows.losses(-0.8, logit_bias=bias)
    np.testing.assert_allclose(found.nats, one_by_one(lens, -0.8 * bias), rtol=1e-5)
    constant = windows.losses(3.0, logit_bias=np.ones(VOCABULARY))
    np.testing.assert_allclose(constant.nats, windows.losses().nats, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_mean_logit_change_is_that_of_hooked_passes(architecture: str) -> None:
    lens = lens_of(architecture)

    def logits() -> np.ndarray:
        rows = []
        for window in WINDOWS:
            ids = torch.tensor([window])
            rows.append(lens.forward(ids, torch.ones_like(ids))[0, :-1].detach().double().numpy())
        return np.concatenate(rows)

    before = logits()
    with lens.hooks([last(lens).edit(-2.0)]):
        change = (logits() - before).mean(axis=0)
    found = LastLayerWindows(lens, WINDOWS).mean_logit_change(-2.0, VECTOR)
    np.testing.assert_allclose(found, change - change.mean(), atol=1e-4)
    assert found.mean() == pytest.approx(0, abs=1e-12)
    assert np.abs(found).max() > 0.1


def test_rows_are_those_that_predict() -> None:
    lens = lens_of("llama")
    windows = LastLayerWindows(lens, WINDOWS, token_budget=10)
    assert windows.rows.shape == (34, WIDTH)
    norms = windows.rows.double().norm(dim=1)
    assert windows.mean_norm == pytest.approx(float(norms.mean()), rel=1e-6)
    assert windows.site == "resid_post.1"


def test_what_has_no_loss_is_refused() -> None:
    lens = lens_of("llama")
    for make in (window_losses, LastLayerWindows):
        with pytest.raises(ShapeError, match="window 1 has 1 tokens, expected at least 2"):
            make(lens, [(3, 4), (5,)])
        with pytest.raises(ShapeError, match="found no windows"):
            make(lens, [])
        with pytest.raises(ShapeError, match="longer than the context"):
            make(lens, [tokens(65)])
    wide = vector("resid_post.1", width=WIDTH + 1).values
    with pytest.raises(ShapeError, match=r"\(33,\) cannot be added at 'resid_post.1', whose rows"):
        LastLayerWindows(lens, WINDOWS).losses(1.0, vector=wide)


@settings(deadline=None)
@given(
    power=st.floats(0.8, 4.0),
    size=st.floats(1e-3, 1e3),
    aim=st.floats(1e-3, 1.0),
    start=st.floats(1e-3, 1e3),
)
def test_a_coefficient_is_found_on_any_power(power, size, aim, start) -> None:
    calls = []

    def rise(coefficient: float) -> float:
        calls.append(coefficient)
        return float((coefficient / size) ** power)

    found = coefficient_at(rise, aim, start=start, tolerance=0.01 * aim)
    assert found is not None
    assert rise(found) == pytest.approx(aim, rel=0.011)
    assert len(calls) < 35
    assert min(calls) > 0


def test_a_quadratic_takes_few_evaluations() -> None:
    calls = []
    found = coefficient_at(
        lambda c: (calls.append(c), 0.1 * c * c + 0.01 * c)[1], 0.3, start=0.2, tolerance=1e-3
    )
    assert found == pytest.approx(1.683, abs=5e-3)
    assert len(calls) <= 6


@pytest.mark.parametrize(
    "rise",
    [
        lambda c: 0.2 * c * c - 0.3 * c,  # first down: the vector improves the text
        lambda c: float("nan") if c > 3 else 0.05 * c * c,  # overflows
        lambda c: np.inf if c > 3 else 0.05 * c * c,
        lambda c: 0.21 * (1 - np.exp(-c)),  # flattens just above the aim
    ],
)
def test_awkward_curves_are_met_too(rise) -> None:
    for start in (0.01, 1.0, 50.0):
        found = coefficient_at(rise, 0.2, start=start, tolerance=0.004)
        assert found is not None
        assert abs(rise(found) - 0.2) <= 0.004


def test_a_rise_that_is_never_reached_is_none() -> None:
    calls = []
    assert (
        coefficient_at(
            lambda c: (calls.append(c), 0.1 * (1 - np.exp(-c)))[1], 0.2, start=1.0, tolerance=0.001
        )
        is None
    )
    assert len(calls) < 20
    assert coefficient_at(lambda _: 0.0, 0.2, start=1.0, tolerance=0.001) is None
    jump = coefficient_at(lambda c: float(c > 1), 0.5, start=1.0, tolerance=0.001)
    assert jump is None
