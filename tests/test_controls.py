from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.controls import (
    Interval,
    bootstrap,
    bootstrap_mean,
    bootstrap_ratio,
    gaussian_matched,
    null_distribution,
    orthogonal_like,
    permuted,
    random_direction,
    random_like,
    random_token_pairs,
    sign_flipped_rows,
    sign_permuted,
)
from dsteer_tl.cosines import cosine, cosine_statistics
from dsteer_tl.errors import ShapeError
from dsteer_tl.spectra import spectrum

seeds = st.integers(0, 2**32 - 1)


def vector(seed: int, d: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(d) ** 3


@settings(deadline=None, max_examples=30)
@given(seed=seeds, d=st.integers(2, 30))
def test_vector_nulls_keep_what_they_promise(seed, d):
    original = vector(seed, d)
    norm = np.linalg.norm(original)
    for null in (random_like, orthogonal_like, permuted, sign_permuted):
        drawn = null(original, seed)
        assert np.linalg.norm(drawn) == pytest.approx(norm, rel=1e-12)
        np.testing.assert_array_equal(drawn, null(original, seed))
    assert abs(cosine(orthogonal_like(original, seed), original)) < 1e-12
    np.testing.assert_array_equal(np.sort(permuted(original, seed)), np.sort(original))
    np.testing.assert_array_equal(np.abs(sign_permuted(original, seed)), np.abs(original))
    assert np.linalg.norm(random_direction(d, seed)) == pytest.approx(1)


@pytest.mark.parametrize("null", [random_like, orthogonal_like, permuted, sign_permuted])
def test_vector_nulls_break_the_direction_and_differ_between_seeds(null):
    original = vector(1, 400)
    cosines = [cosine(null(original, seed), original) for seed in range(50)]
    assert abs(np.mean(cosines)) < 0.05
    assert not np.array_equal(null(original, 0), null(original, 1))


def test_zero_vector_stays_zero():
    for null in (random_like, orthogonal_like, permuted, sign_permuted):
        np.testing.assert_array_equal(null(np.zeros(4), 0), 0)


def test_sign_flips_keep_the_spectrum_and_break_the_mean():
    rows = np.random.default_rng(0).standard_normal((400, 8)) + 3
    flipped = sign_flipped_rows(rows, 0)
    np.testing.assert_allclose(
        spectrum(flipped).singular_values, spectrum(rows).singular_values, rtol=1e-12
    )
    assert cosine_statistics(rows).loo_mean > 0.9
    assert abs(cosine_statistics(flipped).loo_mean) < 0.1


def test_gaussian_keeps_mean_and_total_variance_and_breaks_the_shape():
    generator = np.random.default_rng(1)
    rows = generator.standard_normal((4000, 3)) * [10, 1, 1] + [5, 0, 0]
    drawn = gaussian_matched(rows, 0)
    np.testing.assert_allclose(drawn.mean(0), rows.mean(0), atol=0.4)
    assert drawn.var(0).sum() == pytest.approx(rows.var(0).sum(), rel=0.05)
    assert spectrum(rows, centred=True).sigma_ratio < 0.15
    assert spectrum(drawn, centred=True).sigma_ratio > 0.9
    free = gaussian_matched(rows, 0, keep_mean=False)
    assert np.abs(free.mean(0)).max() < 0.5
    assert np.sum(free**2) == pytest.approx(np.sum(rows**2), rel=0.05)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, n=st.integers(0, 50), d_vocab=st.integers(2, 9))
def test_token_pairs_are_two_different_tokens(seed, n, d_vocab):
    pairs = random_token_pairs(n, d_vocab, seed)
    assert pairs.shape == (n, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert ((pairs >= 0) & (pairs < d_vocab)).all()


def test_token_pairs_are_uniform():
    pairs = random_token_pairs(30_000, 3, 0)
    counts = np.bincount(pairs[:, 0] * 3 + pairs[:, 1], minlength=9).reshape(3, 3)
    np.testing.assert_allclose(counts[~np.eye(3, dtype=bool)], 5000, rtol=0.06)


def test_bootstrap_mean_has_the_width_of_the_normal_theory():
    values = np.random.default_rng(2).standard_normal(400)
    result = bootstrap_mean(values, seed=0, draws=4000)
    assert result.value == pytest.approx(values.mean())
    half_width = 1.96 * values.std() / 20
    assert result.high - result.value == pytest.approx(half_width, rel=0.1)
    assert result.value - result.low == pytest.approx(half_width, rel=0.1)
    assert result.draws == 4000


def test_groups_widen_the_interval_by_the_design_effect():
    per_prompt = np.repeat(np.random.default_rng(3).standard_normal(50), 20)
    groups = np.repeat(np.arange(50), 20)
    rows = bootstrap_mean(per_prompt, seed=0)
    prompts = bootstrap_mean(per_prompt, groups, seed=0)
    ratio = (prompts.high - prompts.low) / (rows.high - rows.low)
    assert ratio == pytest.approx(np.sqrt(20), rel=0.15)


@pytest.mark.parametrize("groups", [None, list("aabbbcdddd")])
def test_the_vectorised_mean_draws_what_bootstrap_draws(groups):
    values = np.random.default_rng(4).standard_normal(10)
    slow = bootstrap(lambda x: float(x.mean()), values, groups=groups, draws=200, seed=7)
    fast = bootstrap_mean(values, groups, draws=200, seed=7)
    for name in ("value", "low", "high", "draws"):
        assert getattr(slow, name) == pytest.approx(getattr(fast, name), rel=1e-12)


def test_bootstrap_keeps_rows_of_several_arrays_together():
    first = np.arange(10.0)
    result = bootstrap(lambda a, b: float(np.abs(a - b).max()), first, first, seed=0, draws=50)
    assert (result.value, result.low, result.high) == (0, 0, 0)


def test_ratio_is_a_ratio_of_sums_and_leaves_out_undefined_draws():
    result = bootstrap_ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0]), seed=0, draws=400)
    assert (result.value, result.low, result.high) == (0.5, 0.5, 0.5)
    assert 250 < result.draws < 350  # a quarter of the draws holds the second row only
    empty = bootstrap_ratio(np.zeros(3), np.zeros(3), seed=0, draws=10)
    assert empty.draws == 0
    assert np.isnan([empty.value, empty.low, empty.high]).all()


def test_level_and_seed_matter():
    values = np.random.default_rng(5).standard_normal(30)
    wide, narrow = (bootstrap_mean(values, seed=0, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert bootstrap_mean(values, seed=0) == bootstrap_mean(values, seed=0)
    assert bootstrap_mean(values, seed=0) != bootstrap_mean(values, seed=1)


def test_null_distribution_of_a_random_cosine():
    fixed = vector(6, 100)
    result = null_distribution(
        lambda drawn: cosine(drawn, fixed), lambda seed: random_like(fixed, seed), 2000, 0
    )
    assert isinstance(result, Interval)
    assert result.value == pytest.approx(0, abs=0.01)
    assert result.low == pytest.approx(-0.196, abs=0.02)
    assert result.high == pytest.approx(0.196, abs=0.02)


def test_errors():
    with pytest.raises(ShapeError, match="found 1 group, expected at least 2"):
        bootstrap_mean(np.ones(4), ["a"] * 4, seed=0)
    with pytest.raises(ShapeError, match=r"arrays with \[2, 3\] rows"):
        bootstrap(lambda *_: 0.0, np.ones(2), np.ones(3), seed=0)
    with pytest.raises(ShapeError, match="draws: found 0"):
        bootstrap_mean(np.ones(4), seed=0, draws=0)
    with pytest.raises(ShapeError, match="level: found 95"):
        bootstrap_mean(np.ones(4), seed=0, level=95)
    with pytest.raises(ShapeError, match="3 numerators and 2 denominators"):
        bootstrap_ratio(np.ones(3), np.ones(2), seed=0)
    with pytest.raises(ShapeError, match="at least 2 tokens"):
        random_token_pairs(3, 1, 0)
    with pytest.raises(ShapeError, match="found d_model 1, expected at least 2"):
        orthogonal_like(np.ones(1), 0)
    with pytest.raises(ShapeError, match="1 NaN or infinite entries, the first at entry 1"):
        random_like(np.array([1.0, np.nan]), 0)
