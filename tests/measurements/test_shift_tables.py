from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.cosines import cosines_to_mean
from dsteer_tl.measurements import MeasurementConfiguration
from dsteer_tl.measurements.shift_statistics import (
    cosine_null_table,
    cosine_table,
    mass_table,
    null_table,
    shift_table,
)
from dsteer_tl.spectra import row_entropy
from tests.measurements.synthetic import QUICK, SITES, capture, constant, normal, subspace


def at_h(table: pd.DataFrame) -> pd.Series:
    return table[table["site"] == "h"].iloc[0]


def test_a_constant_shift_is_one_direction_and_nothing_else() -> None:
    base = normal(12, 16, seed=1)
    row = at_h(shift_table(capture(base, constant(norm=3.0))))
    for column in ("cos_mean", "cos_loo_mean", "u1_v_cos", "effective_rank"):
        assert row[column] == pytest.approx(1, abs=1e-6), column
    for column in ("cos_sd", "sigma_ratio", "entropy_shift"):
        assert row[column] == pytest.approx(0, abs=1e-6), column
    assert row["v_norm"] == pytest.approx(3, rel=1e-6)
    assert row["relative_norm"] == pytest.approx(np.mean(3 / np.linalg.norm(base, axis=1)))
    assert row["entropy_base"] == pytest.approx(row_entropy(base), abs=1e-6)
    assert row["entropy_policy"] == pytest.approx(row_entropy(base + constant()), abs=1e-6)
    assert row["n"] == 12


def test_orthogonal_shifts_agree_only_with_themselves() -> None:
    n = 8
    row = at_h(shift_table(capture(normal(n, 16, seed=1), 2 * np.eye(n, 16))))
    assert row["cos_mean"] == pytest.approx(1 / np.sqrt(n), abs=1e-6)
    assert row["cos_loo_mean"] == pytest.approx(0, abs=1e-6)
    assert row["sigma_ratio"] == pytest.approx(1, abs=1e-6)
    assert row["entropy_shift"] == pytest.approx(np.log(n), abs=1e-6)
    assert row["effective_rank"] == pytest.approx(n, abs=1e-5)
    assert row["pc1_share_centred"] == pytest.approx(1 / (n - 1), abs=1e-6)
    assert row["v_norm"] == pytest.approx(2 / np.sqrt(n), abs=1e-6)


def test_sites_are_in_the_order_of_the_forward_pass() -> None:
    table = shift_table(capture(normal(6, 8, seed=0), normal(6, 8, seed=1)))
    assert tuple(table["site"]) == SITES


def test_a_kind_with_a_single_row_is_left_out() -> None:
    one = capture(normal(1, 8, seed=0), normal(1, 8, seed=1))
    assert shift_table(one).empty


def test_rows_of_one_prompt_are_left_out_together() -> None:
    # Prompt 0 has one direction, prompt 1 another: each row agrees with its own prompt alone.
    shifts = np.repeat(np.eye(2, 8), 3, axis=0)
    table = cosine_table(capture(normal(6, 8, seed=0), shifts, prompts=[0, 0, 0, 1, 1, 1]))
    assert table["cos"].to_numpy() == pytest.approx(1 / np.sqrt(2), abs=1e-6)
    assert table["cos_loo"].to_numpy() == pytest.approx(0, abs=1e-6)
    assert list(table[table["site"] == "h"]["prompt"]) == [0, 0, 0, 1, 1, 1]


def test_cosines_are_in_the_order_of_prompts() -> None:
    shifts = normal(7, 8, seed=3)
    table = cosine_table(capture(normal(7, 8, seed=0), shifts))
    rows = table[table["site"] == "h"]
    assert rows["cos"].to_numpy() == pytest.approx(cosines_to_mean(shifts), abs=1e-6)


def test_cosine_nulls_break_a_constant_shift() -> None:
    others = {"random_weights": normal(40, 16, seed=9)}
    found = capture(normal(40, 16, seed=1), constant(40), others=others)
    table = cosine_null_table(found, QUICK)
    means = table[table["site"] == "h"].groupby("null")["cos"].mean()
    assert set(means.index) == {"sign_flip", "centred_pairs", "random_weights"}
    assert abs(means["sign_flip"]) < 0.5
    assert abs(means["centred_pairs"]) < 0.2
    assert abs(means["random_weights"]) < 0.3


def test_without_a_captured_null_model_there_is_no_such_null() -> None:
    found = capture(normal(8, 16, seed=1), constant(8))
    assert "random_weights" not in set(cosine_null_table(found, QUICK)["null"])
    assert "random_weights" not in set(null_table(found, QUICK)["null"])


def test_a_gaussian_with_the_same_mean_is_as_parallel_as_a_constant_shift() -> None:
    table = null_table(capture(normal(12, 16, seed=1), constant()), QUICK)
    rows = table[(table["site"] == "h") & (table["null"] == "gaussian_matched")]
    found = rows.set_index("statistic")["value"]
    assert found["sigma_ratio"] == pytest.approx(0, abs=1e-6)
    assert found["u1_v_cos"] == pytest.approx(1, abs=1e-6)


def test_nulls_repeat_with_their_seed_and_change_with_another() -> None:
    others = {"random_weights": normal(10, 16, seed=9)}
    found = capture(normal(10, 16, seed=1), normal(10, 16, seed=2), others=others)
    first, again = (null_table(found, MeasurementConfiguration(null_draws=3)) for _ in range(2))
    other = null_table(found, MeasurementConfiguration(null_draws=3, seed=1))
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(first["value"], other["value"])


def test_null_names_and_statistics() -> None:
    others = {"random_weights": normal(10, 16, seed=9)}
    table = null_table(capture(normal(10, 16, seed=1), constant(10), others=others), QUICK)
    spectral = {"sigma_ratio", "sigma_ratio_centred", "u1_v_cos"}
    found = table.groupby("null")["statistic"].agg(set)
    assert found["gaussian_matched"] == spectral
    assert found["permutation"] == spectral
    assert found["sign_flip"] == {"cos_loo_mean"}
    assert found["random_weights"] == spectral | {"cos_loo_mean", "relative_norm"}


def test_mass_of_a_constant_shift_and_of_its_null() -> None:
    table = mass_table(capture(normal(12, 16, seed=1), constant()), QUICK)
    first = table[(table["site"] == "h") & ~table["centred"] & (table["component"] == 1)].iloc[0]
    assert first["mass"] == pytest.approx(1, abs=1e-6)
    assert first["null"] == pytest.approx(1, abs=1e-6)


def test_mass_is_even_over_a_planted_subspace() -> None:
    table = mass_table(capture(normal(400, 32, seed=1), subspace(400)), QUICK)
    rows = table[(table["site"] == "h") & ~table["centred"]]
    assert rows["mass"].to_numpy() == pytest.approx(1 / 8, abs=0.05)
    assert rows["mass"].sum() == pytest.approx(1, abs=1e-6)
    assert rows["null"].sum() < 0.6  # the control spreads over all 32 dimensions


@settings(deadline=None, max_examples=15)
@given(st.integers(4, 20), st.integers(3, 12), st.integers(0, 99))
def test_mass_sums_to_one_at_most(n: int, d_model: int, seed: int) -> None:
    found = capture(normal(n, d_model, seed=seed), normal(n, d_model, seed=seed + 1), sites=["h"])
    table = mass_table(found, QUICK)
    sums = table.groupby("centred")[["mass", "null"]].sum()
    assert (sums <= 1 + 1e-9).all(axis=None)
    assert (table["mass"] >= 0).all()
    assert (table["ci_low"] <= table["mass"]).all()
    assert (table["mass"] <= table["ci_high"]).all()
