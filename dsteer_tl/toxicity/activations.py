"""Do activations of the attribute's neurons drop? (Lee et al. 2024, sec. 5.2, Fig. 2; claim 25).

The activations are the true m, read at the model's own activation function: recomputed from the
residual stream without the norm's scale and bias they would be other numbers. Beside the group of
the attribute stands a group of neurons that were just as active in the base, since whatever is
active may drop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from dsteer_tl.controls import bootstrap_mean
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.positions import Probe
from dsteer_tl.toxicity.component_reading import GENERATED, ComponentBatch, read_components
from dsteer_tl.toxicity.types import Neurons

MATCHED = "matched"

# Neurons among which the nearest is taken; drawn at random, so that seeds give different groups.
_CANDIDATES = 128


def activation_places(n_layers: int) -> tuple[str, ...]:
    """The post-activation values of every layer."""
    return tuple(f"mlp_post.{layer}" for layer in range(n_layers))


def mean_activations(
    lens: LensModel, probes: Sequence[Probe], *, token_budget: int, progress: bool = True
) -> Float[np.ndarray, "layer d_mlp"]:
    """Mean m of every neuron over the positions at which continuations are written.

    Each prompt counts the same, however long its continuation is.

    Raises:
        DataError: A sequence is longer than the context.
    """
    places = activation_places(lens.n_layers)
    total = np.zeros((lens.n_layers, lens.d_mlp))
    for batch in read_components(
        {lens.name: lens},
        probes,
        {lens.name: places},
        token_budget=token_budget,
        progress=progress,
        description="activations",
    ):
        share, _ = _averaging(batch)
        for layer, place in enumerate(places):
            rows = batch.at(lens.name, place, GENERATED).numpy()
            total[layer] += share.sum(axis=0) @ rows
    return total / len(probes)


def matched_neurons(
    mean_activation: Float[np.ndarray, "layer d_mlp"], attribute: Neurons, seed: int
) -> Neurons:
    """Random neurons that are as active in the base as the attribute's: the control of claim 25.

    Each neuron of the group gets a partner of its own layer and sign, outside the group and no one
    else's: the one with the nearest oriented mean activation among 128 drawn at random. Keeps layer
    and activity; breaks what the value vector says.

    Args:
        mean_activation: Mean m of every neuron in the base, from `mean_activations`.
        attribute: The group to match.
        seed: Seed of the candidates.

    Returns:
        The partners, in the group's order.

    Raises:
        ShapeError: A neuron does not exist, or a layer has too few neurons outside the group.
    """
    n_layers, d_mlp = mean_activation.shape
    if len(attribute) and (
        attribute.layers.max() >= n_layers
        or attribute.neurons.max() >= d_mlp
        or min(attribute.layers.min(), attribute.neurons.min()) < 0
    ):
        raise ShapeError(
            f"matched neurons: group {attribute.group!r} has layers up to "
            f"{attribute.layers.max()} and neurons up to {attribute.neurons.max()}, but the "
            f"activations are of {n_layers} layers of {d_mlp}: was it found in another model?"
        )
    generator = np.random.default_rng(seed)
    free = {
        layer: np.setdiff1d(np.arange(d_mlp), attribute.of_layer(layer))
        for layer in np.unique(attribute.layers).tolist()
    }
    partners = []
    pairs = zip(attribute.layers.tolist(), attribute.neurons.tolist(), strict=True)
    for layer, neuron in pairs:
        if not len(free[layer]):
            raise ShapeError(
                f"matched neurons: {len(attribute.of_layer(layer))} of the {d_mlp} neurons of "
                f"layer {layer} are in group {attribute.group!r}, so some have no partner: take "
                "a smaller group"
            )
        count = min(_CANDIDATES, len(free[layer]))
        candidates = generator.choice(free[layer], size=count, replace=False)
        # One sign for both: as near oriented as it is plain.
        distances = np.abs(mean_activation[layer, candidates] - mean_activation[layer, neuron])
        chosen = int(candidates[np.argmin(distances)])
        partners.append(chosen)
        free[layer] = free[layer][free[layer] != chosen]
    return Neurons(
        group=MATCHED,
        layers=attribute.layers.copy(),
        neurons=np.array(partners, dtype=np.int64),
        signs=attribute.signs.copy(),
    )


class PromptActivations:
    """Oriented activations of a group, averaged over each prompt's generated positions."""

    def __init__(self, neurons: Neurons) -> None:
        self.neurons = neurons
        self._prompts: list[np.ndarray] = []
        self._means: list[np.ndarray] = []

    def add(self, batch: ComponentBatch, model: str) -> None:
        """Take the rows of one batch."""
        share, prompts = _averaging(batch)
        found = np.zeros((len(prompts), len(self.neurons)))
        for layer in np.unique(self.neurons.layers).tolist():
            columns = np.flatnonzero(self.neurons.layers == layer)
            rows = batch.at(model, f"mlp_post.{layer}", GENERATED)
            kept = rows[:, torch.from_numpy(self.neurons.neurons[columns])].numpy()
            found[:, columns] = share @ kept.astype(np.float64)
        self._prompts.append(prompts)
        self._means.append(found * self.neurons.signs)

    def means(self) -> Float[np.ndarray, "prompt neuron"]:
        """Mean of sign·m for every prompt, in the order of the prompts."""
        order = np.argsort(np.concatenate(self._prompts), kind="stable")
        found: np.ndarray = np.concatenate(self._means)[order]
        return found


def neuron_table(
    neurons: Neurons,
    base: Float[np.ndarray, "prompt neuron"],
    policy: Float[np.ndarray, "prompt neuron"],
    *,
    texts: str,
) -> pd.DataFrame:
    """Rows of the table ``toxicity_activations``: one a neuron, activations oriented by sign.

    Args:
        neurons: The group.
        base: Oriented mean activations of the base, from `PromptActivations`.
        policy: The same of the policy, for the same prompts.
        texts: ``off_policy`` where both read one text, ``on_policy`` where each reads its own.

    Raises:
        ShapeError: The arrays do not belong together.
    """
    _check_paired(neurons, base, policy)
    mean_base, mean_policy = base.mean(axis=0), policy.mean(axis=0)
    return pd.DataFrame(
        {
            "group": neurons.group,
            "texts": texts,
            "layer": neurons.layers,
            "neuron": neurons.neurons,
            "sign": neurons.signs,
            "mean_base": mean_base,
            "mean_policy": mean_policy,
            "change": mean_policy - mean_base,
        }
    )


def change_table(
    neurons: Neurons,
    base: Float[np.ndarray, "prompt neuron"],
    policy: Float[np.ndarray, "prompt neuron"],
    *,
    texts: str,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """The row of a group in ``toxicity_activation_changes``.

    ``change`` is the mean over prompts and neurons of sign·(m_policy − m_base), paired by prompt.
    ``low`` and ``high`` bound a bootstrap over neurons: which of them are in the group is what may
    vary. ``prompt_low`` and ``prompt_high`` bound one over prompts, of these very neurons, and say
    nothing of others. ``relative`` is ``change`` over the neurons' mean |m_base|, for means of both
    signs cancel; ``share_falling`` is the share of neurons whose own mean change is below zero.

    Raises:
        ShapeError: The arrays do not belong together, or hold fewer than two prompts.
    """
    _check_paired(neurons, base, policy)
    change = policy - base
    over_prompts = bootstrap_mean(change.mean(axis=1), draws=draws, seed=seed)
    low = high = float("nan")
    if len(neurons) > 1:
        over_neurons = bootstrap_mean(change.mean(axis=0), draws=draws, seed=seed)
        low, high = over_neurons.low, over_neurons.high
    size = float(np.abs(base.mean(axis=0)).mean())
    return pd.DataFrame(
        [
            {
                "group": neurons.group,
                "texts": texts,
                "mean_base": float(base.mean()),
                "change": over_prompts.value,
                "low": low,
                "high": high,
                "prompt_low": over_prompts.low,
                "prompt_high": over_prompts.high,
                "relative": over_prompts.value / size if size else float("nan"),
                "share_falling": float(np.mean(change.mean(axis=0) < 0)),
                "prompts": len(change),
                "neurons": len(neurons),
            }
        ]
    )


def _averaging(
    batch: ComponentBatch,
) -> tuple[Float[np.ndarray, "prompt row"], Int[np.ndarray, " prompt"]]:
    """The matrix that takes the batch's generated rows to the mean of each prompt."""
    prompts, labels, counts = np.unique(
        batch.prompts[batch.rows(GENERATED)], return_inverse=True, return_counts=True
    )
    share = (labels[None, :] == np.arange(len(prompts))[:, None]) / counts[:, None]
    return share, prompts


def _check_paired(neurons: Neurons, base: np.ndarray, policy: np.ndarray) -> None:
    if not len(neurons):
        raise ShapeError(f"activations: group {neurons.group!r} has no neurons, expected some")
    if base.shape != policy.shape or base.ndim != 2 or base.shape[1] != len(neurons):
        raise ShapeError(
            f"activations of {neurons.group!r}: found shapes {base.shape} and {policy.shape}, "
            f"expected (prompt, {len(neurons)}) for both: let both models read the same prompts"
        )
