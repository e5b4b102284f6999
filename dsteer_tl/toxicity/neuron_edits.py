"""Edits of chosen neurons: key vectors made longer, activations put in place.

Multiplying a key vector is the same as multiplying what the neuron reads, so no weight is touched:
the edit acts at the pre-activation, and one model serves every scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.cosines import finite_rows
from dsteer_tl.errors import ConfigurationError, HookError, ShapeError
from dsteer_tl.lens_model import Edit, Gather, LensModel, length_sorted_batches, pad
from dsteer_tl.toxicity.types import Neurons

#: Which key vectors are scaled: those of W_in, of W_gate, or both.
Keys = Literal["in", "gate", "both"]
KEYS: tuple[Keys, ...] = ("in", "gate", "both")

MOST_ACTIVE = "most_active"

# Activations of all layers that one batch may gather: 512 MiB as float32.
_GATHERED = 2**27

_PLACES: dict[Keys, tuple[str, ...]] = {
    "in": ("mlp_pre",),
    "gate": ("mlp_gate",),
    "both": ("mlp_pre", "mlp_gate"),
}


def scale_keys(lens: LensModel, neurons: Neurons, factor: float, keys: Keys = "in") -> list[Edit]:
    """What the model does when the neurons' key vectors are multiplied by a factor (sec. 6).

    With pre = ⟨x, k⟩ + b the edit is pre ← factor · (pre − b) + b: biases are left alone, as when
    the column of the weight is multiplied. Other neurons stay as they are, bit for bit.

    Where a neuron is not gated, k is its column of W_in. In a gated MLP, m = act(x·W_gate)·(x·W_in)
    has two: ``in`` multiplies m by the factor exactly, whatever its sign; ``gate`` opens open gates
    wider and closes closed ones; ``both`` is the two together, so that m grows about as factor².

    Args:
        lens: The model that will run inside ``lens.hooks(…)``.
        neurons: Whose keys; their signs do not matter.
        factor: The scale; at 1 there is no edit at all.
        keys: Which key vectors.

    Raises:
        ConfigurationError: ``gate`` or ``both`` is asked of a model without gates, or the factor is
            not a finite number.
        HookError: A neuron does not exist in this model.
    """
    if keys not in KEYS:
        raise ConfigurationError(f"keys: found {keys!r}, expected one of {', '.join(KEYS)}")
    if keys != "in" and not lens.gated_mlp:
        raise ConfigurationError(
            f"keys {keys!r}: the MLPs of {lens.name} have no gate, so 'in' are all their keys"
        )
    if not math.isfinite(factor):
        raise ConfigurationError(f"factor of key vectors: found {factor}, expected a finite number")
    check_neurons(lens, neurons)
    if factor == 1:
        return []
    edits = []
    for layer in layers_of(neurons):
        index = torch.from_numpy(np.unique(neurons.of_layer(layer)))
        weights = lens.mlp_weights(layer)
        for place in _PLACES[keys]:
            bias = weights.b_in if place == "mlp_pre" else cast(Tensor, weights.b_gate)
            edits.append(Edit(f"{place}.{layer}", _scaled(index, bias.cpu()[index], factor)))
    return edits


def replace_activations(
    lens: LensModel,
    neurons: Neurons,
    values: Mapping[int, Float[Tensor, "batch position neuron_of_layer"]],
) -> list[Edit]:
    """Give neurons the activations m of another run over the same batch.

    Args:
        lens: The model that will run inside ``lens.hooks(…)``.
        neurons: Which neurons.
        values: For every layer of the group, their activations in the order of
            `Neurons.of_layer`.

    Raises:
        HookError: A neuron does not exist in this model.
        ShapeError: The values are not of the group; a pass inside has another batch than they.
    """
    check_neurons(lens, neurons)
    edits = []
    for layer in layers_of(neurons):
        index = neurons.of_layer(layer)
        found = tuple(values[layer].shape) if layer in values else None
        if found is None or len(found) != 3 or found[-1] != len(index):
            raise ShapeError(
                f"activations of {neurons.group!r} in layer {layer}: found shape {found}, expected "
                f"(batch, position, {len(index)}): one number a neuron of the group in this layer"
            )
        edits.append(Edit(f"mlp_post.{layer}", _replaced(torch.from_numpy(index), values[layer])))
    return edits


@torch.inference_mode()
def mean_contributions(
    lens: LensModel, texts: Sequence[Sequence[int]], *, token_budget: int, progress: bool = True
) -> Float[np.ndarray, "layer d_mlp"]:
    """Mean |m_i| · ‖v_i‖ of every neuron: how much it writes to the stream, whichever its sign.

    A text's first token is left out where others follow: attention parks on it, and the huge
    activations that a few neurons have there say nothing of the text.

    Args:
        lens: The model.
        texts: Token ids; every token counts the same.
        token_budget: Padded tokens a forward pass.
        progress: Show a progress bar.

    Raises:
        HookError: The rows of W_out are not what neurons write.
        ShapeError: There are no texts, one has no tokens, or they do not fit the model.
    """
    if not texts or not all(texts):
        raise ShapeError(
            f"contributions of neurons: found {len(texts)} texts, expected at least one, and none "
            "without tokens"
        )
    lens.check_value_vectors()
    places = [f"mlp_post.{layer}" for layer in range(lens.n_layers)]
    total = np.zeros((lens.n_layers, lens.d_mlp))
    count = 0
    budget = min(token_budget, max(1, _GATHERED // total.size))
    batches = list(length_sorted_batches([len(text) for text in texts], budget))
    for indices in tqdm(batches, desc="contributions", unit="batch", disable=not progress):
        batch = pad([texts[index] for index in indices])
        counted = batch.mask.clone()
        counted[:, 0] = batch.mask.sum(dim=1) == 1
        rows, positions = counted.nonzero(as_tuple=True)
        count += len(rows)
        found = lens.capture(batch.ids, batch.mask, places, Gather(rows, positions))
        for layer, place in enumerate(places):
            total[layer] += found[place].abs().double().sum(dim=0).numpy()
    norms = [
        lens.mlp_weights(layer).W_out.double().norm(dim=1).cpu() for layer in range(lens.n_layers)
    ]
    return np.asarray(total / count * torch.stack(norms).numpy())


def most_active_neurons(
    contributions: Float[np.ndarray, "layer d_mlp"], count: int, *, exclude: Neurons | None = None
) -> Neurons:
    """The neurons that write most, over all layers together, with signs of +1.

    The control of claim 28: neurons of no attribute whose keys may matter as much.

    Args:
        contributions: `mean_contributions`.
        count: How many.
        exclude: Neurons that are not taken: the attribute's.

    Raises:
        ShapeError: There are fewer neurons, the count is below 1, or NaN/inf inside.
    """
    sizes = finite_rows(contributions, name="contributions")
    if exclude is not None:
        sizes[exclude.layers, exclude.neurons] = -np.inf
    there = int(np.isfinite(sizes).sum())
    if not 1 <= count <= there:
        raise ShapeError(
            f"neurons {MOST_ACTIVE!r}: asked for {count}, expected 1 to {there}, as many as are "
            "not excluded: set toxicity.neurons accordingly"
        )
    order = np.argsort(-sizes, axis=None, kind="stable")[:count]
    layers, neurons = np.unravel_index(order, sizes.shape)
    return Neurons(
        group=MOST_ACTIVE, layers=layers, neurons=neurons, signs=np.ones(count, dtype=np.int64)
    )


def all_neurons(lens: LensModel) -> Neurons:
    """Every neuron of every layer, as the group ``all``."""
    layers, neurons = np.divmod(np.arange(lens.n_layers * lens.d_mlp), lens.d_mlp)
    return Neurons(group="all", layers=layers, neurons=neurons, signs=np.ones_like(neurons))


def layers_of(neurons: Neurons) -> list[int]:
    """The layers that hold neurons of the group, in order."""
    found: list[int] = np.unique(neurons.layers).tolist()
    return found


def check_neurons(lens: LensModel, neurons: Neurons) -> None:
    """Refuse neurons that a model does not have.

    Raises:
        HookError: Names the first.
    """
    outside = (
        (neurons.layers < 0)
        | (neurons.layers >= lens.n_layers)
        | (neurons.neurons < 0)
        | (neurons.neurons >= lens.d_mlp)
    )
    if outside.any():
        first = int(np.argmax(outside))
        raise HookError(
            f"group {neurons.group!r} has neuron {neurons.neurons[first]} of layer "
            f"{neurons.layers[first]}, but {lens.name} has {lens.n_layers} layers of {lens.d_mlp}: "
            "was the group found in another model?"
        )


def _scaled(index: Tensor, bias: Tensor, factor: float) -> Callable[[Tensor], Tensor]:
    def function(pre: Tensor) -> Tensor:
        at = index.to(pre.device)
        # In half precision pre − b would round before it is made ten times as large.
        wide = torch.promote_types(pre.dtype, torch.float32)
        b = bias.to(pre.device, wide)
        moved = factor * (pre[..., at].to(wide) - b) + b
        return pre.index_copy(-1, at, moved.to(pre.dtype))

    return function


def _replaced(index: Tensor, values: Tensor) -> Callable[[Tensor], Tensor]:
    def function(m: Tensor) -> Tensor:
        if m.shape[:-1] != values.shape[:-1]:
            raise ShapeError(
                f"activations to put in place: found batch {tuple(values.shape[:-1])}, but this "
                f"pass has {tuple(m.shape[:-1])}: give those of the same batch"
            )
        return m.index_copy(-1, index.to(m.device), values.to(m.device, m.dtype))

    return function
