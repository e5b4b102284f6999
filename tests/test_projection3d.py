from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.errors import ShapeError
from dsteer_tl.projection3d import (
    geometry_coordinates,
    orthonormal_basis,
    project,
    state_clouds,
)

seeds = st.integers(0, 2**32 - 1)
NAMES = [
    "h_base",
    "h_policy",
    "e_chosen",
    "e_rejected",
    "v",
    "projection_base",
    "projection_policy",
]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_gram_schmidt_by_hand():
    basis = orthonormal_basis(np.array([[2.0, 0, 0, 0], [5, -3, 0, 0]]))
    np.testing.assert_allclose(basis, [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 0]], atol=1e-15)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, count=st.integers(0, 5), k=st.integers(1, 6))
def test_basis_is_orthonormal_and_spans_the_first_vectors(seed, count, k):
    vectors = normal(seed, count, 6) * 1e3
    basis = orthonormal_basis(vectors, k)
    np.testing.assert_allclose(basis @ basis.T, np.eye(k), atol=1e-12)
    inside = vectors[:k]
    np.testing.assert_allclose((inside @ basis.T) @ basis, inside, atol=1e-8)
    np.testing.assert_array_equal(orthonormal_basis(vectors, k), basis)


def test_dependent_and_zero_vectors_are_skipped_and_completed():
    vectors = np.array([[0.0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 7, 0], [0, 1, 1, 0]])
    np.testing.assert_allclose(
        orthonormal_basis(vectors), [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]], atol=1e-15
    )


def test_projection_with_origin():
    rows, basis = np.array([[1.0, 2, 3]]), np.eye(3)[[2, 0]]
    np.testing.assert_array_equal(project(rows, basis), [[3, 1]])
    np.testing.assert_array_equal(project(rows, basis, np.ones(3)), [[2, 0]])


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_geometry_is_exact_where_it_claims_to_be(seed):
    h_base, h_policy, e_chosen, e_rejected = normal(seed, 4, 9)
    result = geometry_coordinates(h_base, h_policy, e_chosen, e_rejected)
    xyz = result.coordinates
    assert list(xyz) == NAMES
    np.testing.assert_allclose(xyz["v"], xyz["e_chosen"] - xyz["e_rejected"], atol=1e-12)
    assert np.linalg.norm(xyz["e_chosen"]) == pytest.approx(np.linalg.norm(e_chosen))
    assert xyz["e_chosen"] @ xyz["e_rejected"] == pytest.approx(e_chosen @ e_rejected)
    v = e_chosen - e_rejected
    for model, h in (("base", h_base), ("policy", h_policy)):
        assert xyz[f"h_{model}"] @ xyz["v"] == pytest.approx(h @ v)
        foot = xyz[f"projection_{model}"]
        assert (xyz[f"h_{model}"] - foot) @ xyz["v"] == pytest.approx(0, abs=1e-9)
        assert np.linalg.norm(np.cross(foot, xyz["v"])) == pytest.approx(0, abs=1e-9)
        share = np.sum(xyz[f"h_{model}"] ** 2) / (h @ h)
        assert result.shown[f"h_{model}"] == pytest.approx(share)
        assert 0 < share <= 1 + 1e-12
    assert xyz["e_chosen"][1:] == pytest.approx([0, 0], abs=1e-9)
    assert xyz["e_rejected"][2] == pytest.approx(0, abs=1e-9)


def test_geometry_shows_everything_when_three_dimensions_suffice():
    result = geometry_coordinates(*normal(0, 4, 3))
    assert result.shown == pytest.approx({"h_base": 1, "h_policy": 1})


def test_geometry_of_equal_tokens_has_no_preference():
    h_base, h_policy, e = normal(1, 3, 5)
    xyz = geometry_coordinates(h_base, h_policy, e, e).coordinates
    for name in ("v", "projection_base", "projection_policy"):
        np.testing.assert_array_equal(xyz[name], 0)


def test_clouds_of_an_exact_shift():
    base, vector = normal(2, 30, 8), normal(3, 8)
    result = state_clouds(base, base + vector, vector)
    np.testing.assert_allclose(result.interpolated, result.policy, atol=1e-12)
    np.testing.assert_allclose(result.inverted, result.base, atol=1e-12)
    np.testing.assert_allclose(
        result.policy - result.base, np.tile(result.basis @ vector, (30, 1)), atol=1e-12
    )
    np.testing.assert_allclose(result.base.mean(0), 0, atol=1e-12)
    eigenvalues = np.linalg.eigvalsh(np.cov(base.T))[::-1]
    np.testing.assert_allclose(result.share, eigenvalues[:3] / eigenvalues.sum(), atol=1e-12)
    shown = np.sum((result.basis @ vector) ** 2) / (vector @ vector)
    assert result.vector_shown == pytest.approx(shown)


def test_the_policy_does_not_choose_the_view():
    base, vector = normal(4, 30, 8), normal(5, 8)
    first = state_clouds(base, base + vector, vector)
    second = state_clouds(base, base - 7 * vector**2, 3 * vector)
    np.testing.assert_array_equal(first.basis, second.basis)
    np.testing.assert_array_equal(first.base, second.base)


def test_errors():
    with pytest.raises(ShapeError, match="found k=3, expected 1 to 2"):
        orthonormal_basis(np.eye(2))
    with pytest.raises(ShapeError, match="expected one d_model"):
        project(np.ones((2, 4)), np.eye(3))
    with pytest.raises(ShapeError, match=r"'h_policy': 4.*expected one d_model"):
        geometry_coordinates(np.ones(3), np.ones(4), np.ones(3), np.ones(3))
    with pytest.raises(ShapeError, match=r"base \(4, 3\), policy \(5, 3\)"):
        state_clouds(np.ones((4, 3)), np.ones((5, 3)), np.ones(3))
    with pytest.raises(ShapeError, match="NaN"):
        state_clouds(np.full((4, 3), np.nan), np.ones((4, 3)), np.ones(3))
