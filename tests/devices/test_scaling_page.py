"""The page on scaling holds what its script computes, and the script computes what is known."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from dsteer_tl.lens_model import load_model
from dsteer_tl.lens_model.checkpoint import LoadOptions

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "analyses" / "scaling_arithmetic.py"
PAGE = ROOT / "docs" / "scaling.md"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    before = sys.argv
    sys.argv = [SCRIPT.name]
    try:
        return runpy.run_path(str(SCRIPT))
    finally:
        sys.argv = before


def test_the_page_is_what_the_script_writes(script: dict[str, Any]) -> None:
    page = PAGE.read_text("utf-8")
    tables = {name: make() for name, make in script["TABLES"].items()}
    assert script["filled"](page, tables) == page
    other = page.replace(tables["memory"], tables["memory"].replace("GB", "TB"))
    assert script["filled"](other, tables) == page != other


def test_a_place_that_is_missing_is_an_error(script: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no one place for the table 'memory'"):
        script["filled"]("<!-- memory -->", {"memory": ""})


def test_parameters_are_those_of_the_published_models(script: dict[str, Any]) -> None:
    found = {shape.name: shape.parameters for shape in script["SHAPES"]}
    assert found == {
        "Llama 2 7B": 6_738_415_616,
        "Llama 2 13B": 13_015_864_320,
        "Llama 2 70B": 68_976_648_192,
    }


def test_parameters_are_those_of_a_real_model(script: dict[str, Any]) -> None:
    model = load_model("tales", LoadOptions())
    settings = model.config
    shape = script["Shape"](
        "tales",
        settings.num_hidden_layers,
        settings.hidden_size,
        settings.num_attention_heads,
        settings.num_key_value_heads,
        settings.intermediate_size,
        settings.vocab_size,
    )
    tied = settings.vocab_size * settings.hidden_size if settings.tie_word_embeddings else 0
    assert shape.parameters - tied == sum(p.numel() for p in model.parameters())
    in_blocks = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    assert shape.matrices == sum(p.numel() for p in in_blocks)


def test_quantized_weights_are_counted_with_their_scales(script: dict[str, Any]) -> None:
    shape = script["SHAPES"][0]
    whole = shape.bytes("bfloat16")
    assert whole == 2 * shape.parameters
    assert 0.5 < shape.bytes("8bit") / whole < 0.53
    assert 0.25 < shape.bytes("4bit") / whole < 0.32
