from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsteer_tl.errors import ShapeError
from dsteer_tl.gradients import (
    descent_cosines,
    dpo_gradient_field,
    dpo_gradients,
    dpo_loss,
    lattice,
    pca_basis,
    sequence_log_probability,
)

D, V, BETA, REFERENCE = 6, 13, 0.3, -0.7


@dataclass
class Pair:
    """Two responses of 5 and 4 tokens with 2 common ones: they diverge at row 2."""

    seed: int = 0
    bias: bool = True

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.h_chosen = normal(5, D)
        self.h_rejected = torch.cat([self.h_chosen[:3], normal(1, D)])
        self.chosen_ids = torch.tensor([4, 7, 1, 2, 12])
        self.rejected_ids = torch.tensor([4, 7, 9, 0])
        self.W_U = normal(D, V)
        self.b_U = normal(V) if self.bias else None
        self.shared = 3

    @property
    def arguments(self) -> tuple:
        return (
            self.h_chosen, self.h_rejected, self.chosen_ids, self.rejected_ids, self.W_U, self.b_U,
            REFERENCE, BETA, self.shared,
        )  # fmt: skip

    @property
    def preference(self) -> np.ndarray:
        return (self.W_U[:, 1] - self.W_U[:, 9]).numpy()

    def loss(self, h_chosen: Tensor, h_rejected: Tensor, softcap: float | None = None) -> float:
        def logp(h: Tensor, ids: Tensor) -> float:
            z = h @ self.W_U + (0 if self.b_U is None else self.b_U)
            z = z if softcap is None else softcap * torch.tanh(z / softcap)
            return sum(math.log(torch.softmax(row, 0)[i]) for row, i in zip(z, ids, strict=True))

        margin = logp(h_chosen, self.chosen_ids) - logp(h_rejected, self.rejected_ids) - REFERENCE
        return math.log1p(math.exp(-BETA * margin))


def surprise(pair: Pair, h: Tensor, ids: Tensor) -> np.ndarray:
    """e_y − E_p[e] per position."""
    logits = h @ pair.W_U + (0 if pair.b_U is None else pair.b_U)
    return (pair.W_U[:, ids].T - torch.softmax(logits, -1) @ pair.W_U.T).numpy()


def test_log_probability_and_loss_by_hand():
    W_U = torch.eye(2, dtype=torch.float64)
    h = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]], dtype=torch.float64)
    logp = sequence_log_probability(h, torch.tensor([0, 1]), W_U)
    assert float(logp) == pytest.approx(math.log(0.75) + math.log(0.5))
    b_U = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)
    logp = sequence_log_probability(h, torch.tensor([0, 1]), W_U, b_U)
    assert float(logp) == pytest.approx(math.log(0.5) + math.log(0.75))
    capped = sequence_log_probability(h, torch.tensor([0, 1]), W_U, None, logit_softcap=0.1)
    z = 0.1 * math.tanh(math.log(3.0) / 0.1)
    assert float(capped) == pytest.approx(z - math.log(math.exp(z) + 1) + math.log(0.5))
    zero = torch.tensor(0.0)
    assert float(dpo_loss(zero, zero, 0.0, 0.0, 0.1)) == pytest.approx(math.log(2))
    loss = dpo_loss(torch.tensor(-1.0), torch.tensor(-3.0), -2.0, -2.5, 0.4)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-0.4 * 1.5)))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), bias=st.booleans())
def test_at_the_divergence_the_gradient_is_the_preference_direction(seed, bias):
    pair = Pair(seed, bias)
    found = dpo_gradients(*pair.arguments)
    weight = BETA / (1 + math.exp(BETA * found.margin))
    assert found.weight == pytest.approx(weight)
    np.testing.assert_allclose(found.divergence, -weight * pair.preference, atol=1e-12)
    cosines = descent_cosines(found.divergence[None], pair.preference)
    assert cosines[0] == pytest.approx(1, abs=1e-12)
    # Before it the same token follows the same context in both branches.
    np.testing.assert_allclose(found.shared[:2], 0, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_later_the_gradient_is_the_surprise(seed):
    pair = Pair(seed)
    found = dpo_gradients(*pair.arguments)
    chosen = surprise(pair, pair.h_chosen[3:], pair.chosen_ids[3:])
    rejected = surprise(pair, pair.h_rejected[3:], pair.rejected_ids[3:])
    np.testing.assert_allclose(found.chosen, -found.weight * chosen, atol=1e-12)
    np.testing.assert_allclose(found.rejected, found.weight * rejected, atol=1e-12)
    np.testing.assert_array_equal(found.later, np.concatenate([found.chosen, found.rejected]))
    assert descent_cosines(found.later, pair.preference).max() < 0.999


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_equal_finite_differences(softcap):
    pair = Pair(1)
    found = dpo_gradients(*pair.arguments, logit_softcap=softcap)
    assert found.loss == pytest.approx(pair.loss(pair.h_chosen, pair.h_rejected, softcap))
    step = 1e-6

    def difference(row: int, column: int, chosen: bool, rejected: bool) -> float:
        losses = []
        for sign in (1, -1):
            h_chosen, h_rejected = pair.h_chosen.clone(), pair.h_rejected.clone()
            h_chosen[row, column] += sign * step * chosen
            if rejected:
                h_rejected[row, column] += sign * step
            losses.append(pair.loss(h_chosen, h_rejected, softcap))
        return (losses[0] - losses[1]) / (2 * step)

    for column in range(D):
        assert found.divergence[column] == pytest.approx(
            difference(2, column, True, True), abs=1e-8
        )
        assert found.chosen[1, column] == pytest.approx(
            difference(4, column, True, False), abs=1e-8
        )
        assert found.rejected[0, column] == pytest.approx(
            difference(3, column, False, True), abs=1e-8
        )


def test_a_soft_cap_turns_the_gradient_away_from_the_preference():
    pair = Pair(2)
    found = dpo_gradients(*pair.arguments, logit_softcap=1.0)
    assert descent_cosines(found.divergence[None], pair.preference)[0] < 0.999


def test_float32_inputs_are_differentiated_in_float64():
    pair = Pair(3)
    for name in ("h_chosen", "h_rejected", "W_U", "b_U"):
        setattr(pair, name, getattr(pair, name).float())
    found = dpo_gradients(*pair.arguments)
    assert found.divergence.dtype == np.float64
    cosines = descent_cosines(found.divergence[None], pair.preference)
    assert cosines[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("position", [0, 2, 4])
def test_the_field_at_h_is_the_gradient_and_follows_the_replaced_state(position):
    pair = Pair(4)
    found = dpo_gradients(*pair.arguments)
    everywhere = np.concatenate([found.shared, found.chosen])
    moved = pair.h_chosen[position] + 0.5
    states = torch.stack([pair.h_chosen[position], moved]).numpy()
    field = dpo_gradient_field(states, position, *pair.arguments)
    np.testing.assert_allclose(field[0], everywhere[position], atol=1e-12)
    other = Pair(4)
    other.h_chosen[position] = moved
    if position < other.shared:
        other.h_rejected[position] = moved
    again = dpo_gradients(*other.arguments)
    expected = np.concatenate([again.shared, again.chosen])[position]
    np.testing.assert_allclose(field[1], expected, atol=1e-12)


def test_the_field_is_constant_in_direction_at_the_divergence_only():
    pair = Pair(5)
    for position, constant in ((2, True), (3, False)):
        points = lattice(pair.h_chosen[position].numpy(), np.eye(3, D), 1.0, 3).states
        cosines = descent_cosines(
            dpo_gradient_field(points, position, *pair.arguments), pair.preference
        )
        assert (cosines.min() > 1 - 1e-12) == constant


def test_descent_cosines_row_by_row_and_zero():
    gradients = np.array([[-1.0, 0], [0, 2], [0, 0]])
    directions = np.array([[3.0, 0], [0, 1], [1, 1]])
    np.testing.assert_allclose(descent_cosines(gradients, directions), [1, -1, 0])


def test_lattice_by_hand():
    basis = np.eye(3, 4)
    result = lattice(np.array([1.0, 2, 3, 4]), basis, 2.0, 3)
    assert result.coordinates.shape == (27, 3)
    np.testing.assert_array_equal(result.coordinates[0], [-2, -2, -2])
    np.testing.assert_array_equal(result.coordinates[1], [-2, -2, 0])
    np.testing.assert_array_equal(result.coordinates[13], [0, 0, 0])
    np.testing.assert_array_equal(result.states[13], [1, 2, 3, 4])
    np.testing.assert_array_equal(result.states[-1], [3, 4, 5, 4])
    np.testing.assert_array_equal(lattice(np.ones(4), basis, 2.0, 1).states, np.ones((1, 4)))


def test_pca_basis_finds_the_planted_axes():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((2000, 5)) * [9, 5, 2, 0.1, 0.1] + [1, -1, 1, 0, 0]
    basis = pca_basis(rows)
    np.testing.assert_allclose(np.abs(basis), np.eye(3, 5), atol=0.06)
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-12)


def test_errors():
    pair = Pair()
    pair.shared = 2
    message = "shared=2 for responses that first differ at response token 2"
    with pytest.raises(ShapeError, match=message):
        dpo_gradients(*pair.arguments)
    pair = Pair()
    pair.rejected_ids = pair.chosen_ids[:4]
    with pytest.raises(ShapeError, match="never differ"):
        dpo_gradients(*pair.arguments)
    pair = Pair()
    pair.h_rejected = pair.h_rejected + 1
    with pytest.raises(ShapeError, match="both sequences must begin with the same prompt"):
        dpo_gradients(*pair.arguments)
    pair = Pair()
    pair.chosen_ids = torch.tensor([4, 7, 1, 2, -100])
    with pytest.raises(ShapeError, match="ids from -100 to 7, expected 0 to 12"):
        dpo_gradients(*pair.arguments)
    pair = Pair()
    with pytest.raises(ShapeError, match=r"h \(5, 6\), targets \(4,\)"):
        sequence_log_probability(pair.h_chosen, pair.rejected_ids, pair.W_U)
    with pytest.raises(ShapeError, match="found position 5, expected 0 to 4"):
        dpo_gradient_field(np.ones((1, D)), 5, *pair.arguments)
    with pytest.raises(ShapeError, match=r"found shape \(3,\), expected|found shape \(1, 3\)"):
        descent_cosines(np.ones((2, D)), np.ones(3))
    with pytest.raises(ShapeError, match=r"basis: found shape \(2, 4\), expected \(3, 4\)"):
        lattice(np.ones(4), np.eye(2, 4), 1.0, 3)
    with pytest.raises(ShapeError, match="found 2 in rows of shape"):
        pca_basis(np.ones((2, 7)))
