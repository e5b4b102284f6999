"""Loading checkpoints: what is wrong must be named in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsteer_tl.errors import CheckpointError
from dsteer_tl.lens_model import LoadOptions, load_lens_model, load_model, load_tokenizer
from dsteer_tl.lens_model.checkpoint import hash_weights
from tests.models import random_model, save_checkpoint, tiny_tokenizer

OPTIONS = LoadOptions()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(random_model(), tmp_path_factory.mktemp("checkpoint") / "whole")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, OPTIONS)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    assert str(folder) in message
    return message


def test_a_checkpoint_comes_back_bitwise(whole: Path) -> None:
    model = load_model(whole, OPTIONS)
    assert not model.training
    assert model.dtype == torch.float32
    assert hash_weights(model) == hash_weights(random_model())
    assert hash_weights(model) != hash_weights(random_model(seed=1))
    assert load_model(str(whole), LoadOptions(dtype="bfloat16")).dtype == torch.bfloat16


def test_a_lens_is_named_after_its_folder(whole: Path) -> None:
    assert load_lens_model(whole).name == str(whole)
    assert load_lens_model(whole, name="base").name == "base"
    assert load_lens_model(random_model()).name == "LlamaForCausalLM in memory"


def test_missing_folder(tmp_path: Path) -> None:
    assert "expected a directory with config.json" in refused(tmp_path / "nowhere")


def test_no_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in refused(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "found no weights" in refused(folder)


def test_pickles_are_never_opened(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (folder / "exploded",)  # type: ignore[return-value]

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")
    message = refused(folder)
    assert "only pickle weights (pytorch_model.bin)" in message and "safe_serialization" in message
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "model.safetensors cannot be read" in refused(folder)


def test_missing_tensor(folder: Path) -> None:
    change_weights(folder, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))  # type: ignore[arg-type]
    message = refused(folder)
    assert "lacks 1 weights, first 'model.layers.1.mlp.up_proj.weight'" in message


def test_wrong_shape(folder: Path) -> None:
    change_weights(folder, lambda w: w.update({"model.norm.weight": torch.ones(31)}))
    assert "cannot load a causal language model" in refused(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Path, bad: float) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.mlp.down_proj.weight"][2, 3] = bad

    change_weights(folder, spoil)
    message = refused(folder)
    assert "1 of 1536 values of 'model.layers.0.mlp.down_proj.weight' are NaN" in message


def test_a_model_in_memory_is_checked_too() -> None:
    model = random_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"1 of 32 values of 'model\.norm\.weight'"):
        load_lens_model(model, name="mine")


def test_configuration_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    refused(folder)


def test_remote_code_stays_off(folder: Path) -> None:
    assert LoadOptions().trust_remote_code is False
    configuration = json.loads((folder / "config.json").read_text())
    configuration["model_type"] = "surprise"
    configuration["auto_map"] = {
        "AutoConfig": "surprise.Configuration",
        "AutoModelForCausalLM": "surprise.Model",
    }
    (folder / "config.json").write_text(json.dumps(configuration))
    (folder / "surprise.py").write_text(
        f"import pathlib\npathlib.Path({str(folder / 'exploded')!r}).touch()\n"
    )
    refused(folder)
    assert not (folder / "exploded").exists()


def test_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, OPTIONS)
    text = "Once upon a time"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert tokenizer(text)["input_ids"][0] == 0
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.pad_token == "</s>"


def test_a_tokenizer_without_pad_token_gets_one(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(folder, OPTIONS).pad_token == "</s>"


def test_no_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="cannot load a tokenizer from") as caught:
        load_tokenizer(folder, OPTIONS)
    assert "\n" not in str(caught.value)


def test_stories_checkpoint(stories260k: Path) -> None:
    lens = load_lens_model(stories260k)
    assert lens.n_layers == 5 and lens.d_model == 64
