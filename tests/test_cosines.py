from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.cosines import (
    centre,
    cosine,
    cosine_statistics,
    cosines_to_mean,
    leave_one_out_cosines,
    mean_shift,
    pairwise_cosine_mean,
    sampled_pair_cosines,
)
from dsteer_tl.errors import ShapeError


def noise(seed: int, n: int = 12, d: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def naive_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_cosines_by_hand():
    shifts = np.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(mean_shift(shifts), [0.5, 0.5])
    np.testing.assert_allclose(cosines_to_mean(shifts), np.sqrt([0.5, 0.5]))
    np.testing.assert_allclose(leave_one_out_cosines(shifts), [0.0, 0.0], atol=1e-15)


def test_leave_one_out_is_the_mean_over_other_groups():
    rows = noise(0)
    groups = ["a", "b", "a", "c", "b", "c", "a", "d", "d", "e", "a", "b"]
    labels = np.array(groups)
    expected = [
        naive_cosine(r, rows[labels != g].mean(0)) for r, g in zip(rows, groups, strict=True)
    ]
    np.testing.assert_allclose(leave_one_out_cosines(rows, groups), expected, rtol=1e-12)
    expected = [naive_cosine(row, np.delete(rows, i, 0).mean(0)) for i, row in enumerate(rows)]
    np.testing.assert_allclose(leave_one_out_cosines(rows), expected, rtol=1e-12)


def test_leave_one_out_survives_one_very_long_row():
    rows = np.array([[1e18, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert leave_one_out_cosines(rows)[0] == 0.0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_cosines_do_not_change_under_rotation_and_scaling(seed, scale):
    rows = noise(seed)
    rotation = np.linalg.qr(noise(seed + 1, 7, 7))[0]
    groups = np.arange(12) // 2
    turned = scale * rows @ rotation
    for statistic in (
        cosines_to_mean,
        lambda x: leave_one_out_cosines(x, groups),
        pairwise_cosine_mean,
        lambda x: pairwise_cosine_mean(x, centred=True),
    ):
        np.testing.assert_allclose(statistic(turned), statistic(rows), atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_leave_one_out_ignores_the_order_of_rows(seed):
    rows, groups = noise(seed), np.arange(12) // 3
    order = np.random.default_rng(seed).permutation(12)
    np.testing.assert_allclose(
        leave_one_out_cosines(rows[order], groups[order]),
        leave_one_out_cosines(rows, groups)[order],
        atol=1e-12,
    )


def test_identical_rows_agree_completely():
    rows = np.tile(np.array([0.1, -0.7, 2.3]), (9, 1))
    statistics = cosine_statistics(rows)
    np.testing.assert_allclose(statistics.cos, 1.0, atol=1e-14)
    np.testing.assert_allclose(statistics.cos_loo, 1.0, atol=1e-14)
    assert pairwise_cosine_mean(rows) == pytest.approx(1.0)
    # Without the shared offset nothing is left, and rounding must not invent agreement.
    assert pairwise_cosine_mean(rows, centred=True) == 0.0


def test_noise_looks_aligned_in_sample_only():
    rows = noise(3, n=100, d=4000)
    statistics = cosine_statistics(rows)
    assert statistics.mean == pytest.approx(1 / np.sqrt(100), rel=0.05)
    assert abs(statistics.loo_mean) < 0.005
    assert statistics.mean == statistics.cos.mean()
    assert statistics.sd == np.std(statistics.cos, ddof=1)


def test_groups_keep_a_prompt_from_vouching_for_itself():
    per_prompt = np.repeat(noise(4, n=20, d=2000), 10, axis=0)
    rows = per_prompt + 0.1 * noise(5, n=200, d=2000)
    groups = np.repeat(np.arange(20), 10)
    assert leave_one_out_cosines(rows).mean() > 0.15
    assert abs(leave_one_out_cosines(rows, groups).mean()) < 0.02


@pytest.mark.parametrize("centred", [False, True])
def test_pairwise_mean_equals_the_full_matrix(centred):
    rows = noise(6) + 0.3
    used = rows - rows.mean(0) if centred else rows
    pairs = [naive_cosine(used[i], used[j]) for i in range(12) for j in range(12) if i != j]
    assert pairwise_cosine_mean(rows, centred) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_sampled_pairs_never_pair_a_row_with_itself_and_average_to_the_mean():
    rows = noise(7) + 0.5
    sample = sampled_pair_cosines(rows, pairs=20_000, seed=0, centred=False)
    assert sample.max() < 0.999
    assert sample.mean() == pytest.approx(pairwise_cosine_mean(rows), abs=0.02)
    again = sampled_pair_cosines(rows, pairs=20_000, seed=0, centred=False)
    np.testing.assert_array_equal(sample, again)


def test_zero_rows_count_as_cosine_zero():
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    statistics = cosine_statistics(rows)
    assert statistics.zero_rows == 1
    np.testing.assert_allclose(statistics.cos, [1, 0, 1])
    np.testing.assert_allclose(statistics.cos_loo, [1, 0, 1])
    assert pairwise_cosine_mean(rows) == pytest.approx(1 / 3)
    assert cosine(rows[1], rows[0]) == 0.0


def test_float16_is_computed_in_float64():
    rows = (1000 * noise(8)).astype(np.float16)
    np.testing.assert_array_equal(cosines_to_mean(rows), cosines_to_mean(rows.astype(np.float64)))


def test_input_is_not_changed():
    rows = noise(9)
    kept = rows.copy()
    centre(rows)
    cosine_statistics(rows)
    np.testing.assert_array_equal(rows, kept)


def test_errors_say_what_where_and_what_to_do():
    with pytest.raises(ShapeError, match=r"shifts: found 1 dimensions, shape \(3,\), expected 2"):
        cosines_to_mean(np.ones(3))
    with pytest.raises(ShapeError, match=r"shape \(1, 3\).*at least 2"):
        cosines_to_mean(np.ones((1, 3)))
    bad = noise(0)
    bad[2, 3] = np.nan
    bad[5, 0] = np.inf
    message = r"2 NaN or infinite entries in 2 of 12 rows, the first at row 2, column 3"
    with pytest.raises(ShapeError, match=message):
        cosine_statistics(bad)
    with pytest.raises(ShapeError, match="dtype complex128"):
        mean_shift(noise(0) + 0j)
    with pytest.raises(ShapeError, match="found 1 group in 12 rows"):
        leave_one_out_cosines(noise(0), ["a"] * 12)
    with pytest.raises(ShapeError, match=r"groups: found shape \(3,\), expected \(12,\)"):
        leave_one_out_cosines(noise(0), [1, 2, 3])
    with pytest.raises(ShapeError, match="lengths 2 and 3"):
        cosine(np.ones(2), np.ones(3))
