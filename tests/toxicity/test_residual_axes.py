from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.errors import ShapeError
from dsteer_tl.toxicity.residual_axes import (
    ResidualRows,
    fit_axes,
    held_out_coordinates,
    shown_places,
)
from tests.toxicity.synthetic_batches import batch_of


def separation(table: pd.DataFrame, control: str) -> float:
    """How far the means of the models are apart along the axis."""
    means = table[table["control"] == control].groupby("model")["axis"].mean()
    return float(means["policy"] - means["base"])


def noise(seed: int, n: int = 40, d: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, d)), generator.standard_normal((n, d))


def test_noise_is_far_apart_on_its_own_axis_and_not_on_that_of_others():
    """The trap of claim 26: an axis shown on the data that it was fitted on."""
    base, policy = noise(0)
    axes = fit_axes(base, policy)
    in_sample = axes.coordinates(policy)[:, 0].mean() - axes.coordinates(base)[:, 0].mean()
    assert in_sample == pytest.approx(axes.axis_size)
    # Two standard normal clouds of 40: √(300 · 2/40) apart, though nothing parts them.
    assert in_sample == pytest.approx(np.sqrt(15), rel=0.1)
    held_out = [
        separation(held_out_coordinates(*noise(seed), np.arange(40), seed=seed), "policy")
        for seed in range(20)
    ]
    assert abs(np.mean(held_out)) < 0.25 and np.max(np.abs(held_out)) < 1.2


def test_a_planted_offset_is_seen_on_prompts_that_did_not_fit_it():
    base, change = noise(1, d=50)
    offset = np.zeros(50)
    offset[7] = 6.0
    table = held_out_coordinates(base, base + offset + 0.1 * change, np.arange(40), seed=0)
    assert separation(table, "policy") == pytest.approx(6, rel=0.05)
    size = table.loc[table["control"] == "policy", "axis_size"]
    assert size.nunique() == 1 and size.iloc[0] == pytest.approx(6, rel=0.05)
    # Swapped labels leave an axis, but not two sides of it.
    permuted = [
        separation(
            held_out_coordinates(base, base + offset + 0.1 * change, np.arange(40), seed=s),
            "permuted",
        )
        for s in range(20)
    ]
    assert abs(np.mean(permuted)) < 1.0


def test_the_shown_half_is_not_the_fitted_one_and_both_controls_show_it():
    base, policy = noise(2, n=11, d=4)
    prompts = np.arange(100, 111)
    table = held_out_coordinates(base, policy, prompts, seed=3)
    assert list(table.columns) == ["control", "model", "prompt", "axis", "pc1", "axis_size"]
    shown = table.groupby(["control", "model"])["prompt"].apply(sorted)
    assert len(shown) == 4 and all(found == shown.iloc[0] for found in shown)
    assert len(shown.iloc[0]) == 6
    # Shown prompts have no part in the axes: change them, and the others' axes stay.
    row = int(shown.iloc[0][0]) - 100
    moved = base.copy()
    moved[row] += 50
    again = held_out_coordinates(moved, policy, prompts, seed=3)
    changed = table["axis"] != again["axis"]
    assert set(table.loc[changed, "prompt"]) == {row + 100}
    assert table["axis_size"].equals(again["axis_size"])


def test_permuted_shows_the_same_residuals_under_swapped_names():
    # With one column the axis is ±1; five prompts are fitted on, so swaps do not cancel.
    base, policy = np.arange(10.0)[:, None], 100 + np.arange(10.0)[:, None]
    table = held_out_coordinates(base, policy, np.arange(10), seed=1)
    permuted = table[table["control"] == "permuted"].pivot_table(
        index="prompt", columns="model", values="axis"
    )
    gaps = (permuted["policy"] - permuted["base"]).to_numpy()
    np.testing.assert_allclose(np.abs(gaps), 100)
    assert len(np.unique(np.sign(gaps))) == 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(2, 9))
def test_axes_are_unit_and_orthogonal_and_centred(seed: int, n: int, d: int):
    base, policy = noise(seed, n, d)
    axes = fit_axes(base, policy)
    assert np.linalg.norm(axes.axis) == pytest.approx(1)
    assert np.linalg.norm(axes.pc1) == pytest.approx(1)
    assert abs(axes.axis @ axes.pc1) < 1e-9
    assert axes.pc1[np.argmax(np.abs(axes.pc1))] > 0
    both = axes.coordinates(np.concatenate([base, policy]))
    np.testing.assert_allclose(both.mean(axis=0), 0, atol=1e-9)
    # No other direction orthogonal to the axis has more variance.
    across = np.eye(d) - np.outer(axes.axis, axes.axis)
    pooled = (np.concatenate([base, policy]) - axes.centre) @ across
    largest = np.linalg.norm(pooled, ord=2) ** 2 / len(pooled)
    assert both[:, 1].var() == pytest.approx(largest)


def test_models_that_do_not_differ_have_no_axis():
    base, _ = noise(4, n=6, d=5)
    table = held_out_coordinates(base, base, np.arange(6), seed=0)
    assert (table["axis_size"] == 0).all() and (table["axis"] == 0).all()


def test_places_spread_over_the_depth_and_end_with_the_last():
    assert shown_places(24) == ("resid_mid.0", "resid_mid.8", "resid_mid.15", "resid_mid.23")
    assert shown_places(2) == ("resid_mid.0", "resid_mid.1")
    assert shown_places(12, count=1) == ("resid_mid.11",)


def test_rows_come_in_any_batches():
    base, policy = (rows.astype(np.float32) for rows in noise(5, n=9, d=6))
    tables = []
    for order in (np.arange(9), np.array([3, 8, 0, 1, 7, 2, 5, 4, 6])):
        rows = ResidualRows(("resid_mid.4",))
        for part in np.array_split(order, 3):
            rows.add(
                batch_of(
                    {
                        "base": {"resid_mid.4": base[part]},
                        "policy": {"resid_mid.4": policy[part]},
                    },
                    part,
                    np.full(len(part), "last_prompt", dtype=object),
                )
            )
        tables.append(rows.table(seed=2))
    assert tables[0].equals(tables[1])
    assert set(tables[0]["place"]) == {"resid_mid"} and set(tables[0]["layer"]) == {4}
    expected = held_out_coordinates(base, policy, np.arange(9), seed=2)
    assert tables[0].drop(columns=["place", "layer"]).equals(expected)


def test_too_few_prompts_and_unpaired_rows_are_refused():
    base, policy = noise(0, n=3, d=4)
    with pytest.raises(ShapeError, match="found 3 prompts, expected at least 4"):
        held_out_coordinates(base, policy, np.arange(3), seed=0)
    with pytest.raises(ShapeError, match=r"\(3, 4\) and \(2, 4\)"):
        fit_axes(base, policy[:2])
