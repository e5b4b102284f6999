"""Statistics of steered distributions against closed forms on a vocabulary of two tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import Readout
from dsteer_tl.steering import reference as reference_module
from dsteer_tl.steering.interventions import Intervention
from dsteer_tl.steering.logit_algebra import Line, score_grid, steered_logits
from dsteer_tl.steering.reference import Reference, compare
from dsteer_tl.steering.replay import unsteered_logits
from dsteer_tl.steering.scored import (
    STATISTICS,
    Batch,
    Scored,
    TokenSequence,
    batches,
    token_log_probabilities,
)
from dsteer_tl.steering.sums import Sums
from tests.steering.tiny_steering import SEQUENCES, at
from tests.tiny_pairs import tiny_pair

BASE, POLICY = (0.3, -1.2), (1.1, 0.4)  # log-odds of token 1 after even and odd tokens
PAIR = (
    TokenSequence((0, 1), (1, 0)),
    TokenSequence((0,), (1,)),
)


def host(vocabulary: int) -> Any:
    """What the algebra needs of a model besides its logits."""
    readout = Readout(torch.eye(vocabulary), torch.zeros(vocabulary))
    return SimpleNamespace(readout=readout, device=torch.device("cpu"))


def two_tokens(odds: tuple[float, float], batch: Batch) -> Tensor:
    """Logits of two tokens whose log-odds of token 1 depend on the token before."""
    z = torch.tensor(odds, dtype=torch.float64)[batch.at_tokens(batch.ids)]
    return torch.stack([torch.zeros_like(z), z], dim=-1)


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def bernoulli_kl(p: float, q: float) -> float:
    return float(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def toward_one() -> Intervention:
    return Intervention(name="bias", logit_bias=np.array([0.0, 1.0]))


def score(scales: tuple[float, ...], way: str, token_budget: int = 100) -> Scored:
    total = Sums(len(scales), len(PAIR))
    for batch in batches(PAIR, token_budget):
        reference = Reference(
            {"base": two_tokens(BASE, batch), "policy": two_tokens(POLICY, batch)}
        )
        total.note(batch, reference)
        if way == "grid":
            line = Line(host(2), toward_one(), scales)
            total.add(0, batch, score_grid(line, "base", batch, reference))
            continue
        direction = torch.tensor([0.0, 1.0], dtype=torch.float64)
        logits = reference.models["base"].logits
        for index, scale in enumerate(scales):
            moved = steered_logits(host(2), logits, direction, scale, is_bias=True)
            total.add(index, batch, compare(moved, batch, reference))
    return total.scored()


@pytest.mark.parametrize("way", ["grid", "compare"])
@pytest.mark.parametrize("token_budget", [1, 100])
def test_closed_forms(way: str, token_budget: int) -> None:
    scales = (-2.0, 0.0, 0.5, 4.0)
    found = score(scales, way, token_budget)
    # Contexts of the scored tokens: of (0 1 | 1 0) they are 1 and 1, of (0 | 1) it is 0.
    contexts, targets = ((1, 1), (0,)), ((1, 0), (1,))
    assert found.tokens.tolist() == [2, 1]
    for place in range(2):
        for index, scale in enumerate(scales):
            expected = dict.fromkeys(STATISTICS, 0.0)
            for context, target in zip(contexts[place], targets[place], strict=True):
                q = sigmoid(BASE[context] + scale)
                expected["log_probability"] += float(np.log(q if target else 1 - q))
                for name, odds in (("base", BASE), ("policy", POLICY)):
                    p = sigmoid(odds[context])
                    expected[f"kl_{name}"] += bernoulli_kl(p, q)
                    expected[f"top1_{name}"] += float((p > 0.5) == (q > 0.5))
            for name, value in expected.items():
                assert getattr(found, name)[index, place] == pytest.approx(value, abs=1e-12), name
        for name, odds in (("base", BASE), ("policy", POLICY)):
            own = sum(
                np.log(sigmoid(odds[c]) if t else 1 - sigmoid(odds[c]))
                for c, t in zip(contexts[place], targets[place], strict=True)
            )
            assert getattr(found, f"{name}_log_probability")[place] == pytest.approx(own)


def test_the_right_scale_turns_one_model_into_the_other() -> None:
    """After even tokens the policy is the base + 0.8, after odd ones base + 1.6."""
    found = score((0.8, 1.6), "grid")
    assert found.kl_policy[0, 1] == pytest.approx(0, abs=1e-12)
    assert found.kl_policy[1, 0] == pytest.approx(0, abs=1e-12)
    assert found.kl_policy[1, 1] > 0.01 and found.kl_policy[0, 0] > 0.01


# Invariants of the grid, on any logits


def random_reference(seed: int, vocabulary: int, spread: float) -> tuple[Batch, Reference]:
    generator = torch.Generator().manual_seed(seed)
    tables = [spread * torch.randn(vocabulary, vocabulary, generator=generator) for _ in range(2)]
    ids = torch.randint(0, vocabulary, (12,), generator=generator).tolist()
    sequences = (TokenSequence(tuple(ids[:3]), tuple(ids[3:])), TokenSequence((1,), (0, 1)))
    (batch,) = batches(sequences, 1000)
    base, policy = (table[batch.at_tokens(batch.ids)] for table in tables)
    return batch, Reference({"base": base, "policy": policy})


def by_bias(values: np.ndarray, scales: list[float]) -> Line:
    return Line(host(len(values)), Intervention(name="bias", logit_bias=values), scales)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.integers(2, 40),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    scales=st.lists(st.floats(-200, 200), min_size=1, max_size=6),
)
def test_the_grid_equals_one_coefficient_at_a_time(
    seed: int, vocabulary: int, spread: float, scales: list[float]
) -> None:
    batch, reference = random_reference(seed, vocabulary, spread)
    values = np.random.default_rng(seed).normal(size=vocabulary)
    found = score_grid(by_bias(values, [*scales, 0.0]), "base", batch, reference)
    direction = torch.from_numpy(values)
    for index, scale in enumerate([*scales, 0.0]):
        own = {name: numbers[index] for name, numbers in found.items()}
        moved = reference.models["base"].logits.double() + scale * direction
        expected = compare(moved, batch, reference)
        for name in ("log_probability", "kl_base", "kl_policy"):
            torch.testing.assert_close(own[name], expected[name], rtol=1e-5, atol=1e-4)
        # Near ties may fall either way in float32.
        top = moved.topk(2, dim=-1).values
        clear = top[:, 0] - top[:, 1] > 1e-3
        for name in ("top1_base", "top1_policy"):
            assert torch.equal(own[name][clear], expected[name][clear])
            assert set(own[name].tolist()) <= {0.0, 1.0}
        assert bool((own["kl_base"] >= 0).all()) and bool((own["kl_policy"] >= 0).all())
        assert bool((own["log_probability"] <= 1e-9).all())
    assert float(found["kl_base"][-1].max()) < 1e-6 and bool(found["top1_base"][-1].all())


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), constant=st.floats(-3, 3))
def test_a_constant_on_all_logits_changes_nothing(seed: int, constant: float) -> None:
    batch, reference = random_reference(seed, 15, 3.0)
    values = np.random.default_rng(seed).normal(size=15)
    one, other = (
        score_grid(by_bias(own, [-1.0, 2.0]), "base", batch, reference)
        for own in (values, values + constant)
    )
    for name in ("log_probability", "kl_base", "kl_policy"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spread", [1e-3, 30.0])
def test_many_and_few_candidates_for_the_likeliest_token(spread: float) -> None:
    """With nearly equal logits every token can be the likeliest somewhere on the grid."""
    batch, reference = random_reference(0, 30, spread)
    values = np.random.default_rng(1).normal(size=30)
    scales = [-5.0, -0.3, 0.0, 1.0, 5.0]
    found = score_grid(by_bias(values, scales), "base", batch, reference)
    for index, scale in enumerate(scales):
        moved = reference.models["base"].logits + scale * torch.from_numpy(values).float()
        expected = (reference.models["policy"].top == moved.argmax(dim=-1)).double()
        assert torch.equal(found["top1_policy"][index], expected)


# Statistics in blocks of rows against plain float64


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 40),
    block=st.sampled_from([1, 50, 300, 10**6]),
    spread=st.sampled_from([0.0, 1.0, 40.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_statistics_equal_plain_float64(
    seed: int, rows: int, block: int, spread: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = [(spread * torch.randn(rows, 37, generator=generator)).to(dtype) for _ in range(3)]
    targets = torch.randint(0, 37, (rows,), generator=generator)
    batch = SimpleNamespace(targets=targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_module, "_CACHED", block)
        reference = Reference({"base": logits[0], "policy": logits[1]})
        found = compare(logits[2], batch, reference)  # type: ignore[arg-type]
    base, policy, steered = (torch.log_softmax(own.double(), dim=-1) for own in logits)
    own = steered.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found["log_probability"], own, rtol=1e-12, atol=1e-12)
    for name, log_p in (("base", base), ("policy", policy)):
        kl = (log_p.exp() * (log_p - steered)).sum(dim=-1)
        torch.testing.assert_close(found[f"kl_{name}"], kl, rtol=1e-10, atol=1e-11)
        same = log_p.argmax(dim=-1) == steered.argmax(dim=-1)
        assert torch.equal(found[f"top1_{name}"], same.double())
        unsteered = reference.models[name].log_probability(targets)  # type: ignore[index]
        torch.testing.assert_close(
            unsteered, log_p.gather(1, targets[:, None])[:, 0], rtol=1e-12, atol=1e-12
        )
    cross = (policy.exp() * logits[0].double()).sum(dim=-1)
    torch.testing.assert_close(reference.mean_logit("base", "policy"), cross)
    assert float(compare(logits[0], batch, reference)["kl_base"].max()) == 0  # type: ignore[arg-type]


# Tokens of given sequences


def test_token_log_probabilities() -> None:
    lens = tiny_pair("llama").base
    rows = [*SEQUENCES, TokenSequence((3, 4), ())]
    found = token_log_probabilities(lens, rows, token_budget=20)
    assert [len(row) for row in found] == [4, 5, 1, 7, 1, 0]
    for sequence, own in zip(SEQUENCES, found, strict=False):
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.completion_ids]])
        with torch.inference_mode():
            log_p = torch.log_softmax(lens.forward(ids, torch.ones_like(ids)).double(), -1)[0]
        first = len(sequence.prompt_ids) - 1
        expected = [float(log_p[first + i, t]) for i, t in enumerate(sequence.completion_ids)]
        assert own == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("bad", [TokenSequence((), (1,)), TokenSequence((1,), ())])
def test_sequences_without_prompt_or_completion_are_refused(bad: TokenSequence) -> None:
    with pytest.raises(ShapeError, match=r"sequence 1: found \d prompt and \d completion tokens"):
        next(batches((SEQUENCES[0], bad), 100))


def test_every_scored_token_is_there_once() -> None:
    seen: list[tuple[int, int, int]] = []
    for batch in batches(SEQUENCES, 12):
        for row, position, target, owner in zip(
            batch.rows.tolist(),
            batch.positions.tolist(),
            batch.targets.tolist(),
            batch.owner.tolist(),
            strict=True,
        ):
            assert int(batch.ids[row, position + 1]) == target
            assert bool(batch.mask[row, position + 1])
            assert batch.prompt_lengths[row] == len(SEQUENCES[owner].prompt_ids)
            seen.append((owner, position - batch.prompt_lengths[row] + 1, target))
    assert sorted(seen) == [
        (owner, index, token)
        for owner, sequence in enumerate(SEQUENCES)
        for index, token in enumerate(sequence.completion_ids)
    ]


def test_a_vector_at_h_is_a_logit_bias() -> None:
    """b = W_Uᵀv, so both give the same numbers."""
    lens = tiny_pair("phi").base
    item = at("h")
    values = item.vectors[0].values @ lens.W_U.double().numpy()
    same = Intervention(name="bias", logit_bias=values)
    (batch,) = batches(SEQUENCES, 1000)
    policy = tiny_pair("phi").policy
    reference = Reference(
        {
            "base": unsteered_logits(lens, batch)[0],
            "policy": unsteered_logits(policy, batch)[0],
        }
    )
    found, expected = (
        score_grid(Line(lens, own, (1.5,)), "base", batch, reference) for own in (item, same)
    )
    for name in STATISTICS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-9)
