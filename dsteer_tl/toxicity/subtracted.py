"""Which vectors the interventions subtract at the last layer, and which stand beside them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from dsteer_tl.directions import SteeringVector
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.toxicity.linear_probe import LinearProbe
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import Neurons
from dsteer_tl.toxicity.value_vector_tables import value_vector_name
from dsteer_tl.toxicity.value_vectors import oriented_value_vectors, value_vector_svd

RANDOM_VALUE_VECTOR = "random_value_vector"


def subtracted_vectors(
    lens: LensModel, probe: LinearProbe, attribute: Neurons, configuration: ToxicityConfiguration
) -> tuple[list[SteeringVector], list[SteeringVector]]:
    """The probe, single value vectors and singular vectors of them all; and a control (table 2).

    All act at the probe's site, the last ``resid_post``, wherever their neurons lie.

    Args:
        lens: The base.
        probe: W_attribute.
        attribute: The value vectors closest to it, the closest first.
        configuration: How many of each, and the seed.

    Returns:
        The vectors that point towards the attribute, and ``random_value_vector``: that of a neuron
        in the layer of the closest one which is not among them.

    Raises:
        ShapeError: Every neuron of that layer is among them.
        SpaceError: The probe belongs to another model.
    """
    template = probe.vector(lens)
    values = oriented_value_vectors(lens, attribute)
    directions = value_vector_svd(values, probe.unit).directions

    def named(vector: Float[np.ndarray, " d_model"], name: str) -> SteeringVector:
        return template.with_values(vector, name)

    chosen = [template]
    for index in range(min(configuration.single_vectors, len(attribute))):
        place = (int(attribute.layers[index]), int(attribute.neurons[index]))
        chosen.append(named(values[index], value_vector_name(*place)))
    for index in range(min(configuration.singular_vectors, len(directions))):
        chosen.append(named(directions[index], f"SVD.U[{index}]"))
    layer = int(attribute.layers[0])
    others = np.setdiff1d(np.arange(lens.d_mlp), attribute.of_layer(layer))
    if not len(others):
        raise ShapeError(
            f"all {lens.d_mlp} neurons of layer {layer} are among the {len(attribute)} closest to "
            "the probe: set toxicity.vectors lower"
        )
    drawn = int(np.random.default_rng([configuration.seed, 3]).choice(others))
    other = lens.mlp_weights(layer).W_out[drawn].detach().double().cpu().numpy()
    return chosen, [named(other, RANDOM_VALUE_VECTOR)]
