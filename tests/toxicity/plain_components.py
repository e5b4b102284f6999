"""What plain transformers computes inside its blocks, read with forward hooks in float64."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dsteer_tl.lens_model import LensModel, load_lens_model
from tests.models import backbone_parts, random_model

#: For each family: attention, the norm before the MLP, and the MLP's last projection.
_MODULES = {
    "gpt2": ("attn", "ln_2", "mlp.c_proj"),
    "gpt_neox": ("attention", "post_attention_layernorm", "mlp.dense_4h_to_h"),
    "llama": ("self_attn", "post_attention_layernorm", "mlp.down_proj"),
}


@dataclass
class PlainComponents:
    """States of one sequence, ``[position, width]`` a layer, and the weights of the MLPs."""

    resid_pre: list[np.ndarray] = field(default_factory=list)
    resid_mid: list[np.ndarray] = field(default_factory=list)
    resid_post: list[np.ndarray] = field(default_factory=list)
    attn_out: list[np.ndarray] = field(default_factory=list)
    mlp_post: list[np.ndarray] = field(default_factory=list)

    def at(self, place: str) -> np.ndarray:
        kind, layer = place.split(".")
        found: np.ndarray = getattr(self, kind)[int(layer)]
        return found


def value_vectors(model: PreTrainedModel) -> list[tuple[np.ndarray, np.ndarray]]:
    """W_out ``[d_mlp, d_model]`` and b_out of every layer."""
    found = []
    for block in backbone_parts(model)[0]:
        last = block.get_submodule(_MODULES[model.config.model_type][2])
        weight = last.weight.detach().double().numpy()
        weight = weight if model.config.model_type == "gpt2" else weight.T
        bias = np.zeros(weight.shape[1]) if last.bias is None else last.bias.detach().numpy()
        found.append((weight, bias.astype(np.float64)))
    return found


def plain_components(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[Any]:
    """Components of each sequence, run alone and unpadded."""
    exact = copy.deepcopy(model).double()
    found = []
    for ids in sequences:
        components = PlainComponents()
        with _hooks(exact, components), torch.no_grad():
            exact(input_ids=torch.tensor([list(ids)]), use_cache=False)
        found.append(components)
    return found


@contextlib.contextmanager
def _hooks(model: PreTrainedModel, store: PlainComponents) -> Iterator[None]:
    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda tensor: getattr(store, name).append(tensor[0].numpy())

    def incoming(function: Callable[[Tensor], None]) -> Any:
        return lambda _, args, kwargs: function(args[0] if args else kwargs["hidden_states"])

    def outgoing(function: Callable[[Tensor], None]) -> Any:
        return lambda _, __, out: function(out[0] if isinstance(out, tuple) else out)

    attention, norm, last = _MODULES[model.config.model_type]
    handles = []
    for block in backbone_parts(model)[0]:
        handles += [
            block.register_forward_pre_hook(incoming(keep("resid_pre")), with_kwargs=True),
            block.register_forward_hook(outgoing(keep("resid_post"))),
            block.get_submodule(attention).register_forward_hook(outgoing(keep("attn_out"))),
            block.get_submodule(norm).register_forward_pre_hook(
                incoming(keep("resid_mid")), with_kwargs=True
            ),
            block.get_submodule(last).register_forward_pre_hook(
                incoming(keep("mlp_post")), with_kwargs=True
            ),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Models:
    """A pair, once in plain transformers and once hooked."""

    base: PreTrainedModel
    policy: PreTrainedModel
    lens_base: LensModel
    lens_policy: LensModel


@functools.cache
def models_of(architecture: str) -> Models:
    """A random pair whose policy differs in all weights, embeddings and biases included."""
    parallel = {"use_parallel_residual": False} if architecture == "serial_neox" else {}
    base = random_model(architecture.removeprefix("serial_"), **parallel)
    policy = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(policy.named_parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Models(base, policy, *(load_lens_model(copy.deepcopy(each)) for each in (base, policy)))


#: Token ids of ragged prompts, and of continuations of 4, 1, 6, 0, 3 and 5 tokens.
PROMPTS = ((3, 9, 27), (81, 4), (12, 36, 108, 5, 15), (45, 7), (60, 61, 62, 63), (2, 99, 98))
CONTINUATIONS = (
    (10, 11, 12, 13),
    (20,),
    (30, 31, 32, 33, 34, 35),
    (),
    (40, 41, 42),
    (50, 51, 52, 53, 54),
)
SEQUENCES = tuple((*p, *c) for p, c in zip(PROMPTS, CONTINUATIONS, strict=True))
