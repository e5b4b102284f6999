"""Activations of the policy in the base: plain transformers one text at a time, closed cases."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from dsteer_tl.errors import HookError, PairError, ShapeError
from dsteer_tl.lens_model import LensModel, load_lens_model
from dsteer_tl.toxicity.neuron_edits import all_neurons
from dsteer_tl.toxicity.patching import KL_DRAWS, RANDOM_DRAWS, measure_patching, patching_sums
from dsteer_tl.toxicity.patching_shares import (
    EFFECTS,
    STATISTICS,
    Patch,
    PatchingSums,
    share_table,
)
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import Neurons, StudyTexts
from tests.models import LAYERS, backbone_parts, policy_of, random_model

PROMPTS = ((5, 9, 33), (8, 120), (14, 15, 92, 65), (3,))
CONTINUATIONS = ((2, 77, 41), (3, 18), (35,), ())
SEQUENCES = [a + b for a, b in zip(PROMPTS, CONTINUATIONS, strict=True)]
ATTRIBUTE = [(1, 3), (0, 7), (1, 20), (0, 31), (0, 2)]
CONFIGURATION = ToxicityConfiguration(neurons=2, token_budget=14, draws=50, seed=3)
PROBE = np.random.default_rng(0).standard_normal(32)
#: The module whose input is m.
OUTPUTS = {"gpt2": "c_proj", "neox": "dense_4h_to_h", "llama": "down_proj"}


def group(places: list[tuple[int, int]], name: str = "attribute") -> Neurons:
    layers, neurons = (np.array(part, dtype=np.int64) for part in zip(*places, strict=True))
    return Neurons(group=name, layers=layers, neurons=neurons, signs=np.ones_like(layers))


def texts() -> StudyTexts:
    return StudyTexts(
        prompts=PROMPTS,
        windows=(),
        window_prompt=1,
        continuations={"base": CONTINUATIONS, "policy": ((1,),) * len(PROMPTS)},
    )


def lens_of(model: Any) -> LensModel:
    return load_lens_model(copy.deepcopy(model), self_check=False)


def table(base: LensModel, policy: LensModel, places: list[tuple[int, int]]) -> pd.DataFrame:
    found = measure_patching(
        base, policy, texts(), PROBE, group(places), CONFIGURATION, progress=False
    )
    return found.set_index(["group", "neurons", "statistic", "effect"])


@torch.no_grad()
def plain_run(
    model: Any, architecture: str, sequence: tuple[int, ...], patched: dict[int, Any] | None = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Last residual, log-probabilities and m of every layer, m after its columns are replaced."""
    blocks, norm, _ = backbone_parts(model)
    last: list[Tensor] = []
    seen: list[Tensor] = []
    handles = [norm.register_forward_pre_hook(lambda _, a: last.append(a[0][0].double()))]

    def at(_: Any, arguments: Any, *, layer: int) -> Any:
        m = arguments[0].clone()
        if patched and layer in patched:
            index, values = patched[layer]
            m[0][:, index] = values
        seen.append(m[0])
        return (m,)

    for layer, block in enumerate(blocks):
        module = getattr(block.mlp, OUTPUTS[architecture])
        handles.append(module.register_forward_pre_hook(functools.partial(at, layer=layer)))
    logits = model(torch.tensor([list(sequence)])).logits[0].double()
    for handle in handles:
        handle.remove()
    return last[0], logits.log_softmax(-1), seen


@torch.no_grad()
def reference(
    base: Any, policy: Any, architecture: str, neurons: Neurons, unread: tuple[int, ...] = ()
) -> dict[Any, Any]:
    """The sums of every prompt, by their definition."""
    unit = torch.tensor(PROBE / np.linalg.norm(PROBE))
    found: dict[Any, list[float]] = {}
    for sequence in SEQUENCES:
        there, log_p, theirs = plain_run(policy, architecture, sequence)
        here, log_q, ours = plain_run(base, architecture, sequence)
        columns = {layer: neurons.of_layer(layer).tolist() for layer in range(LAYERS)}
        total, log_total, _ = plain_run(
            base, architecture, sequence, {i: (c, theirs[i][:, c]) for i, c in columns.items()}
        )
        direct = here.clone()
        for layer, chosen in columns.items():
            output = getattr(backbone_parts(base)[0][layer].mlp, OUTPUTS[architecture])
            values = output.weight if architecture == "gpt2" else output.weight.T
            direct += (theirs[layer] - ours[layer])[:, chosen].double() @ values[chosen].double()
        _, norm, unembedding = backbone_parts(base)
        log_direct = unembedding(norm(direct.float())).double().log_softmax(-1)

        def kl(log_r: Tensor, log_p: Tensor = log_p) -> float:
            return float((log_p.exp() * (log_p - log_r)).sum())

        for name, value in {
            "probe_projection": (there - here) @ unit,
            ("probe_projection", "total"): (total - here) @ unit,
            ("probe_projection", "direct"): (direct - here) @ unit,
        }.items():
            read = [place for place, token in enumerate(sequence) if token not in unread]
            found.setdefault(name, []).append(float(value[read].mean()))
        for name, number in {
            "kl": kl(log_q),
            ("kl", "total"): kl(log_q) - kl(log_total),
            ("kl", "direct"): kl(log_q) - kl(log_direct),
        }.items():
            found.setdefault(name, []).append(number)
    return found


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_sums_are_those_of_plain_transformers(architecture: str) -> None:
    base = random_model(architecture)
    policy = policy_of(base, scale=0.1)
    neurons = group(ATTRIBUTE)
    expected = reference(base, policy, architecture, neurons)
    for budget in (6, 100):
        sums = patching_sums(
            lens_of(base),
            lens_of(policy),
            SEQUENCES,
            3 * PROBE,
            [Patch(neurons)],
            token_budget=budget,
            progress=False,
        )
        for key in expected:
            values = sums.whole[key] if isinstance(key, str) else sums.recovered[0][key]
            np.testing.assert_allclose(values, expected[key], atol=2e-5, rtol=1e-4)
    assert not np.allclose(expected["kl", "total"], expected["kl", "direct"], atol=1e-2)


def test_unread_tokens_are_left_out_of_the_projection_alone(llama: tuple[Any, LensModel]) -> None:
    """Ids at the start and inside of texts, and one that no text has; the KL counts them all."""
    model, base = llama
    policy = policy_of(model, scale=0.1)
    neurons, unread = group(ATTRIBUTE), (5, 92, 159)
    expected = reference(model, policy, "llama", neurons, unread)
    plain, without = (
        patching_sums(
            base,
            lens_of(policy),
            SEQUENCES,
            PROBE,
            [Patch(neurons)],
            token_budget=14,
            unread=ids,
            progress=False,
        )
        for ids in ((), unread)
    )
    for key in expected:
        values = without.whole[key] if isinstance(key, str) else without.recovered[0][key]
        np.testing.assert_allclose(values, expected[key], atol=2e-5, rtol=1e-4)
    moved = plain.whole["probe_projection"] != without.whole["probe_projection"]
    assert moved.tolist() == [True, False, True, False]
    np.testing.assert_array_equal(plain.whole["kl"], without.whole["kl"])
    table = measure_patching(
        base,
        lens_of(policy),
        texts(),
        PROBE,
        neurons,
        CONFIGURATION,
        unread=unread,
        progress=False,
    ).set_index("statistic")
    for statistic in STATISTICS:
        assert table.loc[[statistic], "whole"].to_numpy() == pytest.approx(
            np.mean(expected[statistic]), abs=2e-5
        )


@torch.no_grad()
def with_other_keys(model: Any, layer: int, neurons: list[int]) -> Any:
    policy = copy.deepcopy(model)
    weight = backbone_parts(policy)[0][layer].mlp.up_proj.weight
    weight[neurons] += torch.randn(weight[neurons].shape, generator=torch.manual_seed(0))
    return policy


@pytest.fixture(scope="module")
def llama() -> tuple[Any, LensModel]:
    model = random_model()
    return model, lens_of(model)


def test_all_neurons_give_a_policy_that_differs_in_keys(llama: tuple[Any, LensModel]) -> None:
    model, base = llama
    policy = lens_of(with_other_keys(model, 0, list(range(48))))
    found = table(base, policy, ATTRIBUTE)
    for statistic in STATISTICS:
        row = found.loc[("all", LAYERS * 48, statistic, "total")]
        assert row[["share", "low", "high"]].to_numpy(dtype=float) == pytest.approx(1, abs=1e-5)
        assert found.loc[("attribute", 5, statistic, "total"), "share"] != pytest.approx(1, abs=0.1)


def test_neurons_of_the_last_layer_carry_what_changed_there(llama: tuple[Any, LensModel]) -> None:
    """Nothing follows the last layer: direct is total. Neurons whose keys stayed carry nothing."""
    model, base = llama
    changed = [(1, 3), (1, 20), (1, 40)]
    policy = lens_of(with_other_keys(model, 1, [3, 20, 40]))
    found = table(base, policy, changed)["share"]
    for statistic in STATISTICS:
        for effect in EFFECTS:
            assert found["attribute", 3, statistic, effect] == pytest.approx(1, abs=1e-5)
            assert found["random", 3, statistic, effect] == pytest.approx(0, abs=1e-5)
            assert found["random", 2, statistic, effect] == pytest.approx(0, abs=1e-5)
        total, direct = (found["attribute", 2, statistic, effect] for effect in EFFECTS)
        assert total == pytest.approx(direct, abs=1e-5)
        assert abs(total - 1) > 1e-3


def test_equal_models_have_no_share(llama: tuple[Any, LensModel]) -> None:
    model, base = llama
    found = table(base, lens_of(model), ATTRIBUTE)
    assert found[["share", "low", "high", "draws_low", "draws_high"]].isna().all().all()
    assert found[["whole", "whole_low", "whole_high"]].to_numpy() == pytest.approx(0, abs=1e-9)


def test_the_table_has_every_group_size_statistic_and_effect(tiny_pair: Any) -> None:
    found = table(tiny_pair.base, tiny_pair.policy, ATTRIBUTE)
    rows = {
        (name, size, statistic, effect)
        for name in ("attribute", "random")
        for size in (2, 5)
        for statistic in STATISTICS
        for effect in EFFECTS
    } | {("all", LAYERS * 48, statistic, "total") for statistic in STATISTICS}
    assert set(found.index) == rows
    assert found.index.is_unique
    assert (found["prompts"] == len(PROMPTS)).all()
    assert (found["low"] <= found["high"]).all()
    assert list(found.columns) == [
        *("share", "low", "high"),
        *("draws", "draws_low", "draws_high"),
        *("whole", "whole_low", "whole_high"),
        "prompts",
    ]
    for (name, size, statistic, _), row in found.iterrows():
        most = RANDOM_DRAWS if (size, statistic) == (5, "probe_projection") else KL_DRAWS
        assert row["draws"] == (most if name == "random" else 1)
        ends = row[["draws_low", "draws_high"]]
        assert ends.notna().all() if name == "random" else ends.isna().all()
    random = found.loc["random"]
    assert (random["draws_low"] < random["share"]).all()
    assert (random["share"] < random["draws_high"]).all()
    for statistic in STATISTICS:
        rows = found.xs(statistic, level="statistic")[["whole", "whole_low", "whole_high"]]
        assert len(rows.drop_duplicates()) == 1
    assert (found["whole_low"] < found["whole"]).all()
    assert (found["whole"] < found["whole_high"]).all()
    again = table(tiny_pair.base, tiny_pair.policy, ATTRIBUTE)
    pd.testing.assert_frame_equal(found, again)
    few = table(tiny_pair.base, tiny_pair.policy, ATTRIBUTE[:2])
    assert {key[1] for key in few.index} == {2, LAYERS * 48}


def test_shares_are_ratios_of_sums_averaged_over_draws() -> None:
    measure = ("kl", "total")
    sums = PatchingSums(
        whole={"kl": np.array([1.0, 3.0])},
        recovered=[
            {measure: np.array([0.5, 0.5])},
            {measure: np.array([0.0, 3.0])},
            {measure: np.array([2.0, 1.0])},
        ],
    )
    patches = [
        Patch(group([(0, 1)])),
        *(Patch(group([(0, neuron)], "random")) for neuron in (4, 5)),
    ]
    found = share_table(patches, sums, draws=20, seed=0).set_index("group")
    assert found.loc["attribute", "share"] == pytest.approx(1.0 / 4)
    assert found.loc["random", "share"] == pytest.approx((3.0 + 3.0) / 2 / 4)
    assert found["draws"].to_dict() == {"attribute": 1, "random": 2}
    assert found["whole"].tolist() == [2.0, 2.0]


def test_the_range_of_draws_is_of_their_shares_not_of_prompts() -> None:
    """Two groups of opposite shares: their mean is 0 in every prompt, with no prompt interval."""
    measure = ("kl", "total")
    whole = np.array([-1.0, -2.0, -3.0])
    sums = PatchingSums(
        whole={"kl": whole},
        recovered=[{measure: part * whole} for part in (-0.25, 0.25, 0.125, -0.125)],
    )
    patches = [Patch(group([(0, neuron)], "random")) for neuron in range(4)]
    row = share_table(patches, sums, draws=20, seed=0).iloc[0]
    assert row[["share", "low", "high"]].tolist() == pytest.approx([0, 0, 0])
    assert row[["draws", "draws_low", "draws_high"]].tolist() == [4, -0.25, 0.25]
    assert row["whole"] == -2
    assert -3 <= row["whole_low"] < -2 < row["whole_high"] <= -1


def test_random_neurons_are_others_and_several_draws(
    tiny_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Patch] = []

    def record(*arguments: Any, **settings: Any) -> PatchingSums:
        seen.extend(arguments[4])
        return patching_sums(*arguments, **settings)

    monkeypatch.setattr("dsteer_tl.toxicity.patching.patching_sums", record)
    table(tiny_pair.base, tiny_pair.policy, ATTRIBUTE)
    draws = [patch.neurons for patch in seen if patch.neurons.group == "random"]
    sets = [frozenset(zip(n.layers.tolist(), n.neurons.tolist(), strict=True)) for n in draws]
    assert len(set(sets)) == len(sets) == RANDOM_DRAWS + KL_DRAWS
    assert sorted(map(len, sets)) == [2] * KL_DRAWS + [5] * RANDOM_DRAWS
    assert all(found.isdisjoint(ATTRIBUTE) for found in sets)


def test_what_cannot_be_patched_is_refused(llama: tuple[Any, LensModel], tiny_pair: Any) -> None:
    _, base = llama
    settings: dict[str, Any] = {"token_budget": 100, "progress": False}

    def run(policy: LensModel, direction: Any = PROBE, neurons: Any = None) -> None:
        patch = Patch(neurons or group(ATTRIBUTE))
        patching_sums(base, policy, SEQUENCES, direction, [patch], **settings)

    with pytest.raises(PairError, match="its own policy"):
        run(lens_of(random_model("llama", intermediate_size=40)))
    with pytest.raises(ShapeError, match="expected d_model 32"):
        run(tiny_pair.policy, PROBE[:-1])
    with pytest.raises(ShapeError, match="a norm above 0"):
        run(tiny_pair.policy, np.zeros(32))
    with pytest.raises(ShapeError, match="sequence 3: found 1 tokens, all of them unread"):
        patching_sums(
            *(base, tiny_pair.policy, SEQUENCES, PROBE, [Patch(group(ATTRIBUTE))]),
            unread=(3, 8),
            **settings,
        )
    with pytest.raises(HookError, match="another model"):
        run(tiny_pair.policy, PROBE, group([(0, 48)]))
    with pytest.raises(ShapeError, match="asked for 49"):
        half = all_neurons(base).first(49)
        measure_patching(
            base, tiny_pair.policy, texts(), PROBE, half, CONFIGURATION, progress=False
        )
    gemma = lens_of(random_model("gemma2"))
    with pytest.raises(HookError, match="norm follows it"):
        patching_sums(gemma, gemma, SEQUENCES, PROBE, [Patch(group(ATTRIBUTE))], **settings)
