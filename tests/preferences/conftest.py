"""Real tokenizers and a real sampler for the tests of preferences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2TokenizerFast


@pytest.fixture(scope="session")
def preference_folder(shared_folder: Path) -> Path:
    return shared_folder / "data" / "preferences"


@pytest.fixture(scope="session")
def stories_tokenizer(stories260k: Path) -> Any:
    """SentencePiece-like: a text's first word gets a space that decoding takes off again."""
    return AutoTokenizer.from_pretrained(stories260k)


@pytest.fixture(scope="session")
def gpt2_tokenizer(shared_folder: Path) -> Any:
    """Byte-level: a text is its tokens, byte for byte."""
    folder = shared_folder / "models" / "gpt2-tokenizer"
    vocabulary, merges = str(folder / "vocab.json"), str(folder / "merges.txt")
    return GPT2TokenizerFast(vocab=vocabulary, merges=merges)


@pytest.fixture(scope="session")
def stories_generate(stories260k: Path, stories_tokenizer: Any) -> Callable[..., torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(stories260k).eval()

    @torch.no_grad()
    def generate(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            pad_token_id=stories_tokenizer.pad_token_id,
        )

    return generate


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Iterable[object], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
