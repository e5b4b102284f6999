"""Shifts along a cross-fitted v*: closed form, no prompt in its own vector, the table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsteer_tl.attribution.token_shifts import (
    cross_fitted,
    prompt_numbers,
    shift_parts,
    vector_kind,
)
from dsteer_tl.capture import CaptureConfiguration, capture_shifts
from dsteer_tl.errors import ShapeError
from dsteer_tl.measurements import MeasurementConfiguration
from dsteer_tl.measurements.margin_tables import token_shift_table
from dsteer_tl.preferences import EncodedPair
from tests.measurements.synthetic import capture, normal
from tests.tiny_pairs import PAIRS, encoded_pairs, probes, tiny_pair

PROMPTS = [0, 0, 1, 2, 2, 3, 4, 5]


def fitted(shifts: np.ndarray, seed: int = 0) -> tuple[np.ndarray, frozenset[int]]:
    found = cross_fitted(capture(0 * shifts, shifts, prompts=PROMPTS), "h", seed)
    return found.directions, found.first


@given(st.integers(0, 20), st.integers(0, 5))
def test_no_prompt_is_in_its_own_vector(seed: int, prompt: int) -> None:
    shifts = normal(8, 6, seed=1).astype(np.float32).astype(np.float64)
    directions, first = fitted(shifts, seed)
    moved = shifts.copy()
    moved[np.array(PROMPTS) == prompt] += 5.0
    changed, again = fitted(moved, seed)
    assert first == again
    own, other = (0, 1) if prompt in first else (1, 0)
    np.testing.assert_array_equal(changed[own], directions[own])
    assert np.abs(changed[other] - directions[other]).max() > 0.01
    rows = ~np.isin(PROMPTS, list(first))
    mean = shifts[rows].mean(axis=0)
    np.testing.assert_allclose(directions[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_prompts_that_were_not_captured_are_in_no_vector() -> None:
    found = cross_fitted(capture(normal(8, 6, seed=0), normal(8, 6, seed=1)), "h", 0)
    prompts = np.array([99, min(found.first)])
    assert found.half(prompts).tolist() == [1, 0]
    assert found.position_kind == "last_prompt"


def test_one_prompt_is_too_few() -> None:
    rows = normal(3, 4, seed=0)
    with pytest.raises(ShapeError, match="found 1 prompts with rows of kind 'response'"):
        cross_fitted(capture(rows, rows, prompts=[7, 7, 7], kind="response"), "h", 0)


def test_kinds_in_order() -> None:
    rows = normal(3, 4, seed=0)
    assert vector_kind(capture(rows, rows, kind="token.0")) == "token.0"
    assert (
        vector_kind(
            capture_shifts(
                tiny_pair(), probes(), configuration=CaptureConfiguration(progress=False)
            )
        )
        == "response"
    )


def test_parts_in_closed_form() -> None:
    directions = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    shifts = np.array([[3.0, 0, 4.0], [3.0, 0, 4.0], [0, 0, 0], [0, -2.0, 0]])
    found = shift_parts(shifts, directions, np.array([0, 1, 0, 1]), np.eye(3))
    np.testing.assert_allclose(found.along, [3, 0, 0, -2])
    np.testing.assert_allclose(found.off, [4, 5, 0, 0])
    np.testing.assert_allclose(found.cos, [0.6, 0, 0, -1])
    np.testing.assert_allclose(found.random, [(0.6 + 0.8) / 3, 1.4 / 3, 0, 1 / 3])


def test_prompts_are_numbered_by_their_first_pair() -> None:
    items = [EncodedPair(ids, (1,), (2,)) for ids in ((1, 2), (3,), (1, 2), (3,), (4,))]
    assert prompt_numbers(items).tolist() == [0, 1, 0, 1, 4]
    assert prompt_numbers(encoded_pairs()).tolist() == [probe.prompt for probe in probes()]


def test_the_table_has_the_captured_shifts() -> None:
    """Rows of the capture's kind `response` are states that predict the token after them."""
    pair = tiny_pair()
    shift_set = capture_shifts(pair, probes(), configuration=CaptureConfiguration(progress=False))
    configuration = MeasurementConfiguration(token_budget=200)
    table = token_shift_table(pair, shift_set, encoded_pairs(), configuration, progress=False)
    assert list(table.columns) == [
        *("pair", "prompt", "prompt_text", "offset", "token_id", "token"),
        *("along", "off", "cos", "cos_random", "log_probability_change"),
    ]
    expected = [t for item in encoded_pairs() for t in item.chosen_ids]
    assert table["token_id"].tolist() == expected
    texts = table.groupby("pair")["token"].agg("".join)
    assert texts.tolist() == [pair_.chosen for pair_ in PAIRS]
    assert set(table["prompt_text"]) == {pair_.prompt for pair_ in PAIRS}
    shifts, prompts = shift_set.shifts("h", "response"), shift_set.prompts("response")
    first, _ = shift_set.halves("response", 0)
    positions = shift_set.positions("response")
    table = table.set_index(["prompt", "offset"])
    assert len(shifts) > 20
    for shift, prompt, position in zip(shifts, prompts, positions, strict=True):
        others = np.array([(p in first) != (prompt in first) for p in prompts])
        v = shifts[others].mean(axis=0)
        v /= np.linalg.norm(v)
        offset = position + 1 - len(encoded_pairs()[prompt].prompt_ids)
        row = table.loc[(prompt, offset)]
        assert row["along"] == pytest.approx(shift @ v, abs=1e-4)
        assert row["off"] == pytest.approx(np.linalg.norm(shift - (shift @ v) * v), abs=1e-4)
        assert row["cos"] == pytest.approx(shift @ v / np.linalg.norm(shift), abs=1e-4)
    assert table["cos_random"].between(0.0, 1.0).all()
    assert table["log_probability_change"].abs().max() > 0.01
