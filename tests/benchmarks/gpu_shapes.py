"""Models of a real size with random weights, made where they are run."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tests.models import is_block


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model, and how much is done with it.

    Attributes:
        configuration: Of base and policy.
        prompts: That are captured.
        token_budget: Padded tokens a batch.
        sequences: That are scored.
        new_tokens: That are generated for each of 16 prompts.
    """

    configuration: LlamaConfig
    prompts: int
    token_budget: int
    sequences: int
    new_tokens: int


SHAPES = {
    "llama-2-7b": Shape(
        configuration=LlamaConfig(max_position_embeddings=4096),
        prompts=512,
        token_budget=16_384,
        sequences=64,
        new_tokens=40,
    ),
    "tiny": Shape(
        configuration=LlamaConfig(
            vocab_size=160,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
        ),
        prompts=8,
        token_budget=512,
        sequences=2,
        new_tokens=2,
    ),
}


@torch.no_grad()
def random_pair(
    configuration: LlamaConfig, device: str, dtype: torch.dtype
) -> dict[str, PreTrainedModel]:
    """A random base, and a policy whose blocks differ from it by a fiftieth of their weights."""
    models: dict[str, PreTrainedModel] = {}
    for name in ("base", "policy"):
        torch.manual_seed(0)
        with torch.device(device):
            made = AutoModelForCausalLM.from_config(copy.deepcopy(configuration), dtype=dtype)
        models[name] = made.eval()
    for key, parameter in models["policy"].named_parameters():
        if is_block(key) and parameter.ndim > 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.02 * float(parameter.std()))
    return models
