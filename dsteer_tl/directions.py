"""Directions estimated from shifts and from the unembedding: v*, u_j, and the mean of e_w − e_l."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float, Int

from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import Readout
from dsteer_tl.pair import ModelPair
from dsteer_tl.shift_set import ShiftSet
from dsteer_tl.sites import FINAL
from dsteer_tl.spectra import spectrum
from dsteer_tl.steering_vector import SteeringVector as SteeringVector


def _provenance(pair: ModelPair) -> tuple[dict[str, str], tuple[str, ...]]:
    models = {"base": pair.base.weights_hash, "policy": pair.policy.weights_hash}
    readouts = dict.fromkeys([pair.base.readout.content_hash(), pair.policy.readout.content_hash()])
    return models, tuple(readouts)


def _shifts_of(
    shift_set: ShiftSet, site: str, position_kind: str, prompts: Collection[int] | None
) -> Float[np.ndarray, "row d_model"]:
    shifts = shift_set.shifts(site, position_kind)
    if prompts is None:
        return shifts
    kept: np.ndarray = shifts[np.isin(shift_set.prompts(position_kind), list(prompts))]
    if not len(kept):
        raise ShapeError(
            f"none of the {len(prompts)} prompts has a row of kind {position_kind!r} at {site!r}"
        )
    return kept


def mean_shift_vector(
    pair: ModelPair,
    shift_set: ShiftSet,
    site: str,
    position_kind: str,
    *,
    prompts: Collection[int] | None = None,
) -> SteeringVector:
    """The empirical steering vector v* = mean over rows of h_policy − h_base (D-STEER, sec. 3).

    Args:
        pair: Base and policy.
        shift_set: Their captured residuals.
        site: Where the vector lives.
        position_kind: Which rows.
        prompts: Only rows of these prompts, so that others can judge the vector.

    Raises:
        ShapeError: The site or kind was not captured, or no row is left.
    """
    shifts = _shifts_of(shift_set, site, position_kind, prompts)
    models, readouts = _provenance(pair)
    return SteeringVector(
        shifts.mean(axis=0), site, "v_star", position_kind, len(shifts), models, readouts
    )


def principal_vector(
    pair: ModelPair,
    shift_set: ShiftSet,
    site: str,
    position_kind: str,
    *,
    component: int = 1,
    centred: bool = False,
    prompts: Collection[int] | None = None,
) -> SteeringVector:
    """The unit vector u_j of the SVD of ΔH (D-STEER, sec. 4), j counted from 1.

    ``prompts`` as in `mean_shift_vector`.

    Raises:
        ShapeError: There is no such component.
    """
    shifts = _shifts_of(shift_set, site, position_kind, prompts)
    directions = spectrum(shifts, centred=centred).directions
    if not 1 <= component <= len(directions):
        raise ShapeError(
            f"component {component} does not exist: ΔH at {site!r} has {len(shifts)} rows and "
            f"{len(directions)} components, counted from 1"
        )
    values = directions[component - 1]
    models, readouts = _provenance(pair)
    name = f"u{component}" + ("_centred" if centred else "")
    return SteeringVector(values, site, name, position_kind, len(shifts), models, readouts)


def preference_directions(
    readout: Readout, chosen: Sequence[int], rejected: Sequence[int]
) -> Float[np.ndarray, "pair d_model"]:
    """Per pair v⁽ⁱ⁾ = e_w − e_l, differences of columns of W_U (D-STEER, sec. 2.2)."""
    W_U = readout.W_U.detach().cpu()
    columns = W_U[:, list(chosen)].double() - W_U[:, list(rejected)].double()
    return columns.T.numpy()


def mean_preference_vector(
    pair: ModelPair,
    chosen: Int[np.ndarray, " pair"] | Sequence[int],
    rejected: Int[np.ndarray, " pair"] | Sequence[int],
) -> SteeringVector:
    """Mean of e_w − e_l over pairs, in the space of h."""
    values = preference_directions(pair.base.readout, list(chosen), list(rejected))
    models, readouts = _provenance(pair)
    return SteeringVector(
        values.mean(axis=0), FINAL, "mean_preference", "divergence", len(values), models, readouts
    )
