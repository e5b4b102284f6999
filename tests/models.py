"""Tiny random checkpoints of many architectures, and a tiny real tokenizer.

Library defaults (gains of one, biases of zero, weights of 0.02) would hide mistakes: a skipped
gain, a dropped bias or a logit that is nearly constant. Here every gain and bias is random and the
weights are large enough that logits spread over several nats.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import modeling_auto

VOCABULARY = 160
CONTEXT = 64
LAYERS = 2

_SENTENCES = (
    "Once upon a time there was a little bird who liked to sing in the morning.",
    "The old man went to the river and saw that the water was very low.",
    "She was happy because the rain came and the flowers were blue and red again.",
    "He said no, and then he said yes, but nobody knew why the dog was sad.",
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2}

ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_GROUPED),
    "mistral": lambda: MistralConfig(**_GROUPED, head_dim=8, sliding_window=None),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=LAYERS,
        n_head=4,
        n_positions=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
    ),
    "neox": lambda: GPTNeoXConfig(**_COMMON),
    "qwen2": lambda: Qwen2Config(**_GROUPED),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=8),
    "gemma2": lambda: Gemma2Config(
        **_GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=CONTEXT,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
    ),
    "olmo2": lambda: Olmo2Config(**_GROUPED),
    "phi3": lambda: Phi3Config(**_GROUPED, original_max_position_embeddings=CONTEXT),
    "phi": lambda: PhiConfig(**_COMMON),
}


@torch.no_grad()
def random_model(architecture: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny random model; ``changes`` override the configuration."""
    configuration = ARCHITECTURES[architecture]()
    for name, value in changes.items():
        setattr(configuration, name, value)
    name = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[configuration.model_type]
    import transformers

    model: PreTrainedModel = getattr(transformers, name)(configuration)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * (0.5 if "emb" in key or "wte" in key else 0.25))
        elif key.endswith("bias"):
            parameter.copy_(0.3 * noise)
        else:
            parameter.copy_(1.0 + 0.3 * noise)
    return model.eval()


@torch.no_grad()
def policy_of(model: PreTrainedModel, *, seed: int = 1, scale: float = 0.02) -> PreTrainedModel:
    """A copy with every weight perturbed except embeddings, unembedding and final norm."""
    policy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in sorted(policy.named_parameters()):
        if is_block(key):
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


def is_block(key: str) -> bool:
    """Whether a parameter belongs to one of the blocks."""
    return ".layers." in key or ".h." in key


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few sentences, with ``<s>`` before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def save_checkpoint(
    model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """Save a model with a tokenizer, as a hub repository would hold them."""
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def backbone_parts(model: PreTrainedModel) -> tuple[Any, Any, Any]:
    """Blocks, final norm and unembedding of a plain transformers model."""
    inner: Any = model.base_model
    for name in ("layers", "h"):
        if hasattr(inner, name):
            blocks = getattr(inner, name)
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if hasattr(inner, name):
            norm = getattr(inner, name)
    return blocks, norm, model.get_output_embeddings()
