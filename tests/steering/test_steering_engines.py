"""Three ways to score under steering that must agree, and one that shares nothing with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dsteer_tl.errors import ConfigurationError, HookError
from dsteer_tl.sites import FINAL
from dsteer_tl.steering import logit_algebra
from dsteer_tl.steering.interventions import POSITIONS, SIGNS, Direction, Intervention, Positions
from dsteer_tl.steering.logit_algebra import logit_direction, steered_logits
from dsteer_tl.steering.reference import Role
from dsteer_tl.steering.replay import Replay, logits_by_hooks, unsteered_logits
from dsteer_tl.steering.scored import STATISTICS, Scored, TokenSequence, batches
from dsteer_tl.steering.teacher_forced import (
    HOSTS,
    Engine,
    Setting,
    score_directions,
    score_sequences,
)
from tests.models import ARCHITECTURES, backbone_parts, policy_of, random_model
from tests.steering.tiny_steering import SEQUENCES, at, bias, counted_passes
from tests.tiny_pairs import tiny_pair

SCALES = (-1.5, 0.0, 2.0)
FIELDS = (*STATISTICS, "base_log_probability", "policy_log_probability", "tokens")
DIRECTIONS: tuple[Direction, ...] = ("interpolate", "invert")


def interventions(positions: Positions) -> list[Intervention]:
    stacks = [("resid_post.0", FINAL), ("resid_post.0", "resid_post.1", FINAL)]
    sites = [(FINAL,), ("resid_post.0",), ("resid_post.1",), *stacks]
    if positions == "response":  # what differs from the others is the mask alone
        sites = [(FINAL,), stacks[1]]
    return [at(*own, positions=positions) for own in sites] + [bias(positions=positions)]


def scored(
    architecture: str,
    items: list[Intervention],
    direction: Direction,
    engine: Engine | str,
    scales: tuple[float, ...] = SCALES,
    token_budget: int = 4096,
) -> list[Scored]:
    return score_sequences(
        tiny_pair(architecture),
        [Setting.by_norm(item, scales) for item in items],
        SEQUENCES,
        direction,
        engine=engine,  # type: ignore[arg-type]
        token_budget=token_budget,
        progress=False,
    )


def equal(found: Scored, expected: Scored, tolerance: float, label: str) -> None:
    for name in FIELDS:
        np.testing.assert_allclose(
            getattr(found, name),
            getattr(expected, name),
            rtol=tolerance,
            atol=tolerance,
            err_msg=f"{label}: {name}",
        )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cheap_engines_equal_whole_passes_under_hooks(
    architecture: str, direction: Direction
) -> None:
    for positions in POSITIONS:
        items = interventions(positions)
        cheap = scored(architecture, items, direction, "auto", (-1.5, 2.0))
        slow = scored(architecture, items, direction, "hooks", (-1.5, 2.0))
        for item, found, expected in zip(items, cheap, slow, strict=True):
            equal(found, expected, 2e-4, f"{item.name} at {item.site}, {positions}")
            spread = np.ptp(expected.log_probability, axis=0)
            assert spread.max() > 0.1, f"{item.site} {positions}: steering does too little"


# In float64 with plain transformers


@contextmanager
def steered_plain(
    model: PreTrainedModel, item: Intervention, scale: float, steered: list[bool]
) -> Iterator[None]:
    blocks, norm, _ = backbone_parts(model)
    places = torch.tensor(steered)[:, None]

    def hook_of(added: np.ndarray) -> Any:
        offset = torch.where(places, scale * torch.from_numpy(added), 0.0)

        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + offset, *output[1:])
            return output + offset

        return hook

    with ExitStack() as stack:
        for vector in item.vectors:
            layer = None if vector.space == FINAL else int(vector.space.rsplit(".", 1)[1])
            module = norm if layer is None else blocks[layer]
            stack.callback(module.register_forward_hook(hook_of(vector.values)).remove)
        yield


@torch.no_grad()
def plain_log_p(
    model: PreTrainedModel, sequence: TokenSequence, item: Intervention | None, scale: float
) -> Tensor:
    """Log-probabilities over the vocabulary before each completion token."""
    ids, prompt = [*sequence.prompt_ids, *sequence.completion_ids], len(sequence.prompt_ids)
    places = {
        "all": [True] * len(ids),
        "prompt": [index < prompt for index in range(len(ids))],
        "response": [index >= prompt - 1 for index in range(len(ids))],
    }
    with ExitStack() as stack:
        if item is not None:
            steered = places[item.positions]
            stack.enter_context(steered_plain(model, item, scale, steered))
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    if item is not None and item.logit_bias is not None:
        added = scale * torch.from_numpy(item.logit_bias)
        logits = logits + torch.where(torch.tensor(steered)[:, None], added, 0.0)
    return torch.log_softmax(logits[prompt - 1 : -1], dim=-1)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi"])
def test_scores_equal_plain_transformers_in_float64(
    architecture: str, direction: Direction
) -> None:
    plain = {"base": random_model(architecture)}
    plain["policy"] = policy_of(plain["base"], scale=0.05)
    models = {role: copy.deepcopy(model).double() for role, model in plain.items()}
    items = [item for positions in POSITIONS for item in interventions(positions)]
    found = scored(architecture, items, direction, "auto", scales=(0.9,))
    for place, sequence in enumerate(SEQUENCES):
        targets = torch.tensor(sequence.completion_ids)[:, None]
        log_p = {role: plain_log_p(model, sequence, None, 0.0) for role, model in models.items()}
        for item, own in zip(items, found, strict=True):
            host = models[HOSTS[direction]]
            log_q = plain_log_p(host, sequence, item, 0.9 * SIGNS[direction])
            expected = {"log_probability": log_q.gather(1, targets).sum()}
            for role, values in log_p.items():
                expected[f"kl_{role}"] = (values.exp() * (values - log_q)).sum()
                agree = values.argmax(dim=-1) == log_q.argmax(dim=-1)
                expected[f"top1_{role}"] = agree.double().sum()
            for name, value in expected.items():
                assert getattr(own, name)[0, place] == pytest.approx(float(value), abs=5e-4), (
                    f"{name} of {item.name} at {item.site}, {item.positions}"
                )
        for role, values in log_p.items():
            unsteered = getattr(found[0], f"{role}_log_probability")[place]
            assert unsteered == pytest.approx(float(values.gather(1, targets).sum()), abs=2e-4)
    assert found[0].tokens.tolist() == [4, 5, 1, 7, 1]


# λ = 0, batching, extremes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_zero_coefficient_changes_no_bit(architecture: str) -> None:
    lens = tiny_pair(architecture).base
    (batch,) = batches(SEQUENCES, 4096)
    plain, residuals = unsteered_logits(lens, batch, ["resid_post.0", "resid_post.1"])
    with torch.inference_mode():
        whole = batch.at_tokens(lens.forward(batch.ids, batch.mask))
    torch.testing.assert_close(plain, whole, rtol=1e-6, atol=1e-5)
    for positions in POSITIONS:
        for item in interventions(positions):
            for zero in (0.0, -0.0):
                assert torch.equal(logits_by_hooks(lens, item, zero, batch), plain)
                if item.logit_bias is not None or item.site == FINAL:
                    direction = logit_direction(lens, item)
                    is_bias = item.logit_bias is not None
                    found = steered_logits(lens, plain, direction, zero, is_bias=is_bias)
                else:
                    site = item.vectors[0].space
                    residual = residuals[site] if positions == "all" else None
                    found = Replay(lens, batch, site, residual).logits(item, zero)
                assert torch.equal(found, plain), item.site


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_anchors_and_bounds(architecture: str, direction: Direction) -> None:
    items = [item for positions in POSITIONS for item in interventions(positions)]
    host = HOSTS[direction]
    for own in scored(architecture, items, direction, "auto"):
        zero = SCALES.index(0.0)
        assert np.abs(getattr(own, f"kl_{host}")[zero]).max() < 1e-9
        assert (getattr(own, f"top1_{host}")[zero] == own.tokens).all()
        unsteered = getattr(own, f"{host}_log_probability")
        np.testing.assert_allclose(own.log_probability[zero], unsteered, rtol=0, atol=1e-9)
        for name in ("base", "policy"):
            assert (getattr(own, f"kl_{name}") >= 0).all()
            top = getattr(own, f"top1_{name}")
            assert ((top >= 0) & (top <= own.tokens)).all()
        assert (own.log_probability < 0).all()


@pytest.mark.parametrize("token_budget", [1, 16])
def test_batching_changes_nothing(token_budget: int) -> None:
    items = [item for positions in POSITIONS for item in interventions(positions)]
    expected = scored("llama", items, "invert", "auto")
    found = scored("llama", items, "invert", "auto", token_budget=token_budget)
    for one, other in zip(found, expected, strict=True):
        equal(one, other, 1e-4, "batching")


@pytest.mark.parametrize("engine", ["auto", "hooks"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi"])
def test_extreme_coefficients_stay_finite(architecture: str, engine: str) -> None:
    items = [item for positions in POSITIONS for item in interventions(positions)]
    for own in scored(architecture, items, "interpolate", engine, scales=(-1e3, 1e3)):
        for name in FIELDS:
            assert np.isfinite(getattr(own, name)).all(), name


def test_extreme_coefficients_equal_hooks() -> None:
    """Far beyond the spread at which exponentials are shared."""
    items = [at(FINAL), bias()]
    cheap = scored("llama", items, "interpolate", "algebra", scales=(-1e3, -50.0, 50.0, 1e3))
    slow = scored("llama", items, "interpolate", "hooks", scales=(-1e3, -50.0, 50.0, 1e3))
    for one, other in zip(cheap, slow, strict=True):
        equal(one, other, 1e-4, "extreme")


# What is shared, and what is left out


@pytest.mark.parametrize("engine", ["auto", "hooks"])
def test_both_directions_share_their_passes(engine: str) -> None:
    """The same numbers as one direction at a time, from one pass of each model over a batch."""
    pair = tiny_pair("llama")
    own = {direction: [Setting.by_norm(at(FINAL), SCALES)] for direction in DIRECTIONS}
    own["invert"].append(Setting.by_norm(at("resid_post.1"), (0.0, 1.0)))
    with counted_passes() as passes:
        found = score_directions(
            pair,
            own,
            SEQUENCES,
            engine=engine,  # type: ignore[arg-type]
            progress=False,
        )
    # Above the two unsteered passes the hooks make one for each coefficient; the replay's λ = 0 is
    # the unsteered host.
    assert len(passes) == (2 + 1 if engine == "auto" else 2 + 3 + 3 + 2)
    for direction, curves in found.items():
        expected = score_sequences(
            pair,
            own[direction],
            SEQUENCES,
            direction,
            engine=engine,  # type: ignore[arg-type]
            progress=False,
        )
        for one, other in zip(curves, expected, strict=True):
            equal(one, other, 1e-12, direction)


@pytest.mark.parametrize("engine", ["auto", "hooks"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("references", [(), ("base",), ("policy",)])
def test_models_that_are_not_asked_for_are_not_run(
    references: tuple[Role, ...], direction: Direction, engine: str
) -> None:
    pair, host = tiny_pair("llama"), HOSTS[direction]
    items = [at(FINAL), bias(positions="prompt"), at("resid_post.0")]
    own = [Setting.by_norm(item, (-1.5, 2.0)) for item in items]
    expected = scored("llama", items, direction, engine, (-1.5, 2.0))
    with counted_passes() as passes:
        found = score_sequences(
            pair,
            own,
            SEQUENCES,
            direction,
            engine=engine,  # type: ignore[arg-type]
            references=references,
            progress=False,
        )
    needed = set(references) | ({host} if engine == "auto" else set())
    assert len(passes) == len(needed) + (2 if engine == "auto" else 6)
    for one, other in zip(found, expected, strict=True):
        for name in FIELDS:
            role = next((role for role in ("base", "policy") if role in name), None)
            if role is None or role in references:
                np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)
            else:
                assert np.isnan(getattr(one, name)).all(), name


def test_the_direction_of_the_logits_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = tiny_pair("phi").base
    item = at(FINAL)
    whole = item.vectors[0].values @ lens.W_U.double().numpy() * lens.readout.scale
    for columns in (1, 7, 10**6):
        monkeypatch.setattr(logit_algebra, "_COLUMNS", columns)
        np.testing.assert_allclose(logit_direction(lens, item).numpy(), whole, rtol=1e-12)


@pytest.mark.parametrize("kept", [0, 10**9])
def test_exponentials_are_kept_or_made_again(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scored("llama", [at(FINAL)], "interpolate", "hooks", token_budget=16)
    monkeypatch.setattr(logit_algebra, "_KEPT", kept)
    found = scored("llama", [at(FINAL)], "interpolate", "algebra", token_budget=16)
    equal(found[0], expected[0], 2e-4, "kept exponentials")


# What the engines refuse


def test_engines_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ConfigurationError, match=r"acts at 'resid_post\.0', where blocks follow"):
        scored("llama", [at("resid_post.0")], "interpolate", "algebra")
    with pytest.raises(ConfigurationError, match="nothing follows 'h': use engine='algebra'"):
        scored("llama", [at(FINAL)], "interpolate", "replay")
    (batch,) = batches(SEQUENCES, 4096)
    lens = tiny_pair("llama").base
    with pytest.raises(HookError, match="nothing follows 'h'"):
        Replay(lens, batch, FINAL)
    replay = Replay(lens, batch, "resid_post.1")
    for item in (at("resid_post.0"), at("resid_post.0", "resid_post.1"), bias()):
        with pytest.raises(HookError, match=r"the residual was kept at 'resid_post\.1'"):
            replay.logits(item, 1.0)
