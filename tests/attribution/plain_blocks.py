"""Attention and MLP outputs of plain transformers models, read and replaced by module hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.models import backbone_parts


def module_of(model: Any, place: str) -> Any:
    """The module that computes ``attn_out.<l>`` or ``mlp_out.<l>`` where no norm follows it."""
    kind, layer = place.split(".")
    block = backbone_parts(model)[0][int(layer)]
    if kind == "mlp_out":
        return block.mlp
    return next(
        getattr(block, name) for name in ("self_attn", "attn", "attention") if hasattr(block, name)
    )


def projection_of(model: Any, layer: int) -> Any:
    """The module that is given z."""
    attention = module_of(model, f"attn_out.{layer}")
    return next(
        getattr(attention, name)
        for name in ("o_proj", "c_proj", "dense")
        if hasattr(attention, name)
    )


@contextlib.contextmanager
def hooked(model: Any, replacements: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Replace outputs by a value ``[position, d_model]`` at chosen positions."""

    def hook_of(value: Tensor, where: Tensor) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            found = torch.where(where[None, :, None], value[None], first)
            return (found, *output[1:]) if isinstance(output, tuple) else found

        return hook

    handles = [
        module_of(model, place).register_forward_hook(hook_of(value, where))
        for place, (value, where) in replacements.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def plain_states(model: Any, ids: tuple[int, ...]) -> dict[str, Tensor]:
    """Logits, what enters and leaves the blocks, z, and what attention and MLP write."""
    found: dict[str, Tensor] = {}
    blocks = backbone_parts(model)[0]

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    handles = [
        module_of(model, f"{kind}.{layer}").register_forward_hook(keep(f"{kind}.{layer}"))
        for layer in range(len(blocks))
        for kind in ("attn_out", "mlp_out")
    ]
    handles += [
        projection_of(model, layer).register_forward_hook(
            lambda _m, inputs, _o, layer=layer: found.update({f"z.{layer}": inputs[0][0]})
        )
        for layer in range(len(blocks))
    ]
    handles.append(blocks[-1].register_forward_hook(keep("last")))
    handles.append(
        blocks[0].register_forward_pre_hook(
            lambda _m, a, k: found.update(embed=(a[0] if a else k["hidden_states"])[0]),
            with_kwargs=True,
        )
    )
    found["logits"] = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return found
