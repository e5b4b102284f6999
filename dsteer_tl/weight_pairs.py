"""The weights of base and policy side by side: names, kinds and layers of tensors, and adapters."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dsteer_tl.errors import CheckpointError, DependencyError, PairError
from dsteer_tl.lens_model.checkpoint import check_finite, first_line

_NORM = re.compile(r"norm|(^|_)ln(_|$)")
_EMBEDDINGS = {"wte", "wpe", "embed_in", "embed_tokens", "embed_positions", "word_embeddings"}
_UNEMBEDDINGS = {"lm_head", "embed_out"}
_ATTENTION = {"attn", "self_attn", "attention", "self_attention"}
_KEYS = {"c_fc", "dense_h_to_4h", "gate_proj", "up_proj", "gate_up_proj", "fc1", "fc_in"}
_VALUES = {"c_proj", "dense_4h_to_h", "down_proj", "fc2", "fc_out"}


def tensor_kind(name: str) -> str:
    """What a tensor of a HuggingFace checkpoint is for, by its name.

    A bias has the kind of its layer.

    Args:
        name: As in ``named_parameters`` of GPT-2, GPT-NeoX, Llama and models with such names.

    Returns:
        ``attention``, ``mlp_key`` (W_in, W_gate), ``mlp_value`` (W_out), ``norm``, ``embedding``,
        ``unembedding``, or ``other``, as for the experts of a mixture.
    """
    parts = name.removesuffix(".weight").removesuffix(".bias").split(".")
    last = parts[-1]
    if _NORM.search(last):
        return "norm"
    for kind, names in (("embedding", _EMBEDDINGS), ("unembedding", _UNEMBEDDINGS)):
        if last in names:
            return kind
    if _ATTENTION & set(parts):
        return "attention"
    if "experts" in parts:
        return "other"
    return "mlp_key" if last in _KEYS else "mlp_value" if last in _VALUES else "other"


def tensor_layer(name: str) -> int:
    """The block that a tensor belongs to, or −1."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


@torch.no_grad()
def paired_tensors(
    before: torch.nn.Module, after: torch.nn.Module, base: str, policy: str
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, weights of the base and weights of the policy, tensor by tensor; tied ones once.

    Args:
        before: The base.
        after: The policy.
        base: What it is called in messages.
        policy: The same.

    Raises:
        PairError: Names or shapes differ.
        CheckpointError: Weights are quantized.
    """
    old, new = (dict(m.named_parameters(remove_duplicate=False)) for m in (before, after))
    for name in [*old, *(name for name in new if name not in old)]:
        shapes = [tuple(m[name].shape) if name in m else "none" for m in (old, new)]
        if shapes[0] != shapes[1]:
            raise PairError(
                f"{name} has shape {shapes[0]} in {base} and {shapes[1]} in {policy}: "
                "a weight change is defined only between a model and its own fine-tune"
            )
        for tensor, source in ((old[name], base), (new[name], policy)):
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"{name} of {source} has dtype {tensor.dtype}: weights are compared as they "
                    "were trained, so load both models without quantization"
                )
    seen = set()
    for name, tensor in old.items():
        # Tied in one of the two alone, the copies differ and are two rows.
        identity = (id(tensor), id(new[name]))
        if identity not in seen:
            seen.add(identity)
            yield name, tensor, new[name]


def merged_adapter(
    model: PreTrainedModel, adapter: str | Path, base: str | Path
) -> torch.nn.Module:
    """A model with a LoRA adapter merged into its weights; the model is consumed.

    Raises:
        DependencyError: PEFT is not installed.
        CheckpointError: The adapter does not fit, or leaves weights that are not finite.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise DependencyError(
            f"{adapter} is a LoRA adapter and needs PEFT: install 'dsteer-tl[peft]'"
        ) from error
    try:
        with warnings.catch_warnings():
            # PEFT reads a property of transformers that is on its way out.
            warnings.simplefilter("ignore", FutureWarning)
            # Of weights that the file lacks it only warns.
            warnings.filterwarnings("error", "Found missing adapter keys")
            merged: torch.nn.Module = PeftModel.from_pretrained(
                model, str(adapter)
            ).merge_and_unload()
    except Exception as error:
        raise CheckpointError(
            f"cannot merge the adapter {adapter} into {base}: {first_line(error)}"
        ) from error
    check_finite(merged.named_parameters(), str(adapter))
    return merged
