"""Components of the policy in the base, against plain transformers with hooks on its modules."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.attribution.component_patching import (
    ComponentPatch,
    PatchedRows,
    component_patches,
    patch_components,
)
from dsteer_tl.attribution.holding import layers_holding
from dsteer_tl.attribution.layers import patch_sites
from dsteer_tl.attribution.patched_batch import PatchedBatch
from dsteer_tl.errors import ShapeError
from dsteer_tl.measurements import MeasurementConfiguration
from dsteer_tl.measurements.attribution_tables import component_patching_table
from dsteer_tl.positions import probes_from_prompts
from tests.attribution.plain_blocks import hooked, plain_states
from tests.models import LAYERS, policy_of, random_model, tiny_tokenizer
from tests.tiny_pairs import PAIRS, encoded_pairs, probes, tiny_pair

PATCHES = component_patches(LAYERS, responses=True)


@cache
def found(architecture: str = "llama") -> dict[tuple[str, str], PatchedRows]:
    kept = patch_components(
        tiny_pair(architecture),
        probes(),
        encoded_pairs(),
        PATCHES,
        token_budget=300,
        seed=0,
        progress=False,
    )
    return {(name_of(patch), source): rows for (patch, source), rows in kept.items()}


@cache
def table() -> pd.DataFrame:
    return component_patching_table(
        tiny_pair(), probes(), encoded_pairs(), MeasurementConfiguration(draws=30), progress=False
    )


def name_of(patch: ComponentPatch) -> str:
    return f"{patch.group}/{patch.component}/{patch.layer}/{patch.positions}"


def chosen_tokens(positions: str, length: int, prompt: int) -> torch.Tensor:
    place = torch.arange(length)
    return {
        "all": place >= 0,
        "prompt": place < prompt,
        "last_prompt": place == prompt - 1,
        "response": place >= prompt,
    }[positions]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
@torch.no_grad()
def test_every_patch_against_plain_transformers(architecture: str) -> None:
    """Divergences and margins of one pair, for every group and every choice of tokens."""
    base, policy = random_model(architecture), policy_of(random_model(architecture), scale=0.05)
    base, policy = base.double(), policy.double()
    item, probe = encoded_pairs()[3], probes()[3]
    kept = patch_components(
        tiny_pair(architecture),
        [probe],
        encoded_pairs(),
        PATCHES,
        token_budget=300,
        seed=0,
        progress=False,
    )
    texts = [(*item.prompt_ids, *ids) for ids in (item.chosen_ids, item.rejected_ids)]
    prompt = len(item.prompt_ids)

    def likelihood(logits: torch.Tensor, ids: tuple[int, ...]) -> float:
        rows = logits.log_softmax(-1)[prompt - 1 : -1]
        return float(rows[torch.arange(len(rows)), torch.tensor(ids[prompt:])].sum())

    states = [(plain_states(base, ids), plain_states(policy, ids)) for ids in texts]
    margins = [
        likelihood(states[0][m]["logits"], texts[0]) - likelihood(states[1][m]["logits"], texts[1])
        for m in (0, 1)
    ]
    for patch in PATCHES:
        logits = []
        for ids, (_, own) in zip(texts, states, strict=True):
            where = chosen_tokens(patch.positions, len(ids), prompt)
            with hooked(base, {place: (own[place], where) for place in patch.places}):
                logits.append(plain_states(base, ids)["logits"])
        result = kept[patch, "policy"]
        expected = likelihood(logits[0], texts[0]) - likelihood(logits[1], texts[1]) - margins[0]
        assert result.margin == pytest.approx([expected], abs=2e-4)
        assert result.margin_policy == pytest.approx([margins[1] - margins[0]], abs=2e-4)
        target = states[0][1]["logits"].log_softmax(-1)
        index = 0
        for kind, positions in probe.positions.items():
            for position in positions:
                if patch.positions == "response" and position < prompt:
                    continue
                assert result.kinds[index] == kind
                for model, value in (
                    (logits[0], result.kl),
                    (states[0][0]["logits"], result.kl_base),
                ):
                    after = model[position].log_softmax(-1)
                    kl = float((target[position].exp() * (target[position] - after)).sum())
                    assert value[index] == pytest.approx(kl, abs=1e-4)
                index += 1
        assert index == len(result.kinds)


def test_everything_gives_the_policy() -> None:
    for architecture in ("llama", "gpt2", "olmo2"):
        rows = found(architecture)
        for name in ("from/both/0/all", f"upto/both/{LAYERS - 1}/all"):
            assert np.abs(rows[name, "policy"].kl).max() < 1e-5
            assert rows[name, "policy"].margin == pytest.approx(
                rows[name, "policy"].margin_policy, abs=1e-4
            )


def test_upto_a_layer_is_the_stream_of_that_layer() -> None:
    """The embedding is frozen, so all writes up to layer 0 are the policy's resid_post.0."""
    site = patch_sites(
        tiny_pair(), probes(), ["resid_post.0"], token_budget=300, seed=0, progress=False
    )[0]
    rows = found()["upto/both/0/all", "policy"]
    for kind in ("last_prompt", "response"):
        one = site.kl[np.array(site.kinds) == kind].sum()
        two = rows.kl[np.array(rows.kinds) == kind].sum()
        assert two == pytest.approx(one, rel=1e-4)


def test_the_random_change_is_as_long_as_the_policy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: dict[tuple[str, str], torch.Tensor] = {}
    original = PatchedBatch._replaced

    def recorded(self: PatchedBatch, place: str, source: str) -> torch.Tensor:
        replaced[place, source] = original(self, place, source)
        replaced[place, "base"] = self._kept[place]
        return replaced[place, source]

    monkeypatch.setattr(PatchedBatch, "_replaced", recorded)
    patch_components(
        tiny_pair(), probes()[:2], [], PATCHES[:4], token_budget=300, seed=0, progress=False
    )
    for place in ("attn_out.0", "mlp_out.1"):
        policy, random = (replaced[place, name] - replaced[place, "base"] for name in SOURCES)
        torch.testing.assert_close(random.norm(dim=-1), policy.norm(dim=-1), rtol=1e-3, atol=1e-6)
        assert torch.nn.functional.cosine_similarity(random, policy, dim=-1).abs().mean() < 0.5


SOURCES = ("policy", "random")


def test_batching_does_not_change_the_numbers() -> None:
    """Random changes differ by batch, as they are drawn by batch."""
    chosen = [p for p in PATCHES if name_of(p) in ("component/mlp_out/0/all", "from/both/1/prompt")]
    assert len(chosen) == 2
    alone = patch_components(
        tiny_pair(), probes(), encoded_pairs(), chosen, token_budget=1, seed=0, progress=False
    )
    for patch in chosen:
        one, two = found()[name_of(patch), "policy"], alone[patch, "policy"]
        assert one.kl.sum() == pytest.approx(two.kl.sum(), rel=1e-4)
        assert one.margin == pytest.approx(two.margin, abs=1e-3)


def test_what_a_token_cannot_reach_is_left_out() -> None:
    rows = table()
    response = rows[rows["positions"] == "response"]
    assert set(response["position_kind"]) == {"divergence", "response"}
    whole = rows[(rows["positions"] == "all") & (rows["position_kind"] == "divergence")]["n"].max()
    assert (response[response["position_kind"] == "divergence"]["n"] < whole).all()


def test_the_table() -> None:
    rows = table()
    assert set(rows["group"]) == {"component", "from", "upto"}
    assert set(rows[rows["group"] != "from"]["positions"]) == {"all"}
    assert set(rows["positions"]) == {"all", "prompt", "last_prompt", "response"}
    assert not rows.duplicated(
        ["group", "component", "layer", "positions", "position_kind", "effect"]
    ).any()
    margin = rows[rows["effect"] == "margin"]
    assert set(margin["position_kind"]) == {"response"} and (margin["n"] == len(PAIRS)).all()
    assert (rows["low"] <= rows["recovered"]).all() and (rows["recovered"] <= rows["high"]).all()
    row = margin.query("group == 'component' and component == 'mlp_out' and layer == 0").iloc[0]
    kept = found()["component/mlp_out/0/all", "policy"]
    assert row["recovered"] == pytest.approx(kept.margin.sum() / kept.margin_policy.sum(), rel=1e-3)
    again = component_patching_table(
        tiny_pair(), probes(), encoded_pairs(), MeasurementConfiguration(draws=30), progress=False
    )
    pd.testing.assert_frame_equal(again, rows)


def test_prompts_alone_have_no_margin() -> None:
    prompts = probes_from_prompts(tiny_tokenizer(), sorted({pair.prompt for pair in PAIRS}))
    rows = component_patching_table(
        tiny_pair(), prompts, [], MeasurementConfiguration(draws=10), progress=False
    )
    assert set(rows["effect"]) == {"kl"} and set(rows["position_kind"]) == {"last_prompt"}
    assert set(rows["positions"]) == {"all", "last_prompt"}
    whole = rows.query("group == 'from' and layer == 0 and positions == 'all'")
    assert whole["recovered"].iloc[0] == pytest.approx(1, abs=1e-4)


def test_pairs_of_other_probes_are_refused() -> None:
    with pytest.raises(ShapeError, match="probe 0 is not prompt and chosen response of pair 0"):
        component_patching_table(
            tiny_pair(),
            probes(),
            encoded_pairs()[::-1],
            MeasurementConfiguration(draws=10),
            progress=False,
        )


def cumulative(recovered: list[float], low: list[float] | None = None) -> pd.DataFrame:
    """Rows of group "from", the first of layer 0."""
    return pd.DataFrame(
        {
            "group": "from",
            "component": "both",
            "layer": range(len(recovered)),
            "positions": "all",
            "position_kind": "last_prompt",
            "effect": "kl",
            "recovered": recovered,
            "low": low if low is not None else recovered,
        }
    )


def test_layers_holding() -> None:
    rows = cumulative([1.0, 0.97, 0.93, 0.4], low=[1.0, 0.95, 0.85, 0.3])
    assert layers_holding(rows, position_kind="last_prompt") == 2
    assert layers_holding(rows, position_kind="last_prompt", bound="low") == 3
    assert layers_holding(rows, 0.3, position_kind="last_prompt") == 1
    assert layers_holding(rows, 0.99, position_kind="last_prompt") == 4
    assert layers_holding(cumulative([0.5, 0.4]), position_kind="last_prompt") is None
    for other in ({"position_kind": "response"}, {"effect": "margin"}, {"positions": "prompt"}):
        assert layers_holding(rows, **{"position_kind": "last_prompt", **other}) is None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9), st.floats(-1, 1))
def test_layers_holding_is_the_smallest_number(recovered: list[float], share: float) -> None:
    expected = next(
        (k for k in range(1, len(recovered) + 1) if recovered[len(recovered) - k] >= share), None
    )
    rows = cumulative(recovered).sample(frac=1, random_state=0)
    assert layers_holding(rows, share, position_kind="last_prompt") == expected
