"""What blocks add to the stream: the heads' weights, and tests that hooks show all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsteer_tl.errors import HookError
from dsteer_tl.lens_model.backend import ModelBackend
from dsteer_tl.lens_model.components import AttentionOutput


def check_layer(model: ModelBackend, layer: int) -> None:
    """Refuse a layer that a model has not.

    Raises:
        HookError: Says how many there are.
    """
    if not 0 <= layer < model.n_layers:
        raise HookError(
            f"{model.name} has no attention in layer {layer}: it has {model.n_layers} layers, "
            "from 0"
        )


def projection_of(model: ModelBackend, attention: Any, n_heads: int) -> AttentionOutput:
    """The heads' weights of a bridged attention, read from the module that it wraps.

    Not from TransformerLens's own ``W_O``: where n_heads·d_head is d_model, a version that looks
    at shapes alone cannot tell GPT-2's layer, which keeps [in, out], from ``nn.Linear``.

    Raises:
        HookError: There is no single output projection, or its weights are packed.
    """
    projection = getattr(getattr(attention, "o", None), "original_component", None)
    projection = getattr(projection, "base_layer", projection)  # inside a LoRA layer
    weight, bias = (getattr(projection, name, None) for name in ("weight", "bias"))
    if not (isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point()):
        raise HookError(
            f"{type(attention).__name__} of {model.name} has no output projection W_O in plain "
            "numbers: contributions of heads need a model with one attention a block, loaded "
            "without quantisation"
        )
    weight = weight.detach() if type(projection).__name__ == "Conv1D" else weight.detach().T
    if weight.shape[0] % n_heads or weight.shape[1] != model.d_model:
        raise HookError(
            f"the output projection of {model.name} has shape {tuple(weight.shape)}, expected "
            f"[n_heads·d_head, d_model] with {n_heads} heads and d_model {model.d_model}"
        )
    return AttentionOutput(
        W_O=weight.reshape(n_heads, -1, model.d_model),
        b_O=weight.new_zeros(model.d_model) if bias is None else bias.detach(),
    )


def require_attention_outputs(model: Any) -> None:
    """See `LensModel.check_attention_outputs`; a short forward pass compares the two."""
    for layer, found, z in short_pass(model, ("attn_out", "attn_z")):
        weights = model.attention_output(layer)
        expected = z @ weights.W_O.to(z).flatten(0, 1) + weights.b_O.to(z)
        if not _close(model, found, expected):
            raise HookError(
                f"the attention of block {layer} of {model.name} does not write Σ z·W_O + b_O: a "
                "norm follows it (Gemma 2, OLMo 2), or a LoRA adapter is not merged; contributions "
                "of heads need a model without such a norm, with the adapter merged"
            )


def require_block_outputs(model: Any) -> None:
    """See `LensModel.check_block_outputs`; a short forward pass compares the two."""
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    for layer, before, attention, mlp, after in short_pass(model, kinds):
        if not _close(model, after - before, attention + mlp):
            raise HookError(
                f"block {layer} of {model.name} does not add attn_out + mlp_out to the stream: it "
                "scales them or adds a third part, which this version of TransformerLens does not "
                "show; contributions need a model whose blocks add the two"
            )


@torch.inference_mode()
def short_pass(model: Any, kinds: Sequence[str]) -> list[tuple[Any, ...]]:
    """Layer, and what is found there at each kind of place for a few tokens, as float32."""
    ids = torch.arange(min(8, model.d_vocab, model.n_ctx))[None]
    layers = range(model.n_layers)
    with model.reading([f"{kind}.{layer}" for layer in layers for kind in kinds]) as store:
        model.forward(ids, torch.ones_like(ids))
    # A device map spreads the layers; what is compared comes to one device.
    return [
        (layer, *(store[f"{kind}.{layer}"].to(model.device, torch.float32) for kind in kinds))
        for layer in layers
    ]


def _close(model: ModelBackend, found: Tensor, expected: Tensor) -> bool:
    """Equal to the rounding of the model's dtype: a small unmerged adapter must not pass."""
    tolerance = 1e-3 if torch.finfo(model.dtype).eps < 1e-5 else 3e-2
    return float((found - expected.to(found)).norm()) <= tolerance * float(found.norm())
