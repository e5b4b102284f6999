from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsteer_tl.errors import ShapeError
from dsteer_tl.recovery import (
    bias_recovery,
    fit_logit_bias,
    interpolation_recovery,
    inversion_recovery,
    kl,
    subspace_recovery,
)
from dsteer_tl.spectra import spectrum

N, D, V = 24, 5, 11


class Site:
    """Random rows with a linear readout, as at h, or a curved one, as before the last blocks."""

    def __init__(self, seed: int = 0, curved: bool = False, dtype: torch.dtype = torch.float64):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.base = normal(N, D)
        self.policy = self.base + 0.4 * normal(N, D) + 0.5
        self.W_U = normal(D, V)
        self.inner = normal(D, D)
        self.vector = normal(D).double().numpy()
        self.bias = normal(V)
        self.curved = curved

    def readout(self, rows: Tensor) -> Tensor:
        return (torch.tanh(rows @ self.inner) if self.curved else rows) @ self.W_U


def naive_kl(p_logits: Tensor, q_logits: Tensor) -> np.ndarray:
    p, q = (torch.softmax(z.double(), -1).numpy() for z in (p_logits, q_logits))
    return np.array(
        [
            sum(a * np.log(a / b) for a, b in zip(x, y, strict=True))
            for x, y in zip(p, q, strict=True)
        ]
    )


def values(recovery) -> np.ndarray:
    return np.array([interval.value for interval in recovery.recovered])


def test_kl_of_two_coins():
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64))
    identity = lambda rows: rows  # noqa: E731
    expected = [0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1), 0.0]
    found = kl(identity, logits, identity, logits[[1, 1]])
    np.testing.assert_allclose(found, expected, atol=1e-15)


def test_kl_with_impossible_tokens():
    identity = lambda rows: torch.stack([rows[:, 0], rows[:, 0] - torch.inf], 1)  # noqa: E731
    rows = torch.zeros(2, 1)
    np.testing.assert_array_equal(kl(identity, rows, identity, rows), 0.0)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), constant=st.floats(-50, 50))
def test_kl_is_not_negative_and_ignores_a_constant_logit(seed, constant):
    site = Site(seed)
    moved = kl(site.readout, site.policy, lambda rows: site.readout(rows) + constant, site.base)
    plain = kl(site.readout, site.policy, site.readout, site.base)
    assert (plain >= 0).all()
    np.testing.assert_allclose(moved, plain, atol=1e-12)
    np.testing.assert_allclose(
        plain, naive_kl(site.readout(site.policy), site.readout(site.base)), atol=1e-12
    )
    np.testing.assert_allclose(kl(site.readout, site.base, site.readout, site.base), 0, atol=1e-15)


@pytest.mark.parametrize("budget", [1, 3 * V, 10**6])
def test_blocks_do_not_change_the_result_and_respect_the_budget(budget):
    site, seen = Site(), []

    def readout(rows: Tensor) -> Tensor:
        seen.append(len(rows) * V)
        return site.readout(rows)

    whole = kl(site.readout, site.policy, site.readout, site.base)
    np.testing.assert_allclose(
        kl(readout, site.policy, readout, site.base, budget=budget), whole, rtol=1e-12
    )
    assert max(seen) <= max(budget, V)
    seen.clear()
    fit_logit_bias(site.base, site.policy, readout, readout, budget=budget, iterations=1)
    assert max(seen) <= max(budget, V)


@pytest.mark.parametrize("curved", [False, True])
def test_a_policy_that_is_base_plus_v_is_recovered_exactly(curved):
    site = Site(curved=curved)
    policy = site.base + torch.as_tensor(site.vector)
    found = interpolation_recovery(
        site.base, policy, site.readout, site.readout, site.vector, [-1, 0, 0.5, 1], seed=0
    )
    assert found.direction == "interpolate"
    assert found.n == N
    np.testing.assert_allclose(values(found)[[1, 3]], [0, 1], atol=1e-12)
    assert values(found)[0] < 0 < values(found)[2] < 1
    np.testing.assert_array_equal(found.kl[1], found.reference_kl)
    inverted = inversion_recovery(
        site.base, policy, site.readout, site.readout, site.vector, [0, 1], seed=0
    )
    assert inverted.direction == "invert"
    np.testing.assert_allclose(values(inverted), [0, 1], atol=1e-12)


def test_recovery_equals_a_float64_reference():
    site = Site(1, curved=True)
    policy_readout = lambda rows: site.readout(rows) + site.bias  # noqa: E731
    vector = torch.as_tensor(site.vector)
    arguments = (site.base, site.policy, site.readout, policy_readout, site.vector, [0.3])
    target, start = policy_readout(site.policy), site.readout(site.base)
    steered = site.readout(site.base + 0.3 * vector)
    found = interpolation_recovery(*arguments, seed=0, budget=2 * V)
    np.testing.assert_allclose(found.kl[0], naive_kl(target, steered), atol=1e-12)
    expected = 1 - naive_kl(target, steered).sum() / naive_kl(target, start).sum()
    assert found.recovered[0].value == pytest.approx(expected, abs=1e-12)
    assert found.mean_kl[0] == pytest.approx(naive_kl(target, steered).mean())
    back = policy_readout(site.policy - 0.3 * vector)
    found = inversion_recovery(*arguments, seed=0)
    np.testing.assert_allclose(found.kl[0], naive_kl(start, back), atol=1e-12)
    expected = 1 - naive_kl(start, back).sum() / naive_kl(start, target).sum()
    assert found.recovered[0].value == pytest.approx(expected, abs=1e-12)


def test_float32_rows_are_good_to_single_precision():
    exact, single = Site(2), Site(2, dtype=torch.float32)
    both = [
        values(
            interpolation_recovery(
                s.base, s.policy, s.readout, s.readout, s.vector, [0.2, 1], seed=0
            )
        )
        for s in (exact, single)
    ]
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)


def test_intervals_hold_the_value_and_widen_with_groups():
    site = Site(3)
    rows = [torch.repeat_interleave(x, 4, 0) for x in (site.base, site.policy)]
    shift = (site.policy - site.base).mean(0).numpy()
    arguments = (*rows, site.readout, site.readout, shift, [1.0])
    groups = np.repeat(np.arange(N), 4)
    each = interpolation_recovery(*arguments, seed=0).recovered[0]
    grouped = interpolation_recovery(*arguments, seed=0, groups=groups).recovered[0]
    assert each.low < each.value < each.high
    assert grouped.high - grouped.low > 1.5 * (each.high - each.low)
    assert grouped.draws == 1000


def test_equal_models_have_nothing_to_recover():
    site = Site(4)
    for function in (interpolation_recovery, inversion_recovery):
        found = function(
            site.base, site.base, site.readout, site.readout, site.vector, [0, 1], seed=0
        )
        assert np.isnan(values(found)).all()
        assert "base and policy agree" in found.reason
        assert found.kl[1].mean() > 0
    fitted = fit_logit_bias(site.base, site.base, site.readout, site.readout)
    np.testing.assert_allclose(fitted.bias, 0, atol=1e-9)


def test_subspace_recovery_grows_from_nothing_to_everything():
    site = Site(5, curved=True)
    shift = (site.policy - site.base).numpy()
    basis = spectrum(shift).directions
    arguments = (site.base, site.policy, site.readout, site.readout)
    found = subspace_recovery(*arguments, basis, range(D + 1), seed=0)
    np.testing.assert_allclose(values(found)[[0, D]], [0, 1], atol=1e-12)
    assert values(found)[1] > 0.2
    steered = site.base + torch.as_tensor(shift @ basis[:2].T @ basis[:2])
    np.testing.assert_allclose(
        found.kl[2], naive_kl(site.readout(site.policy), site.readout(steered)), atol=1e-12
    )
    mean = shift.mean(0)
    centred = subspace_recovery(
        *arguments, spectrum(shift, centred=True).directions, [0, D], mean=mean, seed=0
    )
    plain = interpolation_recovery(*arguments, mean, [1.0], seed=0)
    np.testing.assert_allclose(values(centred), [values(plain)[0], 1], atol=1e-12)


def test_a_planted_logit_bias_is_found():
    site = Site(6)
    planted = site.bias - site.bias.mean()
    policy_readout = lambda rows: site.readout(rows) + planted + 3.0  # noqa: E731
    arguments = (site.base, site.base, site.readout, policy_readout)
    fitted = fit_logit_bias(*arguments)
    np.testing.assert_allclose(fitted.bias, planted.numpy(), atol=1e-6)
    assert fitted.bias.mean() == pytest.approx(0, abs=1e-12)
    assert fitted.kl_before > 0.1
    assert fitted.kl_after < 1e-12
    assert fitted.residual < 1e-8
    found = bias_recovery(*arguments, fitted.bias, [0, 1], seed=0)
    np.testing.assert_allclose(values(found), [0, 1], atol=1e-9)
    back = bias_recovery(*arguments, fitted.bias, [0, 1], seed=0, direction="invert")
    assert back.direction == "invert"
    np.testing.assert_allclose(values(back), [0, 1], atol=1e-9)


def test_the_fit_is_the_minimum():
    site = Site(7)
    arguments = (site.base, site.policy, site.readout, site.readout)
    fitted = fit_logit_bias(*arguments, budget=5 * V)
    assert fitted.residual < 1e-7
    assert fitted.kl_after < fitted.kl_before
    generator = np.random.default_rng(0)
    for _ in range(20):
        nearby = fitted.bias + 0.05 * generator.standard_normal(V)
        moved = bias_recovery(*arguments, nearby, [1.0], seed=0)
        assert moved.mean_kl[0] > fitted.kl_after
    cached = fit_logit_bias(*arguments)
    np.testing.assert_allclose(cached.bias, fitted.bias, atol=1e-6)


def test_tokens_the_policy_never_uses_do_not_break_the_fit():
    site = Site(8)
    never = torch.zeros(V, dtype=torch.float64)
    never[0] = -2000.0
    fitted = fit_logit_bias(
        site.base, site.base, site.readout, lambda rows: site.readout(rows) + never
    )
    assert np.isfinite(fitted.bias).all()
    assert fitted.kl_after < 1e-4 * fitted.kl_before


def test_at_h_a_steering_vector_is_a_constant_logit_bias():
    site = Site(9)
    arguments = (site.base, site.policy, site.readout, site.readout)
    coefficients = [-0.5, 0.5, 1, 2]
    steered = interpolation_recovery(*arguments, site.vector, coefficients, seed=0)
    bias = site.vector @ site.W_U.numpy()
    biased = bias_recovery(*arguments, bias, coefficients, seed=0)
    np.testing.assert_allclose(steered.kl, biased.kl, atol=1e-12)
    best = fit_logit_bias(*arguments).kl_after
    assert best <= steered.mean_kl.min() + 1e-12


def test_errors():
    site = Site()
    arguments = (site.base, site.policy, site.readout, site.readout)
    with pytest.raises(ShapeError, match=r"\(24, 5\) and \(23, 5\), expected two"):
        kl(site.readout, site.base, site.readout, site.policy[1:])
    with pytest.raises(ShapeError, match="equal shapes: both models need one vocabulary"):
        kl(site.readout, site.base, lambda rows: site.readout(rows)[:, 1:], site.policy)
    with pytest.raises(ShapeError, match="found 4 entries, expected 5, the d_model"):
        interpolation_recovery(*arguments, np.ones(4), [1], seed=0)
    with pytest.raises(ShapeError, match="found 3 entries, expected 11, the vocabulary"):
        bias_recovery(*arguments, np.ones(3), [1], seed=0)
    with pytest.raises(ShapeError, match=r"found ranks \[6\], expected integers from 0 to 5"):
        subspace_recovery(*arguments, np.eye(D), [1, 6], seed=0)
    with pytest.raises(ShapeError, match="differ from orthonormal"):
        subspace_recovery(*arguments, np.ones((2, D)), [1], seed=0)
    with pytest.raises(ShapeError, match="grid: found shape"):
        interpolation_recovery(*arguments, site.vector, [], seed=0)
    broken = site.policy.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(ShapeError, match="1 NaN or infinite entries, the first at row 3, column 2"):
        kl(site.readout, site.base, site.readout, broken)
