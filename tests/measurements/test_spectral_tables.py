from __future__ import annotations

import numpy as np
import pytest

from dsteer_tl.measurements.spectral import entropy_draws, entropy_table, spectra_table
from dsteer_tl.measurements.state_tables import cloud_table
from dsteer_tl.spectra import row_entropy
from tests.measurements.synthetic import QUICK, capture, constant, normal


def test_singular_values_are_over_the_root_of_the_number_of_rows() -> None:
    shifts = np.zeros((6, 8))
    shifts[0, 0], shifts[1, 1] = 4.0, 3.0
    table = spectra_table(capture(np.ones((6, 8)), shifts))
    rows = table[(table["site"] == "h") & (table["matrix"] == "shift")]
    assert list(rows["index"]) == [1, 2, 3, 4, 5, 6]
    expected = np.array([4, 3, 0, 0, 0, 0]) / np.sqrt(6)
    assert rows["singular_value"].to_numpy() == pytest.approx(expected, abs=1e-6)
    assert rows["share"].to_numpy()[:2] == pytest.approx([16 / 25, 9 / 25], abs=1e-6)


def test_centring_takes_a_constant_shift_away() -> None:
    table = spectra_table(capture(normal(12, 16, seed=1), constant(norm=3.0)))
    first = table[(table["site"] == "h") & (table["index"] == 1)].set_index("matrix")
    assert first.loc["shift", "singular_value"] == pytest.approx(3, rel=1e-6)
    assert first.loc["shift_centred", "singular_value"] < 1e-5


def test_matrices_are_those_that_were_captured() -> None:
    base, shifts = normal(6, 8, seed=0), normal(6, 8, seed=1)
    without = set(spectra_table(capture(base, shifts))["matrix"])
    assert without == {"base", "policy", "shift", "shift_centred"}
    other = capture(base, shifts, others={"random_weights": normal(6, 8, seed=2)})
    assert set(spectra_table(other)["matrix"]) == without | {"random_weights"}
    assert set(entropy_table(other, QUICK)["matrix"]) == {
        *("base", "policy", "shift", "random_weights", "policy_minus_base", "random_minus_base")
    }


@pytest.mark.parametrize(("n", "d_model"), [(6, 11), (11, 6)])
def test_entropy_draws_are_entropies_of_resampled_prompts(n: int, d_model: int) -> None:
    rows, labels = normal(n, d_model, seed=0), np.arange(n) // 2
    found = entropy_draws(rows, labels, draws=4, seed=5)
    assert found[0] == pytest.approx(row_entropy(rows), abs=1e-9)
    groups = labels.max() + 1
    generator = np.random.default_rng(5)
    for value in found[1:]:
        drawn = generator.integers(0, groups, groups)
        resampled = np.concatenate([rows[labels == group] for group in drawn])
        assert value == pytest.approx(row_entropy(resampled), abs=1e-9)


def test_entropies_and_their_difference() -> None:
    base, shifts = normal(20, 16, seed=0), constant(20, norm=8.0)
    table = entropy_table(capture(base, shifts), QUICK)
    rows = table[table["site"] == "h"].set_index("matrix")
    before, after = row_entropy(base), row_entropy(base + shifts)
    assert rows.loc["base", "entropy"] == pytest.approx(before, abs=1e-5)
    assert rows.loc["policy", "entropy"] == pytest.approx(after, abs=1e-5)
    assert rows.loc["policy_minus_base", "entropy"] == pytest.approx(after - before, abs=1e-5)
    assert rows.loc["policy_minus_base", "ci_high"] < 0  # a long mean swallows the spectrum
    assert rows.loc["shift", "entropy"] == pytest.approx(0, abs=1e-5)


def test_clouds_of_a_constant_shift_fall_on_each_other() -> None:
    table = cloud_table(capture(normal(12, 16, seed=1), constant()))
    clouds = {
        state: rows[["pc1", "pc2", "pc3"]].to_numpy() for state, rows in table.groupby("state")
    }
    assert set(clouds) == {"base", "policy", "interpolated", "inverted"}
    assert clouds["interpolated"] == pytest.approx(clouds["policy"], abs=1e-5)
    assert clouds["inverted"] == pytest.approx(clouds["base"], abs=1e-5)
    assert not np.allclose(clouds["policy"], clouds["base"], atol=0.1)
    assert list(table["prompt"]) == [*range(12)] * 4


def test_the_basis_of_the_clouds_comes_from_the_base_alone() -> None:
    base = normal(60, 32, seed=1) * np.r_[9.0, 5.0, 3.0, np.full(29, 0.1)]
    shifts = 50 * np.eye(1, 32, 31).repeat(60, axis=0)  # along an axis on which the base is flat
    table = cloud_table(capture(base, shifts))
    spread = table[table["state"] == "base"][["pc1", "pc2", "pc3"]].std()
    assert spread.to_numpy() == pytest.approx([9, 5, 3], rel=0.3)
    moved = table.groupby("state")["pc1"].mean()
    assert abs(moved["policy"] - moved["base"]) < 2
