"""Weight changes against float64 references, and the kinds of tensors."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_pair import make_adapter

from dsteer_tl import weight_pairs
from dsteer_tl.errors import CheckpointError, DependencyError, PairError
from dsteer_tl.lens_model import LoadOptions
from dsteer_tl.toxicity import weight_changes
from dsteer_tl.toxicity.weight_changes import weight_change_table
from dsteer_tl.weight_pairs import tensor_kind, tensor_layer
from tests.models import ARCHITECTURES, is_block, policy_of, random_model, save_checkpoint

Checkpoints = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    made: dict[str, tuple[Path, Path]] = {}

    def make(architecture: str) -> tuple[Path, Path]:
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            base = random_model(architecture)
            made[architecture] = (
                save_checkpoint(base, folder / "base"),
                save_checkpoint(policy_of(base), folder / "policy"),
            )
        return made[architecture]

    return make


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
def test_every_number_is_that_of_the_whole_tensor(
    architecture: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_changes, "_BLOCK", 100)
    table = weight_change_table(*checkpoints(architecture), seed=0).set_index("tensor")
    base = random_model(architecture)
    policy = dict(policy_of(base).named_parameters())
    assert list(table.index) == [name for name, _ in base.named_parameters()]
    for name, parameter in base.named_parameters():
        first = parameter.detach().double().numpy().ravel()
        second = policy[name].detach().double().numpy().ravel()
        row = table.loc[name]
        norms = [math.sqrt(np.sum(v * v)) for v in (first, second, second - first)]
        assert row["size"] == first.size
        assert row["cosine"] == pytest.approx(first @ second / norms[0] / norms[1], abs=1e-12)
        assert [row["norm_base"], row["norm_policy"], row["norm_change"]] == pytest.approx(norms)
        assert row["norm_difference"] == pytest.approx(
            abs(norms[1] - norms[0]) / norms[0], abs=1e-12
        )
        assert row["relative_change"] == pytest.approx(norms[2] / norms[0])
        assert row["trained"] == is_block(name)
        if not row["trained"]:
            assert row["cosine"] == row["cosine_random"] == 1.0
            assert row["norm_change"] == row["norm_difference"] == row["relative_change"] == 0.0


def test_the_random_change_is_drawn_and_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    old = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    new = old + 0.3 * torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    drawn = np.random.default_rng(7).standard_normal(1200)
    first, second = (tensor.double().numpy().ravel() for tensor in (old, new))
    moved = first + drawn * np.linalg.norm(second - first) / np.linalg.norm(drawn)
    expected = first @ moved / np.linalg.norm(first) / np.linalg.norm(moved)
    for block in (64, 1 << 22):
        monkeypatch.setattr(weight_changes, "_BLOCK", block)
        found = weight_changes._change(old, new, np.random.default_rng(7))["cosine_random"]
        assert found == pytest.approx(expected, abs=1e-12)
    # With n = 1200 values it lies near 1/√(1 + r²), r = ‖Δθ‖/‖θ‖, whatever was learnt.
    ratio = np.linalg.norm(second - first) / np.linalg.norm(first)
    assert found == pytest.approx(1 / math.sqrt(1 + ratio**2), abs=0.03)


def test_one_seed_gives_one_table(checkpoints: Checkpoints) -> None:
    first, again, other = (
        weight_change_table(*checkpoints("llama"), seed=seed) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first, again)
    trained = first["trained"]
    assert (first["cosine_random"][trained] != other["cosine_random"][trained]).all()
    rest = [name for name in first.columns if name != "cosine_random"]
    pd.testing.assert_frame_equal(first[rest], other[rest])
    assert list(first.columns) == [
        *("tensor", "layer", "kind", "size", "cosine", "cosine_random", "norm_base"),
        *("norm_policy", "norm_change", "norm_difference", "relative_change", "trained"),
    ]
    assert first["trained"].dtype == bool


@pytest.mark.parametrize(
    ("first", "second", "cosine", "relative", "trained"),
    [
        ([0.0, 0.0], [0.0, 0.0], 1.0, 0.0, False),
        ([0.0, 0.0], [3.0, 4.0], 0.0, math.nan, True),
        ([3.0, 4.0], [0.0, 0.0], 0.0, 1.0, True),
        ([3.0, 4.0], [6.0, 8.0], 1.0, 1.0, True),
        ([3.0, 4.0], [-3.0, -4.0], -1.0, 2.0, True),
        ([3.0, 4.0], [-4.0, 3.0], 0.0, math.sqrt(2), True),
        ([3.0], [4.0], 1.0, 1 / 3, True),
    ],
)
def test_small_tensors_in_closed_form(
    first: list[float], second: list[float], cosine: float, relative: float, trained: bool
) -> None:
    found = weight_changes._change(
        torch.tensor(first), torch.tensor(second), np.random.default_rng(0)
    )
    assert found["cosine"] == pytest.approx(cosine, abs=1e-15)
    assert found["relative_change"] == pytest.approx(relative, nan_ok=True)
    assert found["trained"] is trained
    assert -1 <= found["cosine_random"] <= 1
    change = abs(math.hypot(*second) - math.hypot(*first))
    whole = math.hypot(*first)
    expected = change / whole if whole else (math.nan if change else 0.0)
    assert found["norm_difference"] == pytest.approx(expected, nan_ok=True)


def test_a_change_below_the_resolution_of_its_norm_is_a_change() -> None:
    first = torch.ones(1000, dtype=torch.float64)
    second = first.clone()
    second[3] = 1 + 2e-16
    found = weight_changes._change(first, second, np.random.default_rng(0))
    assert found["trained"] is True
    assert found["norm_change"] == pytest.approx(2.2e-16, rel=0.05)


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("transformer.wte.weight", "embedding", -1),
        ("transformer.wpe.weight", "embedding", -1),
        ("transformer.h.11.ln_1.bias", "norm", 11),
        ("transformer.h.0.attn.c_attn.weight", "attention", 0),
        ("transformer.h.0.attn.c_proj.bias", "attention", 0),
        ("transformer.h.3.mlp.c_fc.bias", "mlp_key", 3),
        ("transformer.h.3.mlp.c_proj.weight", "mlp_value", 3),
        ("transformer.ln_f.weight", "norm", -1),
        ("lm_head.weight", "unembedding", -1),
        ("gpt_neox.embed_in.weight", "embedding", -1),
        ("gpt_neox.layers.5.attention.query_key_value.weight", "attention", 5),
        ("gpt_neox.layers.5.attention.dense.bias", "attention", 5),
        ("gpt_neox.layers.5.mlp.dense_h_to_4h.weight", "mlp_key", 5),
        ("gpt_neox.layers.5.mlp.dense_4h_to_h.weight", "mlp_value", 5),
        ("gpt_neox.final_layer_norm.weight", "norm", -1),
        ("embed_out.weight", "unembedding", -1),
        ("model.embed_tokens.weight", "embedding", -1),
        ("model.layers.10.self_attn.o_proj.weight", "attention", 10),
        ("model.layers.10.self_attn.q_norm.weight", "norm", 10),
        ("model.layers.10.mlp.gate_proj.weight", "mlp_key", 10),
        ("model.layers.10.mlp.up_proj.weight", "mlp_key", 10),
        ("model.layers.10.mlp.down_proj.weight", "mlp_value", 10),
        ("model.layers.10.post_attention_layernorm.weight", "norm", 10),
        ("model.norm.weight", "norm", -1),
        ("model.layers.2.mlp.experts.down_proj", "other", 2),
        ("model.layers.2.mlp.gate.weight", "other", 2),
    ],
)
def test_names_of_tensors(name: str, kind: str, layer: int) -> None:
    assert tensor_kind(name) == kind
    assert tensor_layer(name) == layer


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_every_tensor_of_known_models_has_a_kind(architecture: str) -> None:
    names = [name for name, _ in random_model(architecture).named_parameters()]
    kinds = {name: tensor_kind(name) for name in names}
    assert "other" not in kinds.values()
    assert set(kinds.values()) >= {"attention", "mlp_key", "mlp_value", "norm", "embedding"}
    values = [name for name, kind in kinds.items() if kind == "mlp_value" and "weight" in name]
    assert [tensor_layer(name) for name in values] == [0, 1]
    assert all((tensor_layer(name) >= 0) == is_block(name) for name in names)


def test_tied_tensors_count_once_and_those_untied_by_training_twice(tmp_path: Path) -> None:
    base = random_model(tie_word_embeddings=True)
    folder = save_checkpoint(base, tmp_path / "base")
    tied = save_checkpoint(policy_of(base), tmp_path / "tied")
    table = weight_change_table(folder, tied, seed=0)
    assert "lm_head.weight" not in set(table["tensor"])
    untied = random_model(tie_word_embeddings=False)
    untied.load_state_dict(base.state_dict())
    with torch.no_grad():
        untied.get_output_embeddings().weight.mul_(1.1)
    table = weight_change_table(folder, save_checkpoint(untied, tmp_path / "untied"), seed=0)
    found = table.set_index("tensor")["trained"]
    assert found[found].index.tolist() == ["lm_head.weight"]


def test_models_that_are_not_a_pair_are_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for name, changes in {
        "wide": {"intermediate_size": 64},
        "deep": {"num_hidden_layers": 1},
        "deeper": {"num_hidden_layers": 3},
    }.items():
        other = save_checkpoint(random_model(**changes), tmp_path / name)
        with pytest.raises(PairError, match="only between a model and its own fine-tune"):
            weight_change_table(checkpoints("llama")[0], other, seed=0)


def test_quantized_weights_are_refused(checkpoints: Checkpoints) -> None:
    models = [random_model() for _ in range(2)]
    for parameter in models[1].parameters():
        parameter.requires_grad_(False)
    name, parameter = next(iter(models[1].named_parameters()))
    parameter.data = parameter.data.to(torch.uint8)
    with pytest.raises(CheckpointError, match=f"{name} of policy has dtype torch.uint8"):
        list(weight_pairs.paired_tensors(*models, "base", "policy"))


def test_an_adapter_is_merged_first(checkpoints: Checkpoints, tmp_path: Path) -> None:
    base = checkpoints("llama")[0]
    merged = make_adapter(random_model(), tmp_path / "adapter")
    full = save_checkpoint(merged, tmp_path / "merged")
    found = weight_change_table(base, tmp_path / "adapter", seed=0)
    expected = weight_change_table(base, full, seed=0)
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=1e-6)
    trained = set(found["kind"][found["trained"]])
    assert trained == {"attention", "mlp_key", "mlp_value"}
    with pytest.raises(CheckpointError, match="cannot merge the adapter"):
        weight_change_table(checkpoints("gpt2")[0], tmp_path / "adapter", seed=0)


def test_an_adapter_needs_peft(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(random_model(), tmp_path / "adapter")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DependencyError, match="needs PEFT"):
        weight_change_table(checkpoints("llama")[0], tmp_path / "adapter", seed=0)


def test_base_and_policy_are_loaded_each_in_its_own_way(checkpoints: Checkpoints) -> None:
    same = weight_change_table(
        *[checkpoints("llama")[0]] * 2, seed=0, policy_options=LoadOptions(dtype="bfloat16")
    )
    # Half precision is a change too, and is seen as one, not as training that was not there.
    assert same["trained"].all()
    assert same["relative_change"].between(1e-4, 1e-2).all()


def test_high_cosines_are_cheap(stories260k: Path, tmp_path: Path) -> None:
    from dsteer_tl.lens_model import load_model

    noisy = policy_of(load_model(stories260k, LoadOptions()), scale=0.005)
    policy = save_checkpoint(noisy, tmp_path / "policy")
    table = weight_change_table(stories260k, policy, seed=0)
    moved = table[table["trained"] & (table["size"] > 1000)]
    assert len(moved) > 20
    # The change is noise and has learnt nothing: the published cosine says as little.
    assert moved["cosine"].min() > 0.99
    assert moved["cosine"].to_numpy() == pytest.approx(moved["cosine_random"].to_numpy(), abs=1e-3)
    assert (moved["relative_change"] > moved["norm_difference"]).all()
