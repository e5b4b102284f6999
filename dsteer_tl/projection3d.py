"""Coordinates for the 3-D figures: which plane is shown, and how much of the truth it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dsteer_tl.cosines import centre, finite_rows, finite_vector
from dsteer_tl.errors import ShapeError
from dsteer_tl.gradients import pca_basis
from dsteer_tl.spectra import spectrum

# A vector that keeps less than this share of its length after orthogonalisation adds no axis.
_DEPENDENT = 1e-10


def orthonormal_basis(
    vectors: Float[np.ndarray, "vector d_model"], k: int = 3
) -> Float[np.ndarray, "k d_model"]:
    """Gram–Schmidt: k axes that span the first k independent vectors, in their order.

    Zero or dependent vectors are skipped. Missing axes are completed by the coordinate axis that
    the basis covers least, the lowest index first, so the result depends on the vectors only.

    Raises:
        ShapeError: Wrong shape, NaN/inf inside, or k outside 1 … d_model.
    """
    values = finite_rows(vectors, minimum=0, name="vectors")
    d_model = values.shape[1]
    if not 1 <= k <= d_model:
        raise ShapeError(f"basis: found k={k}, expected 1 to {d_model}, the d_model of the vectors")
    basis = np.zeros((0, d_model))
    for vector in values[np.any(values != 0, axis=1)]:
        scaled = vector / np.linalg.norm(vector)
        rest = _orthogonal(scaled, basis)
        if len(basis) < k and np.linalg.norm(rest) > _DEPENDENT:
            basis = _extended(basis, rest)
    while len(basis) < k:
        # Rounded, so that equal coverage is a tie on every machine.
        covered = np.round(np.sum(basis**2, axis=0), 9)
        axis = np.zeros(d_model)
        axis[int(np.argmin(covered))] = 1.0
        basis = _extended(basis, _orthogonal(axis, basis))
    return basis


def project(
    rows: Float[np.ndarray, "row d_model"],
    basis: Float[np.ndarray, "k d_model"],
    origin: Float[np.ndarray, " d_model"] | None = None,
) -> Float[np.ndarray, "row k"]:
    """Coordinates (x − origin)·basisⱼ of each row.

    Raises:
        ShapeError: Shapes do not match, or NaN/inf inside.
    """
    values, axes = finite_rows(rows), finite_rows(basis, name="basis")
    start = np.zeros(values.shape[1]) if origin is None else finite_vector(origin, name="origin")
    if not values.shape[1] == axes.shape[1] == start.size:
        raise ShapeError(
            f"projection: found d_model {values.shape[1]} in the rows, {axes.shape[1]} in the "
            f"basis and {start.size} in the origin, expected one d_model"
        )
    return np.asarray((values - start) @ axes.T)


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """One pair's vectors in three dimensions (Fig. 1a).

    Attributes:
        coordinates: Name of the `geometry` table → (x, y, z).
        basis: The axes; the first two span e_chosen and e_rejected.
        shown: Share of the squared length of h_base and h_policy that the three axes show; for a
            hidden state of hundreds of dimensions it is small, and a caption should say so.
    """

    coordinates: Mapping[str, Float[np.ndarray, " 3"]]
    basis: Float[np.ndarray, "3 d_model"]
    shown: Mapping[str, float]


def geometry_coordinates(
    h_base: Float[np.ndarray, " d_model"],
    h_policy: Float[np.ndarray, " d_model"],
    e_chosen: Float[np.ndarray, " d_model"],
    e_rejected: Float[np.ndarray, " d_model"],
) -> Geometry:
    """Places h before and after DPO, e_w, e_l, v and the projections of h on v in one frame.

    The axes are e_chosen, what e_rejected adds to it, and the direction that shows most of what
    is left of h_base and h_policy. As v lies in the frame, ⟨h, v⟩ and the projections
    ⟨h, v⟩v/‖v‖² are exact in the picture; lengths of h are not (see `Geometry.shown`).

    Raises:
        ShapeError: Shapes differ, fewer than three dimensions, or NaN/inf inside.
    """
    given = {
        "h_base": finite_vector(h_base, name="h_base"),
        "h_policy": finite_vector(h_policy, name="h_policy"),
        "e_chosen": finite_vector(e_chosen, name="e_chosen"),
        "e_rejected": finite_vector(e_rejected, name="e_rejected"),
    }
    sizes = {name: vector.size for name, vector in given.items()}
    if len(set(sizes.values())) != 1:
        raise ShapeError(f"geometry: found sizes {sizes}, expected one d_model")
    plane = np.stack([given["e_chosen"], given["e_rejected"]])
    span = orthonormal_basis(plane, k=min(2, plane.shape[1]))
    states = np.stack([given["h_base"], given["h_policy"]])
    rest = spectrum(states - (states @ span.T) @ span, keep=1).directions
    basis = orthonormal_basis(np.concatenate([span, rest]), k=3)

    v = given["e_chosen"] - given["e_rejected"]
    length = v @ v
    vectors = dict(given, v=v)
    for model in ("base", "policy"):
        scale = given[f"h_{model}"] @ v / length if length > 0 else 0.0
        vectors[f"projection_{model}"] = scale * v
    coordinates = project(np.stack(list(vectors.values())), basis)
    return Geometry(
        coordinates=dict(zip(vectors, coordinates, strict=True)),
        basis=basis,
        shown={name: _shown(given[name], basis) for name in ("h_base", "h_policy")},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StateClouds:
    """Hidden states of both models and of both edits in one frame (Fig. 1c).

    Attributes:
        base: Coordinates of the base's states.
        policy: Of the policy's.
        interpolated: Of base + v.
        inverted: Of policy − v.
        basis: Principal axes of the base's states alone, so that the policy does not choose the
            view in which it differs.
        origin: Mean of the base's states, the zero of the coordinates.
        share: Share of the base's variance on each axis.
        vector_shown: Share of ‖v‖² that the three axes show.
    """

    base: Float[np.ndarray, "prompt 3"]
    policy: Float[np.ndarray, "prompt 3"]
    interpolated: Float[np.ndarray, "prompt 3"]
    inverted: Float[np.ndarray, "prompt 3"]
    basis: Float[np.ndarray, "3 d_model"]
    origin: Float[np.ndarray, " d_model"]
    share: Float[np.ndarray, " 3"]
    vector_shown: float


def state_clouds(
    base: Float[np.ndarray, "prompt d_model"],
    policy: Float[np.ndarray, "prompt d_model"],
    vector: Float[np.ndarray, " d_model"],
) -> StateClouds:
    """Projects base, policy, base + v and policy − v on the base's first three principal axes.

    Raises:
        ShapeError: Shapes differ, fewer than three rows or dimensions, or NaN/inf inside.
    """
    before, after = finite_rows(base, name="base"), finite_rows(policy, name="policy")
    offset = finite_vector(vector)
    if before.shape != after.shape or offset.size != before.shape[1]:
        raise ShapeError(
            f"clouds: found base {before.shape}, policy {after.shape} and vector {offset.shape}, "
            "expected equal rows and one d_model: capture both models on the same prompts"
        )
    basis, origin = pca_basis(before, k=3), before.mean(axis=0)
    variance = np.sum(centre(before) ** 2)
    on_base = project(before, basis, origin)
    share = np.sum(on_base**2, axis=0) / variance if variance > 0 else np.zeros(3)
    return StateClouds(
        base=on_base,
        policy=project(after, basis, origin),
        interpolated=project(before + offset, basis, origin),
        inverted=project(after - offset, basis, origin),
        basis=basis,
        origin=origin,
        share=share,
        vector_shown=_shown(offset, basis),
    )


def _orthogonal(vector: np.ndarray, basis: np.ndarray) -> np.ndarray:
    for _ in range(2):  # twice is enough (Kahan and Parlett): the first pass leaves rounding
        vector = vector - (vector @ basis.T) @ basis
    return vector


def _extended(basis: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return np.concatenate([basis, (vector / np.linalg.norm(vector))[None]])


def _shown(vector: np.ndarray, basis: np.ndarray) -> float:
    length = float(vector @ vector)
    return float(np.sum((basis @ vector) ** 2) / length) if length > 0 else 0.0
