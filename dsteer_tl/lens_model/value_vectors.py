"""The weights of MLPs, and the test that their value vectors are what a neuron writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dsteer_tl.errors import HookError
from dsteer_tl.lens_model.backend import ModelBackend
from dsteer_tl.lens_model.block_outputs import short_pass
from dsteer_tl.lens_model.components import MlpWeights

#: Largest ‖mlp_out − (m·W_out + b_out)‖/‖mlp_out‖: rounding in half precision stays below it.
_TOLERANCE = 2e-2


def mlp_weights_of(model: ModelBackend, blocks: Sequence[Any], layer: int) -> MlpWeights:
    """The weights that a TransformerLens block shows as ``mlp.W_in`` and so on.

    Raises:
        HookError: There is no such layer, or the block has no single MLP.
    """
    if not 0 <= layer < model.n_layers:
        raise HookError(
            f"{model.name} has no MLP in layer {layer}: it has {model.n_layers} layers, from 0"
        )
    mlp = getattr(blocks[layer], "mlp", None)
    W_in, W_out = (getattr(mlp, name, None) for name in ("W_in", "W_out"))
    if not (isinstance(W_in, Tensor) and isinstance(W_out, Tensor) and W_out.ndim == 2):
        raise HookError(
            f"block {layer} of {model.name} has no single MLP with keys and value vectors, as in a "
            "mixture of experts: the study of value vectors needs one"
        )
    W_gate = getattr(mlp, "W_gate", None)

    def bias(name: str, width: int) -> Tensor:
        found = getattr(mlp, name, None)
        return W_out.new_zeros(width) if found is None else found.detach()

    d_mlp, d_model = W_out.shape
    return MlpWeights(
        W_in=W_in.detach(),
        W_gate=None if W_gate is None else W_gate.detach(),
        W_out=W_out.detach(),
        b_in=bias("b_in", d_mlp),
        b_gate=None if W_gate is None else bias("b_gate", d_mlp),
        b_out=bias("b_out", d_model),
    )


def require_value_vectors(model: Any) -> None:
    """See `LensModel.check_value_vectors`; a short forward pass compares the two."""
    for layer, found, m in short_pass(model, ("mlp_out", "mlp_post")):
        weights = model.mlp_weights(layer)
        expected = m @ weights.W_out.to(m) + weights.b_out.to(m)
        if not float((found - expected).norm()) <= _TOLERANCE * float(found.norm()):
            raise HookError(
                f"the MLP of block {layer} of {model.name} does not write m·W_out + b_out: a norm "
                "follows it (Gemma 2, OLMo 2), or a LoRA adapter is not merged; the study of value "
                "vectors needs a model without such a norm, with the adapter merged"
            )
