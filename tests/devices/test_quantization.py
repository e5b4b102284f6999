"""What is asked of transformers for quantized weights, and what is refused; no GPU is used."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from dsteer_tl.errors import CheckpointError, ConfigurationError, DependencyError
from dsteer_tl.experiment.configuration import (
    build_configuration,
    preset_names,
    preset_settings,
)
from dsteer_tl.lens_model import LoadOptions, checkpoint, load_model
from dsteer_tl.lens_model.checkpoint import hash_weights
from tests.models import random_model

BASE: dict[str, Any] = {
    "policy": "other",
    "model": {"device": "cuda", "dtype": "bfloat16", "quantization": "4bit"},
    "measurement": {"random_weights": False},
    "audit": {"attribution": False},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings that reach transformers, which here gives a tiny model for all of them."""
    calls: list[dict[str, Any]] = []

    def from_pretrained(source: str, **settings: Any) -> Any:
        calls.append(settings)
        return random_model(), {"missing_keys": []}

    monkeypatch.setattr(
        checkpoint.AutoModelForCausalLM, "from_pretrained", staticmethod(from_pretrained)
    )
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: SimpleNamespace() if name == "bitsandbytes" else found(name, *a),
    )
    # Reading the version of a package that is not here.
    monkeypatch.setattr(transformers.BitsAndBytesConfig, "post_init", lambda _: None)
    monkeypatch.setattr(checkpoint, "check_device", lambda _: None)
    return calls


def test_four_bits(asked: list[dict[str, Any]], tiny_folders: tuple[Path, Path]) -> None:
    load_model(tiny_folders[0], LoadOptions(device="cuda:1", dtype="bfloat16", quantization="4bit"))
    settings = asked[0]["quantization_config"]
    assert settings.load_in_4bit and not settings.load_in_8bit
    assert settings.bnb_4bit_quant_type == "nf4"
    assert settings.bnb_4bit_compute_dtype == torch.bfloat16
    assert asked[0]["device_map"] == {"": "cuda:1"} and asked[0]["dtype"] == torch.bfloat16
    # lm_head and embeddings are left alone by transformers where nothing else is said.
    assert settings.llm_int8_skip_modules is None


def test_eight_bits_over_several_devices(
    asked: list[dict[str, Any]], tiny_folders: tuple[Path, Path]
) -> None:
    load_model(tiny_folders[0], LoadOptions(device_map="auto", quantization="8bit"))
    settings = asked[0]["quantization_config"]
    assert settings.load_in_8bit and not settings.load_in_4bit
    assert asked[0]["device_map"] == "auto"


def test_without_quantization_nothing_is_said(
    asked: list[dict[str, Any]], tiny_folders: tuple[Path, Path]
) -> None:
    load_model(tiny_folders[0], LoadOptions())
    assert not {"quantization_config", "device_map"} & set(asked[0])


def test_a_quantized_unembedding_is_refused(
    asked: list[dict[str, Any]], tiny_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantized(source: str, **settings: Any) -> Any:
        model = random_model()
        codes = torch.zeros(model.lm_head.weight.shape, dtype=torch.int8)
        model.lm_head.weight = torch.nn.Parameter(codes, requires_grad=False)
        return model, {"missing_keys": []}

    monkeypatch.setattr(checkpoint.AutoModelForCausalLM, "from_pretrained", staticmethod(quantized))
    with pytest.raises(CheckpointError, match=r"unembedding .* is quantized \(torch.int8\)"):
        load_model(tiny_folders[0], LoadOptions(device_map="auto", quantization="8bit"))


def test_bitsandbytes_is_named_where_it_is_missing(
    tiny_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "bitsandbytes" else found(name, *a),
    )
    with pytest.raises(DependencyError, match=r"install 'dsteer-tl\[quantization\]'"):
        load_model(tiny_folders[0], LoadOptions(device_map="auto", quantization="4bit"))


def test_scales_are_part_of_the_identity_of_quantized_weights() -> None:
    model = random_model()
    plain = hash_weights(model)
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.SCB = torch.ones(3)
    eight = hash_weights(model)
    weight.SCB = torch.full((3,), 2.0)
    assert len({plain, eight, hash_weights(model)}) == 3
    del weight.SCB
    for value in (1.0, 2.0):
        weight.quant_state = SimpleNamespace(
            as_dict=lambda packed, v=value: {"absmax": torch.tensor([v]) if packed else v}
        )
        assert hash_weights(model) not in (plain, eight)
    del weight.quant_state
    assert hash_weights(model) == plain


def test_settings_reach_both_models() -> None:
    model = build_configuration({**BASE, "model": {**BASE["model"], "revision": "a"}}).model
    for revision in ("a", ""):
        options = model.load_options(revision)
        assert options.quantization == "4bit" and options.dtype == "bfloat16"
        assert options.revision == (revision or None) and options.device_map is None
    assert build_configuration({}).model.load_options("").quantization is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": ""}, "cannot be trained"),
        ({"model": {**BASE["model"], "device": "cpu"}}, "needs a GPU"),
        ({"model": {**BASE["model"], "dtype": "float32"}}, "half precision"),
        ({"model": {**BASE["model"], "quantization": "2bit"}}, "quantization"),
        ({"model": {**BASE["model"], "backend": "hooked"}}, "need 'bridge'"),
        ({"model": {"device": "cuda:1", "device_map": "auto"}}, "leave model.device out"),
        ({"measurement": {"random_weights": True}}, "measurement.random_weights=false"),
        ({"audit": {"attribution": True}}, "audit.attribution=false"),
        ({"toxicity": {"enabled": True}}, "toxicity.enabled=false"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], message: str) -> None:
    build_configuration(BASE)
    with pytest.raises(ConfigurationError, match=message):
        build_configuration({**BASE, **change})


def test_device_map_and_device() -> None:
    for device in ("cpu", "cuda"):
        build_configuration({"model": {"device": device, "device_map": "auto"}})


@pytest.mark.parametrize("name", preset_names())
def test_presets_still_parse(name: str) -> None:
    assert build_configuration(preset_settings(name)).model.quantization == ""
