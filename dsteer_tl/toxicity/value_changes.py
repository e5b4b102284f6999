"""How each value vector changed, against the shift of the stream (Lee et al. 2024, Figure 5).

Value vectors whose neuron is active on average (m > 0) should have moved along δ, and those with
m < 0 against it: either way what they write, mΔv, moves the stream along δ.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsteer_tl.cosines import unit_rows
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.toxicity.component_reading import RESPONSE, ComponentBatch, double_precision
from dsteer_tl.toxicity.types import Neurons


def neuron_changes(
    base_values: Float[Tensor, "d_mlp d_model"],
    policy_values: Float[Tensor, "d_mlp d_model"],
    base_activation: Float[np.ndarray, " d_mlp"],
    policy_activation: Float[np.ndarray, " d_mlp"],
    direction: Float[np.ndarray, " d_model"],
    permutation: Int[np.ndarray, " d_mlp"],
) -> dict[str, Float[np.ndarray, " d_mlp"]]:
    """What the neurons of one layer changed, in float64.

    Args:
        base_values: Value vectors v of the base.
        policy_values: The policy's.
        base_activation: Mean m of the base.
        policy_activation: Mean m of the policy.
        direction: Unit vector δ̂.
        permutation: An order of the neurons.

    Returns:
        ``cosine`` of Δv with δ̂ (0 where Δv is zero), ``cosine_permuted`` (of the neuron in the
        permutation's place: same cosines, but of other neurons), ``change_norm`` ‖Δv‖,
        ``write_change`` m⟨Δv, δ̂⟩ and ``activation_change`` Δm⟨v, δ̂⟩.
    """
    values = double_precision(base_values)
    along = torch.from_numpy(direction).to(values.device)
    before = (values @ along).cpu().numpy()
    change = double_precision(policy_values, base_values) - values
    norms = change.norm(dim=1).cpu().numpy()
    projection = (change @ along).cpu().numpy()
    cosine = np.divide(projection, norms, out=np.zeros_like(norms), where=norms > 0)
    return {
        "cosine": np.clip(cosine, -1.0, 1.0),
        "cosine_permuted": np.clip(cosine, -1.0, 1.0)[permutation],
        "change_norm": norms,
        "write_change": base_activation * projection,
        "activation_change": (policy_activation - base_activation) * before,
    }


class ValueChanges:
    """Changes of all value vectors along the mean shift at the last layer's ``resid_mid``.

    Shift and activations are means over the rows of kind ``response``, where the continuation is
    being written and a prompt gives several rows; the state at the last token of a prompt hangs on
    how prompts happen to end.

    Args:
        base: The base.
        policy: The policy, of the same architecture.

    Raises:
        HookError: Something stands between the value vectors and the stream in one of the models.
    """

    def __init__(self, base: LensModel, policy: LensModel) -> None:
        for lens in (base, policy):
            lens.check_value_vectors()
        self.base, self.policy = base, policy
        self._rows = 0
        self._shift = np.zeros(base.d_model)
        self._activations = {
            model: np.zeros((base.n_layers, base.d_mlp)) for model in ("base", "policy")
        }

    def add(self, batch: ComponentBatch) -> None:
        """Take the rows of one batch, which holds ``mlp_post`` and the last ``resid_mid``."""
        self._rows += len(batch.rows(RESPONSE))
        place = f"resid_mid.{self.base.n_layers - 1}"
        for model, sign in (("policy", 1.0), ("base", -1.0)):
            state = batch.at(model, place, RESPONSE)
            self._shift += sign * state.sum(dim=0, dtype=torch.float64).numpy()
            for layer in range(self.base.n_layers):
                rows = batch.at(model, f"mlp_post.{layer}", RESPONSE)
                self._activations[model][layer] += rows.sum(dim=0, dtype=torch.float64).numpy()

    def table(self, attribute: Neurons, *, seed: int) -> pd.DataFrame:
        """The table ``toxicity_value_changes``: one row a neuron of the model.

        ``write_change`` of the layers below adds up to the term ``value_vectors`` of claim 27 along
        the mean shift; neurons of the last layer are in the table but write above the place.

        Args:
            attribute: The neurons that ``group`` names.
            seed: Seed of the permutation of neurons within each layer.

        Raises:
            ShapeError: No rows were added.
        """
        if not self._rows:
            raise ShapeError(
                "value changes: found no row of kind 'response', expected some: let the base write "
                "continuations of two tokens or more"
            )
        direction = unit_rows(self._shift / self._rows)
        frames = []
        for layer in range(self.base.n_layers):
            means = {name: sums[layer] / self._rows for name, sums in self._activations.items()}
            group = np.full(self.base.d_mlp, "", dtype=object)
            group[attribute.of_layer(layer)] = attribute.group
            found = neuron_changes(
                self.base.mlp_weights(layer).W_out,
                self.policy.mlp_weights(layer).W_out,
                means["base"],
                means["policy"],
                direction,
                np.random.default_rng([seed, layer]).permutation(self.base.d_mlp),
            )
            frames.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "neuron": np.arange(self.base.d_mlp),
                        "group": group,
                        "mean_activation": means["base"],
                        **found,
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)
