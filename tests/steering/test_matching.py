"""Coefficients of controls that move the model as far as v*."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.steering import matching
from dsteer_tl.steering.interventions import Direction, Intervention
from dsteer_tl.steering.matching import match_by_kl, scale_for
from dsteer_tl.steering.teacher_forced import HOSTS, Setting, score_sequences
from tests.steering.tiny_steering import SEQUENCES, at, bias, counted_passes
from tests.tiny_pairs import tiny_pair

COEFFICIENTS = (-2.0, -0.5, 0.0, 0.5, 1.0, 2.0)
GRID = matching._GRID


def times(item: Intervention, factor: float) -> Intervention:
    return replace(
        item,
        name="control",
        vectors=tuple(v.with_values(factor * v.values, "control") for v in item.vectors),
    )


def match(
    target: Intervention, controls: list[Intervention], direction: Direction = "interpolate"
) -> list[Setting]:
    return match_by_kl(
        tiny_pair("llama"), target, controls, COEFFICIENTS, SEQUENCES, direction, progress=False
    )


@pytest.mark.parametrize("direction", ["interpolate", "invert"])
@pytest.mark.parametrize("site", ["h", "resid_post.0"])
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_multiple_of_the_vector_gets_the_inverse_scale(
    site: str, factor: float, direction: Direction
) -> None:
    target = at(site)
    (found,) = match(target, [times(target, factor)], direction)
    assert found.matching == "kl" and found.coefficients == COEFFICIENTS
    np.testing.assert_allclose(found.scales, np.array(COEFFICIENTS) / factor, rtol=0.03)
    assert found.scales[COEFFICIENTS.index(0.0)] == 0.0


def mean_kl(setting: Setting, direction: Direction) -> np.ndarray:
    (scored,) = score_sequences(tiny_pair("llama"), [setting], SEQUENCES, direction, progress=False)
    total: np.ndarray = getattr(scored, f"kl_{HOSTS[direction]}")
    return total.sum(axis=1) / scored.tokens.sum()


@pytest.mark.parametrize("direction", ["interpolate", "invert"])
def test_matched_controls_have_the_kl_of_the_target(direction: Direction) -> None:
    target = at("h")
    controls = [at("h", seed=5, name="random"), bias(size=0.3)]
    found = match(target, controls, direction)
    expected = mean_kl(Setting.by_norm(target, COEFFICIENTS), direction)
    for setting, control in zip(found, controls, strict=True):
        assert setting.intervention is control
        np.testing.assert_allclose(mean_kl(setting, direction), expected, rtol=0.05, atol=1e-9)
        assert [np.sign(scale) for scale in setting.scales] == [np.sign(c) for c in COEFFICIENTS]


def test_a_control_that_does_nothing_gets_the_largest_scale() -> None:
    idle = Intervention(name="idle", logit_bias=np.ones(160))
    (found,) = match(at("h"), [idle])
    expected = [np.sign(value) * GRID[-1] for value in COEFFICIENTS]
    assert found.scales == pytest.approx(expected)


def test_no_controls_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "score_sequences", None)
    assert match(at("h"), []) == []


@pytest.mark.parametrize("direction", ["interpolate", "invert"])
def test_matching_at_h_runs_the_host_once(direction: Direction) -> None:
    """All controls and both senses share its pass, and the other model has nothing to say."""
    with counted_passes() as passes:
        match(at("h"), [at("h", seed=5, name="random"), bias(size=0.3)], direction)
    assert passes == [getattr(tiny_pair("llama"), HOSTS[direction]).name]


@settings(deadline=None, max_examples=100)
@given(
    factor=st.floats(1e-3, 1e3),
    power=st.floats(0.5, 4.0),
    scale=st.floats(0.13, 60.0),
)
def test_power_laws_are_inverted_exactly(factor: float, power: float, scale: float) -> None:
    """KL = a sᵖ is a line in the logarithms, where the interpolation is linear."""
    curve = factor * np.array(GRID) ** power
    assert scale_for(factor * scale**power, GRID, curve) == pytest.approx(scale, rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(factor=st.floats(1e-3, 1e3), scale=st.floats(1e-6, 0.125))
def test_below_the_grid_divergence_is_quadratic(factor: float, scale: float) -> None:
    curve = factor * np.array(GRID) ** 2
    assert scale_for(factor * scale**2, GRID, curve) == pytest.approx(scale, rel=1e-9)


def test_edges_of_a_curve() -> None:
    curve = np.array([0.1, 0.4, 0.3, 0.8])
    scales = (1.0, 2.0, 4.0, 8.0)
    assert scale_for(0.0, scales, curve) == 0.0
    assert scale_for(5.0, scales, curve) == pytest.approx(8.0)  # out of reach
    assert scale_for(0.8, scales, curve) == pytest.approx(8.0)
    # A dip by rounding is passed over: 0.4 is reached at 2 already.
    assert scale_for(0.4 - 1e-12, scales, curve) == pytest.approx(2.0)
    assert scale_for(1.0, scales, np.zeros(4)) == pytest.approx(8.0)
