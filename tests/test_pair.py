"""Base and policy together, and what may differ between them."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from dsteer_tl.errors import CheckpointError, PairError, SelfCheckError
from dsteer_tl.lens_model import Edit, LoadOptions, load_model, pad
from dsteer_tl.lens_model.adapter import is_adapter
from dsteer_tl.pair import ModelPair
from tests.models import (
    VOCABULARY,
    policy_of,
    random_model,
    tiny_tokenizer,
)

ROW = tuple(range(2, 14))


@torch.no_grad()
def plain_logits(model: Any) -> Tensor:
    return model(torch.tensor([ROW]), use_cache=False).logits[0]


@torch.no_grad()
def lens_logits(lens: Any) -> Tensor:
    batch = pad([ROW])
    return lens.forward(batch.ids, batch.mask)[0]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


def differences(pair: ModelPair) -> set[str]:
    return {item.name for item in pair.preflight.differences}


def in_memory(change: Callable[[PreTrainedModel], None]) -> ModelPair:
    base = random_model()
    policy = policy_of(base)
    with torch.no_grad():
        change(policy)
    return ModelPair.load(base, policy, tokenizer=tiny_tokenizer())


# Two checkpoints


def test_from_directories(tiny_folders: tuple[Path, Path], tiny_pair: ModelPair) -> None:
    for lens, folder in zip((tiny_pair.base, tiny_pair.policy), tiny_folders, strict=True):
        close(lens_logits(lens), plain_logits(load_model(folder, LoadOptions())))
        assert lens.name == str(folder)
    assert (lens_logits(tiny_pair.base) - lens_logits(tiny_pair.policy)).abs().max() > 0.05
    assert tiny_pair.preflight.differences == () and tiny_pair.preflight.same_readout
    assert {item.name for item in tiny_pair.preflight.items} >= {
        *["W_U", "b_U", "final norm", "output transform", "dtype", "context", "weights"],
        *["tokenizer", "chat template"],
    }
    assert tiny_pair.tokenizer("Once")["input_ids"] == tiny_tokenizer()("Once")["input_ids"]


def test_in_memory() -> None:
    base = random_model("gpt2")
    policy = policy_of(base)
    expected = plain_logits(base), plain_logits(policy)
    pair = ModelPair.load(base, policy.train(), tokenizer=tiny_tokenizer())
    close(lens_logits(pair.base), expected[0])
    close(lens_logits(pair.policy), expected[1])
    assert pair.preflight.differences == ()


def test_models_in_memory_need_a_tokenizer() -> None:
    with pytest.raises(PairError, match=r"pass tokenizer=… to ModelPair\.load"):
        ModelPair.load(random_model(), random_model())


def test_one_object_cannot_be_both() -> None:
    model = random_model()
    with pytest.raises(PairError, match=r"one object in memory: .* pass a copy"):
        ModelPair.load(model, model, tokenizer=tiny_tokenizer())


# Preflight: differences that are named


def test_changed_unembedding() -> None:
    def change(model: PreTrainedModel) -> None:
        model.get_output_embeddings().weight *= 1.01

    pair = in_memory(change)
    assert differences(pair) == {"W_U"} and not pair.preflight.same_readout
    (item,) = pair.preflight.differences
    assert "relative change 0.01;" in item.detail


def test_changed_bias_of_the_unembedding() -> None:
    base = random_model("phi")
    policy = policy_of(base)
    with torch.no_grad():
        policy.lm_head.bias[3] += 0.5
    pair = ModelPair.load(base, policy, tokenizer=tiny_tokenizer())
    assert differences(pair) == {"b_U"} and not pair.preflight.same_readout


@pytest.mark.parametrize(
    ("architecture", "name"), [("llama", "norm.weight"), ("gpt2", "ln_f.bias")]
)
def test_changed_final_norm(architecture: str, name: str) -> None:
    base = random_model(architecture)
    policy = policy_of(base)
    with torch.no_grad():
        policy.base_model.get_parameter(name)[5] += 0.1
    pair = ModelPair.load(base, policy, tokenizer=tiny_tokenizer())
    assert differences(pair) == {"final norm"} and not pair.preflight.same_readout


def test_changed_output_transform() -> None:
    policy = random_model("gemma2", seed=1, final_logit_softcapping=20.0)
    pair = ModelPair.load(random_model("gemma2"), policy, tokenizer=tiny_tokenizer())
    assert "output transform" in differences(pair)


def test_other_dtype(tiny_folders: tuple[Path, Path]) -> None:
    pair = ModelPair.load(*tiny_folders, policy_options=LoadOptions(dtype="bfloat16"))
    assert "dtype" in differences(pair)
    assert (pair.base.dtype, pair.policy.dtype) == (torch.float32, torch.bfloat16)


def test_same_weights() -> None:
    pair = ModelPair.load(random_model(), random_model(), tokenizer=tiny_tokenizer())
    assert differences(pair) == {"weights"}
    assert "every shift will be zero" in pair.preflight.differences[0].detail


def test_other_chat_template(tiny_folders: tuple[Path, Path], tmp_path: Path) -> None:
    policy = Path(shutil.copytree(tiny_folders[1], tmp_path / "policy"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(policy)
    pair = ModelPair.load(tiny_folders[0], policy)
    assert differences(pair) == {"chat template"}
    assert pair.preflight.same_readout
    assert "base's template is used for both" in pair.preflight.differences[0].detail
    assert pair.tokenizer.chat_template is None


def test_a_policy_without_tokenizer_uses_the_base_s(
    tiny_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    policy = Path(shutil.copytree(tiny_folders[1], tmp_path / "policy"))
    for path in policy.glob("token*"):
        path.unlink()
    pair = ModelPair.load(tiny_folders[0], policy)
    assert "tokenizer" not in {item.name for item in pair.preflight.items}


# Preflight: differences that are refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": VOCABULARY + 8}, "has d_vocab 168, base .* has 160"),
        ({"num_hidden_layers": 3}, "has n_layers 3, base .* has 2"),
        ({"hidden_size": 64}, "has d_model 64, base .* has 32"),
    ],
)
def test_other_dimensions(changes: dict[str, int], message: str) -> None:
    with pytest.raises(PairError, match=message) as caught:
        ModelPair.load(random_model(), random_model(**changes), tokenizer=tiny_tokenizer())
    assert "\n" not in str(caught.value)


def test_other_architecture() -> None:
    with pytest.raises(PairError, match="models of different architectures"):
        ModelPair.load(random_model("llama"), random_model("gpt2"), tokenizer=tiny_tokenizer())


def test_other_tokenizer(tiny_folders: tuple[Path, Path], tmp_path: Path) -> None:
    policy = Path(shutil.copytree(tiny_folders[1], tmp_path / "policy"))
    content = json.loads((policy / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    a, b = "Ġbird", "Ġthe"
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (policy / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(PairError, match="differ in 4 entries"):
        ModelPair.load(tiny_folders[0], policy)


def test_a_missing_policy(tiny_folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        ModelPair.load(tiny_folders[0], tmp_path / "none")


# LoRA: one copy of the weights


def make_adapter(base: PreTrainedModel, folder: Path, **settings: Any) -> PreTrainedModel:
    """Save a random adapter; returns the merged policy."""
    peft = pytest.importorskip("peft")
    configuration = peft.LoraConfig(
        **{"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        | settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapted = peft.get_peft_model(copy.deepcopy(base), configuration)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.merge_and_unload().eval()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("adapter") / "policy"
    return folder, make_adapter(random_model(), folder)


def test_an_adapter_shares_the_weights_of_the_base(
    tiny_folders: tuple[Path, Path], adapter: tuple[Path, PreTrainedModel]
) -> None:
    folder, merged = adapter
    assert is_adapter(folder) and not is_adapter(tiny_folders[0])
    pair = ModelPair.load(tiny_folders[0], folder)
    assert pair.base.W_U.data_ptr() == pair.policy.W_U.data_ptr()
    inner = pair.base._inner  # type: ignore[attr-defined]
    assert inner is pair.policy._inner  # type: ignore[attr-defined]
    count = sum(p.numel() for n, p in inner.bridge.named_parameters() if "lora_" not in n)
    assert count == sum(p.numel() for p in random_model().parameters())
    expected = plain_logits(random_model()), plain_logits(merged)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    for _ in range(2):  # switching on and off leaves no trace
        close(lens_logits(pair.base), expected[0])
        close(lens_logits(pair.policy), expected[1])
    assert pair.preflight.differences == ()


def test_edits_and_generation_of_an_adapter(
    tiny_folders: tuple[Path, Path], adapter: tuple[Path, PreTrainedModel]
) -> None:
    folder, merged = adapter
    pair = ModelPair.load(tiny_folders[0], folder)
    full = ModelPair.load(tiny_folders[0], merged, tokenizer=tiny_tokenizer())
    batch = pad([ROW, ROW[:5]], side="left")
    edit = Edit("resid_post.0", lambda x: x + 1.5)
    for one, other in ((pair.base, full.base), (pair.policy, full.policy)):
        with one.hooks([edit]), other.hooks([edit]):
            close(lens_logits(one), lens_logits(other))
            generated = [
                lens.generate(batch.ids, batch.mask, max_new_tokens=5) for lens in (one, other)
            ]
            assert torch.equal(*generated)
        assert torch.equal(one.norm_parameters["weight"], other.norm_parameters["weight"])


def test_the_hash_of_an_adapter_sees_its_scaling(tmp_path: Path) -> None:
    make_adapter(random_model(), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    path = tmp_path / "two" / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 6', '"lora_alpha": 12'))
    hashes = [
        ModelPair.load(
            random_model(), tmp_path / name, tokenizer=tiny_tokenizer(), self_check=False
        ).policy.weights_hash
        for name in ("one", "one", "two")
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_adapter_that_trains_the_unembedding_is_refused(tmp_path: Path) -> None:
    """One readout cannot serve both models."""
    make_adapter(random_model(), tmp_path / "policy", target_modules=["q_proj", "lm_head"])
    with pytest.raises(SelfCheckError, match="readout of h equals the logits"):
        ModelPair.load(random_model(), tmp_path / "policy", tokenizer=tiny_tokenizer())


def test_an_adapter_for_another_model(adapter: tuple[Path, PreTrainedModel]) -> None:
    with pytest.raises(CheckpointError, match="cannot load the adapter") as caught:
        ModelPair.load(random_model(hidden_size=64), adapter[0], tokenizer=tiny_tokenizer())
    assert "\n" not in str(caught.value)


def test_an_adapter_with_a_tensor_missing(
    adapter: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapter[0], tmp_path / "policy"))
    weights = load_file(folder / "adapter_model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"Found missing adapter keys.*lora_A"):
        ModelPair.load(random_model(), folder, tokenizer=tiny_tokenizer())


def test_an_adapter_needs_the_bridge(
    tiny_folders: tuple[Path, Path], adapter: tuple[Path, PreTrainedModel]
) -> None:
    with pytest.raises(PairError, match="use backend='bridge'"):
        ModelPair.load(tiny_folders[0], adapter[0], backend="hooked")
