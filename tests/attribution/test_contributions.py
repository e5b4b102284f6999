"""Direct contributions against plain transformers in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dsteer_tl.attribution.contributions import NULL_DIRECTIONS, direct_contributions
from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.errors import DataError
from dsteer_tl.measurements import MeasurementConfiguration
from dsteer_tl.measurements.attribution_tables import contribution_table
from tests.attribution.plain_blocks import plain_states, projection_of
from tests.models import LAYERS, policy_of, random_model
from tests.tiny_pairs import probes, tiny_pair

HEADS = 4
SETTINGS = MeasurementConfiguration(draws=30)


@cache
def shift_set(architecture: str) -> ShiftSet:
    return capture_shifts(
        tiny_pair(architecture), probes(), configuration=CaptureConfiguration(progress=False)
    )


@cache
def table(architecture: str) -> pd.DataFrame:
    return contribution_table(
        tiny_pair(architecture), probes(), shift_set(architecture), SETTINGS, progress=False
    )


def at(architecture: str, kind: str) -> pd.DataFrame:
    found = table(architecture)
    return found[found["position_kind"] == kind].set_index("component")


def written(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What every component adds to the stream, ``[position, d_model]``."""
    found = {"embed": state["embed"]}
    for layer in range(LAYERS):
        found[f"attn.{layer}"] = state[f"attn_out.{layer}"]
        found[f"mlp.{layer}"] = state[f"mlp_out.{layer}"]
        module = projection_of(model, layer)
        weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
        z = state[f"z.{layer}"].flatten(1)
        width = z.shape[1] // HEADS
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            found[f"head.{layer}.{head}"] = z[:, part] @ weight[part]
        bias = module.bias if module.bias is not None else torch.zeros(weight.shape[1])
        found[f"attn_bias.{layer}"] = bias.expand_as(state["embed"]).double()
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("kind", ["last_prompt", "response"])
@torch.no_grad()
def test_every_component_against_plain_transformers(architecture: str, kind: str) -> None:
    plain = random_model(architecture)
    models = [plain.double(), policy_of(random_model(architecture), scale=0.05).double()]
    shifts: list[np.ndarray] = []
    parts: list[list[dict[str, np.ndarray]]] = []
    prompts: list[int] = []
    for probe in probes():
        states = [plain_states(model, probe.ids) for model in models]
        split = [written(m, s) for m, s in zip(models, states, strict=True)]
        for position in probe.positions[kind]:
            prompts.append(probe.prompt)
            shifts.append((states[1]["last"] - states[0]["last"])[position].numpy())
            parts.append([{k: v[position].numpy() for k, v in each.items()} for each in split])
    delta, groups = np.stack(shifts), np.array(prompts)
    first, second = shift_set(architecture).halves(kind, SETTINGS.seed)
    unit = np.empty_like(delta)
    for own, other in ((first, second), (second, first)):
        vector = delta[np.isin(groups, list(other))].mean(axis=0)
        unit[np.isin(groups, list(own))] = vector / np.linalg.norm(vector)
    total = (delta * unit).sum()
    rows = at(architecture, kind)
    assert set(rows.index) == set(parts[0][0])
    for name in parts[0][0]:
        base, policy = (np.stack([part[model][name] for part in parts]) for model in (0, 1))
        assert rows.loc[name, "base"] == pytest.approx((base * unit).sum(1).mean(), abs=1e-5)
        assert rows.loc[name, "policy"] == pytest.approx((policy * unit).sum(1).mean(), abs=1e-5)
        share = ((policy - base) * unit).sum() / total
        assert rows.loc[name, "share"] == pytest.approx(share, abs=1e-5)
    assert (rows["n"] == len(delta)).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox", "gemma2", "olmo2"])
def test_shares_add_up(architecture: str) -> None:
    for kind in ("last_prompt", "divergence", "response"):
        rows = at(architecture, kind)
        blocks = rows[rows["kind"].isin(["embed", "attention", "mlp"])]
        assert blocks["share"].sum() == pytest.approx(1, abs=1e-5)
        assert (blocks["policy"] - blocks["base"]).to_numpy() == pytest.approx(
            blocks["change"].to_numpy(), abs=1e-9
        )
        heads = rows[rows["kind"].isin(["head", "bias"])]
        if architecture in {"gemma2", "olmo2"}:
            assert heads.empty
            continue
        for layer, part in heads.groupby("layer"):
            assert len(part) == HEADS + 1
            for column in ("base", "policy", "share"):
                whole = rows.loc[f"attn.{layer}", column]
                assert part[column].sum() == pytest.approx(whole, abs=1e-5)


def test_the_null_is_the_same_share_along_random_directions() -> None:
    """With one prompt per line and unit directions, the null range follows from the sums."""
    found = direct_contributions(
        tiny_pair(), probes(), shift_set("llama"), token_budget=400, seed=0, progress=False
    )["divergence"]
    assert found.random.shape == (len(found.prompts), len(found.components), NULL_DIRECTIONS)
    rows = at("llama", "divergence")
    for index, component in enumerate(found.components):
        shares = found.random[:, index].sum(axis=0) / found.shift.sum()
        low, high = np.quantile(shares, (0.025, 0.975))
        assert rows.loc[component.name, "null_low"] == pytest.approx(low)
        assert rows.loc[component.name, "null_high"] == pytest.approx(high)
    # Along a random direction the shift has about |δ|/√d of its length, with either sign.
    blocks = [c.kind in ("embed", "attention", "mlp") for c in found.components]
    whole = found.random[:, blocks].sum(axis=(0, 1)) / found.shift.sum()
    assert np.abs(whole).max() < 3 / np.sqrt(32) * 1.5 and (whole > 0).any() and (whole < 0).any()


def test_one_writer_alone() -> None:
    """Only the MLP of layer 1 is changed: its share is 1 and no other component moves."""
    from dsteer_tl.pair import ModelPair
    from tests.models import tiny_tokenizer

    policy = random_model()
    with torch.no_grad():
        weight = policy.model.layers[1].mlp.down_proj.weight
        weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    pair = ModelPair.load(random_model(), policy, tokenizer=tiny_tokenizer())
    shifts = capture_shifts(pair, probes(), configuration=CaptureConfiguration(progress=False))
    rows = contribution_table(pair, probes(), shifts, SETTINGS, progress=False)
    for _, part in rows.groupby("position_kind"):
        part = part.set_index("component")
        assert part.loc["mlp.1", "share"] == pytest.approx(1, abs=1e-5)
        others = part.drop(index="mlp.1")
        assert others["share"].abs().max() < 1e-5
        assert others[["null_low", "null_high"]].abs().to_numpy().max() < 1e-5


def test_batches_and_seeds_do_not_change_the_table() -> None:
    again = contribution_table(
        tiny_pair(),
        probes(),
        shift_set("llama"),
        MeasurementConfiguration(draws=30, token_budget=1),
        progress=False,
    )
    pd.testing.assert_frame_equal(again, table("llama"), rtol=1e-4, atol=1e-5)


def test_probes_that_were_not_captured_are_refused() -> None:
    captured = capture_shifts(
        tiny_pair(), probes()[:4], configuration=CaptureConfiguration(progress=False)
    )
    with pytest.raises(DataError, match=r"prompt \d has no captured last_prompt position"):
        contribution_table(tiny_pair(), probes(), captured, SETTINGS, progress=False)
