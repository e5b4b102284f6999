"""Subspaces whose overlap and energy are known in closed form."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.errors import DependencyError, ShapeError
from dsteer_tl.stress.null_space import (
    energy_subspace,
    random_overlap,
    share_outside,
    subspace_overlap,
)

AXES = np.eye(8)


def rows(*scales: float, seed: int = 0, n: int = 64, offset: float = 0.0) -> np.ndarray:
    """Gaussian rows with a standard deviation for each axis."""
    full = np.zeros(8)
    full[: len(scales)] = scales
    return offset + np.random.default_rng(seed).standard_normal((n, 8)) * full


def test_the_subspace_holds_the_energy_with_the_fewest_directions() -> None:
    found = energy_subspace(rows(3.0, 3.0, 0.1, offset=5.0), 0.95)
    assert found.rank == 2
    assert found.share > 0.99
    np.testing.assert_allclose(found.mean, 5.0, atol=1.5)
    assert np.abs(found.directions[:, 2:]).max() < 0.05
    assert found.isotropic_share_outside == pytest.approx(6 / 8)


def test_all_of_the_energy_takes_every_direction_that_there_is() -> None:
    assert energy_subspace(rows(3.0, 2.0, 1.0), 1.0).rank == 3
    assert energy_subspace(rows(*[1.0] * 8, n=4), 1.0).rank == 3, "n rows span n − 1"


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(0.05, 1.0))
def test_a_larger_share_never_takes_fewer_directions(seed: int, share: float) -> None:
    data = rows(4.0, 3.0, 2.0, 1.0, seed=seed)
    found = energy_subspace(data, share)
    assert found.share >= share * (1 - 1e-9)
    assert found.rank <= energy_subspace(data, 1.0).rank
    centred = data - data.mean(axis=0)
    inside = np.sum((centred @ found.directions.T) ** 2) / np.sum(centred**2)
    assert inside == pytest.approx(found.share)


def test_share_outside_is_pythagoras() -> None:
    data = np.array([[3.0, 4.0, 0, 0, 0, 0, 0, 0], [0, 0, 1.0, 0, 0, 0, 0, 0], np.zeros(8)])
    np.testing.assert_allclose(share_outside(data, AXES[:1]), [16 / 25, 1.0, 0.0])
    np.testing.assert_allclose(share_outside(data, AXES), 0.0, atol=1e-12)


def test_overlaps_of_known_subspaces() -> None:
    first = rows(3.0, 2.0)
    np.testing.assert_allclose(subspace_overlap(first, 5 * first[::-1], 2), 1.0)
    apart = np.roll(rows(3.0, 2.0, seed=1), 2, axis=1)
    assert subspace_overlap(first, apart, 2) == pytest.approx(0.0, abs=1e-12)
    half = np.roll(rows(3.0, 2.0, seed=1), 1, axis=1)  # shares one of two axes
    assert subspace_overlap(first, half, 2) == pytest.approx(0.5)
    turned = np.zeros((8, 8))
    turned[:, 0], turned[:, 1] = np.arange(1, 9), np.arange(1, 9)  # 45° from the first axis
    assert subspace_overlap(np.outer(np.arange(1, 9), AXES[0]), turned, 1) == pytest.approx(0.5)


def test_centring_takes_a_shared_mean_out_of_the_overlap() -> None:
    one = np.roll(rows(1.0, seed=1), 1, axis=1) + 10 * AXES[0]
    two = np.roll(rows(1.0, seed=2), 2, axis=1) + 10 * AXES[0]
    assert subspace_overlap(one, two, 1) > 0.98
    assert subspace_overlap(one, two, 1, centred=True) < 0.01


def test_random_subspaces_overlap_by_k_over_d() -> None:
    mean, deviation = random_overlap(40, 4)
    assert mean == pytest.approx(4 / 40)
    generator = np.random.default_rng(0)
    drawn = [
        subspace_overlap(*generator.standard_normal((2, 4, 40)), 4)  # type: ignore[misc]
        for _ in range(300)
    ]
    assert np.mean(drawn) == pytest.approx(mean, abs=4 * deviation / 300**0.5)
    assert np.std(drawn) == pytest.approx(deviation, rel=0.2)


def test_what_has_no_subspace_is_refused() -> None:
    with pytest.raises(ShapeError, match="all 5 rows are equal"):
        energy_subspace(np.ones((5, 8)))
    with pytest.raises(ShapeError, match="share 0"):
        energy_subspace(rows(1.0), 0)
    with pytest.raises(ShapeError, match="rank below 3"):
        subspace_overlap(rows(1.0, 1.0), rows(1.0, 1.0, 1.0), 3)


def test_an_older_transformer_lens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens.tools.analysis.projection_kernel", None)
    with pytest.raises(DependencyError, match=r"4\.3"):
        subspace_overlap(rows(1.0), rows(1.0), 1)
    with pytest.raises(DependencyError, match=r"4\.3"):
        random_overlap(8, 1)
