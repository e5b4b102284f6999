from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from dsteer_tl import gram_accumulator
from dsteer_tl.cosines import centre
from dsteer_tl.errors import ShapeError
from dsteer_tl.gram_accumulator import GramAccumulator
from dsteer_tl.spectra import (
    leading_components,
    mass_per_component,
    row_entropy,
    spectral_entropy,
    spectrum,
)


def sample(seed: int, n: int = 40, d: int = 6, offset: float = 0.5) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, d)) * np.arange(1, d + 1) + offset


def accumulated(*blocks: np.ndarray) -> GramAccumulator:
    accumulator = GramAccumulator(blocks[0].shape[1])
    for block in blocks:
        accumulator.update(block)
    return accumulator


def test_spectrum_of_a_known_matrix():
    rows = np.array([[3.0, 0, 0], [0, -2, 0], [0, 0, 1], [0, 0, 0]])
    result = spectrum(rows)
    np.testing.assert_allclose(result.singular_values, np.array([3, 2, 1]) / 2)
    np.testing.assert_allclose(result.share, np.array([9, 4, 1]) / 14)
    np.testing.assert_allclose(result.directions, [[1, 0, 0], [0, -1, 0], [0, 0, 1]], atol=1e-15)
    p = np.array([9, 4, 1]) / 14
    assert result.entropy == pytest.approx(-np.sum(p * np.log(p)))
    assert result.effective_rank == pytest.approx(np.exp(result.entropy))
    assert result.sigma_ratio == pytest.approx(2 / 3)
    assert (result.n, result.centred) == (4, False)


def test_entropy_in_closed_form():
    assert spectral_entropy(np.ones(8)) == pytest.approx(np.log(8))
    assert spectral_entropy(np.array([5.0, 0, 0])) == 0.0
    assert spectral_entropy(np.array([1e-200, 1e-200])) == pytest.approx(np.log(2))
    assert np.isnan(spectral_entropy(np.zeros(3)))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), centred=st.booleans())
def test_spectrum_invariants(seed, scale, centred):
    rows = sample(seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))[0]
    before, after = (
        spectrum(rows, centred=centred),
        spectrum(scale * rows @ rotation, centred=centred),
    )
    np.testing.assert_allclose(after.singular_values, scale * before.singular_values, rtol=1e-9)
    np.testing.assert_allclose(after.directions, before.directions @ rotation, atol=1e-6)
    assert after.entropy == pytest.approx(before.entropy, abs=1e-9)
    assert 1 <= before.effective_rank <= 6 + 1e-9
    assert (before.directions @ rows.mean(0) >= -1e-9).all()
    np.testing.assert_allclose(before.directions @ before.directions.T, np.eye(6), atol=1e-12)
    used = centre(rows) if centred else rows
    total = np.sum(used**2) / len(rows)
    np.testing.assert_allclose(np.sum(before.singular_values**2), total, rtol=1e-12)


def test_repeating_all_rows_changes_nothing():
    rows = sample(0)
    np.testing.assert_allclose(
        spectrum(np.tile(rows, (3, 1))).singular_values, spectrum(rows).singular_values, rtol=1e-12
    )


def test_a_long_mean_makes_the_uncentred_spectrum_look_rank_one():
    rows = np.random.default_rng(0).standard_normal((200, 20)) + 50
    plain, control = spectrum(rows), spectrum(rows, centred=True)
    assert plain.sigma_ratio < 0.01
    assert control.sigma_ratio > 0.8
    mean = rows.mean(0)
    assert plain.directions[0] @ mean / np.linalg.norm(mean) > 0.999999


def test_no_shift_at_all_is_undefined_without_a_warning():
    result = spectrum(np.zeros((5, 3)))
    assert np.isnan(result.entropy)
    assert np.isnan(result.sigma_ratio)
    np.testing.assert_array_equal(result.share, 0)
    constant = spectrum(np.tile([0.1, 0.7, 0.3], (7, 1)), centred=True)
    np.testing.assert_array_equal(constant.singular_values, 0)
    assert spectrum(np.ones((4, 1))).sigma_ratio == 0.0


def test_directions_orthogonal_to_the_mean_have_a_defined_sign():
    rows = np.array([[1.0, 0.2], [-1.0, -0.2]])
    first = spectrum(rows).directions[0]
    assert first[0] > 0
    np.testing.assert_allclose(spectrum(-rows).directions[0], first, atol=1e-14)


def test_keep_limits_directions_only():
    full, short = spectrum(sample(1)), spectrum(sample(1), keep=2)
    np.testing.assert_array_equal(short.directions, full.directions[:2])
    assert short.entropy == full.entropy


@pytest.mark.parametrize("shape", [(40, 6), (5, 9)])
@pytest.mark.parametrize("centred", [False, True])
def test_gram_path_agrees_with_svd(shape, centred):
    rows = sample(2, *shape)
    expected = spectrum(rows, centred=centred)
    result = accumulated(rows[:3], rows[3:]).spectrum(centred=centred)
    assert result.entropy == pytest.approx(expected.entropy, abs=1e-10)
    assert row_entropy(rows, centred) == pytest.approx(expected.entropy, abs=1e-10)
    np.testing.assert_allclose(result.singular_values, expected.singular_values, atol=1e-6)
    assert result.singular_values.shape == expected.singular_values.shape
    np.testing.assert_allclose(result.directions[:3], expected.directions[:3], atol=1e-8)
    np.testing.assert_allclose(result.share, expected.share, atol=1e-12)
    assert result.n == len(rows)


def test_gram_survives_a_mean_that_dominates():
    rows = sample(3, n=60) + 1e6
    result = accumulated(*np.array_split(rows, 7)).spectrum(centred=True)
    assert result.entropy == pytest.approx(spectrum(rows, centred=True).entropy, abs=1e-8)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    swap=st.booleans(),
)
def test_merging_in_any_grouping_gives_the_same(seed, cuts, swap):
    rows = sample(seed)
    pieces = np.split(rows, sorted(cuts))  # some of them empty
    whole = accumulated(rows)
    left, right = accumulated(*pieces[: len(pieces) // 2 + 1]), GramAccumulator(6)
    for piece in pieces[len(pieces) // 2 + 1 :]:
        right.merge(accumulated(piece))
    if swap:
        left, right = right, left
    left.merge(right)
    assert left.count == whole.count == 40
    np.testing.assert_allclose(left.mean, rows.mean(0), atol=1e-12)
    np.testing.assert_allclose(left.gram, rows.T @ rows, rtol=1e-10, atol=1e-9)
    for centred in (False, True):
        assert left.spectrum(centred=centred).entropy == pytest.approx(
            spectrum(rows, centred=centred).entropy, abs=1e-9
        )


def test_merging_leaves_the_other_alone_and_works_with_itself():
    one, other = accumulated(sample(4)), accumulated(sample(5))
    before = other.gram
    one.merge(other)
    np.testing.assert_array_equal(other.gram, before)
    other.merge(other)
    np.testing.assert_allclose(other.gram, 2 * before)
    assert other.count == 80


def test_state_survives_safetensors_exactly():
    accumulator = accumulated(sample(6))
    restored = GramAccumulator.from_state(load(save(accumulator.to_state())))
    np.testing.assert_array_equal(restored.gram, accumulator.gram)
    restored.update(sample(7))
    accumulator.update(sample(7))
    np.testing.assert_array_equal(restored.gram, accumulator.gram)
    assert restored.count == 80


def test_a_refused_block_is_not_half_added():
    accumulator = accumulated(sample(8))
    before = accumulator.gram
    bad = sample(9)
    bad[0, 0] = np.nan
    with pytest.raises(ShapeError, match="1 NaN or infinite entries in 1 of 40 rows"):
        accumulator.update(bad)
    np.testing.assert_array_equal(accumulator.gram, before)


def test_rows_beyond_a_block_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch):
    rows = sample(10).astype(np.float32)
    whole = accumulated(rows)
    monkeypatch.setattr(gram_accumulator, "_BLOCK", 6 * 7)
    parts = accumulated(rows)
    assert parts.count == whole.count
    np.testing.assert_allclose(parts.gram, whole.gram, rtol=1e-12)
    before, bad = parts.gram, rows.copy()
    bad[33, 2] = np.inf
    with pytest.raises(ShapeError, match="in 1 of 40 rows, the first at row 33, column 2"):
        parts.update(bad)
    with pytest.raises(ShapeError, match="found d_model 3, expected 6"):
        parts.update(np.ones((40, 3)))
    with pytest.raises(ShapeError, match="expected real numbers"):
        parts.update(rows.astype(str))
    np.testing.assert_array_equal(parts.gram, before)


@pytest.mark.parametrize("centred", [False, True])
def test_few_directions_are_the_first_of_all(centred: bool, monkeypatch: pytest.MonkeyPatch):
    rows = np.random.default_rng(0).standard_normal((60, 24)) * np.arange(1, 25) + 3
    monkeypatch.setattr(gram_accumulator, "_TILE", 7)
    accumulator = accumulated(rows[:31], rows[31:])
    full = spectrum(rows, centred=centred)
    for keep in (0, 1, 3, 20):
        found = accumulator.spectrum(centred=centred, keep=keep)
        np.testing.assert_allclose(found.singular_values, full.singular_values, rtol=1e-9)
        assert found.directions.shape == (keep, 24)
        np.testing.assert_allclose(found.directions, full.directions[:keep], atol=1e-8)
    assert accumulator.scatter_trace == pytest.approx(np.sum(centre(rows) ** 2))


def test_mass_by_hand():
    rows = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    result = mass_per_component(rows, np.eye(3)[:2])
    np.testing.assert_allclose(result.per_row, [[0.36, 0.64], [0, 0], [1, 0]])
    np.testing.assert_allclose(result.mass, [1.36 / 3, 0.64 / 3])
    assert result.zero_rows == 1


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_mass_over_all_components_is_one(seed):
    rows = sample(seed)
    result = mass_per_component(rows, spectrum(rows).directions.astype(np.float32))
    np.testing.assert_allclose(result.per_row.sum(1), 1.0, atol=1e-5)


def test_errors():
    with pytest.raises(ShapeError, match="at least 2"):
        spectrum(np.ones((1, 4)))
    with pytest.raises(ShapeError, match="1 negative and 0 not finite"):
        spectral_entropy(np.array([1.0, -1.0]))
    with pytest.raises(ShapeError, match="found 1 rows, expected at least 2"):
        accumulated(np.ones((1, 3))).spectrum()
    with pytest.raises(ShapeError, match="found d_model 4, expected 3"):
        accumulated(np.ones((2, 3))).update(np.ones((2, 4)))
    with pytest.raises(ShapeError, match="found d_model 4, expected 3"):
        accumulated(np.ones((2, 3))).merge(GramAccumulator(4))
    with pytest.raises(ShapeError, match="state lacks count, scatter"):
        GramAccumulator.from_state({"mean": np.zeros(3)})
    with pytest.raises(ShapeError, match="differ from orthonormal by 3"):
        mass_per_component(np.ones((2, 3)), 2 * np.eye(3))
    with pytest.raises(ShapeError, match="found d_model 3, expected 4"):
        mass_per_component(np.ones((2, 4)), np.eye(3))


@pytest.mark.parametrize("shape", [(7, 20), (50, 12)])
@pytest.mark.parametrize("centred", [False, True])
def test_leading_components_are_the_first_of_the_full_decomposition(
    shape: tuple[int, int], centred: bool
) -> None:
    rows = np.random.default_rng(3).normal(size=shape) + 0.4
    full = spectrum(rows, centred=centred)
    values, directions = leading_components(rows, 3, centred=centred)
    np.testing.assert_allclose(values, full.singular_values[:3], rtol=1e-9)
    alignment = np.abs(np.einsum("ij,ij->i", directions, full.directions[:3]))
    np.testing.assert_allclose(alignment, 1.0, atol=1e-9)
