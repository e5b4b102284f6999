"""Exact gradients of the DPO loss with respect to final hidden states (claim 2, Fig. 1b).

With h the vector that W_U multiplies, the loss −ln σ(βΔ) depends on each position's h only
through that position's logits, so automatic differentiation of the loss given all h is exact and
needs no model. At the position where chosen and rejected diverge the gradient is identically
−βσ(−βΔ)(e_w − e_l): D-STEER's "∇ ∝ −v" is algebra there. At later positions the sequences differ
and it is ∓βσ(−βΔ)(e_y − E_p[e]) instead, which is where the claim can fail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsteer_tl.cosines import finite_rows, finite_vector, unit_rows
from dsteer_tl.errors import ShapeError
from dsteer_tl.spectra import spectrum

# The shared rows come from two forward passes of different lengths and agree to rounding only.
_SHARED_TOLERANCE = 1e-2
_BUDGET = 2**24  # logits per block of lattice points


def sequence_log_probability(
    h: Float[Tensor, "position d_model"],
    targets: Int[Tensor, " position"],
    W_U: Float[Tensor, "d_model d_vocab"],
    b_U: Float[Tensor, " d_vocab"] | None = None,
    logit_softcap: float | None = None,
) -> Float[Tensor, ""]:
    """Σ_t ln softmax(z_t)[y_t] with z_t = W_Uᵀh_t + b_U, in nats; differentiable.

    Args:
        h: Final hidden states; row t predicts target t.
        targets: Token ids y_t.
        W_U: The unembedding.
        b_U: Its bias, if the model has one.
        logit_softcap: c of c·tanh(z/c) (Gemma 2), if the model has one.

    Raises:
        ShapeError: Positions, d_model or ids do not match.
    """
    _check_sequence(h, targets, W_U)
    return _token_log_probabilities(h, targets, W_U, b_U, logit_softcap).sum()


def dpo_loss(
    chosen_logp: Float[Tensor, ""],
    rejected_logp: Float[Tensor, ""],
    reference_chosen_logp: Float[Tensor, ""] | float,
    reference_rejected_logp: Float[Tensor, ""] | float,
    beta: float,
) -> Float[Tensor, ""]:
    """−ln σ(β[(ln π_w − ln π_l) − (ln ref_w − ln ref_l)]) in nats (Rafailov et al. 2023, eq. 7).

    Elementwise if the log probabilities are batched.
    """
    margin = chosen_logp - rejected_logp - (reference_chosen_logp - reference_rejected_logp)
    return -torch.nn.functional.logsigmoid(beta * margin)


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOGradients:
    """Gradient of one pair's DPO loss with respect to its final hidden states.

    Attributes:
        shared: ∇ at the positions with a common context, both branches summed; the last row is
            the divergence position, at the earlier ones chosen and rejected cancel to 0.
        chosen: ∇ at the later positions of the chosen sequence.
        rejected: ∇ at the later positions of the rejected sequence.
        loss: The loss in nats.
        margin: Δ, the policy's log-probability margin minus the reference's, in nats.
        weight: βσ(−βΔ), the factor that all gradients share.
    """

    shared: Float[np.ndarray, "shared d_model"]
    chosen: Float[np.ndarray, "chosen d_model"]
    rejected: Float[np.ndarray, "rejected d_model"]
    loss: float
    margin: float
    weight: float

    @property
    def divergence(self) -> Float[np.ndarray, " d_model"]:
        """∇ at the divergence position: −βσ(−βΔ)(e_w − e_l) without a soft-cap."""
        return np.asarray(self.shared[-1])

    @property
    def later(self) -> Float[np.ndarray, "position d_model"]:
        """∇ at all positions after the divergence, chosen first."""
        return np.concatenate([self.chosen, self.rejected])


def dpo_gradients(
    h_chosen: Float[Tensor, "chosen d_model"],
    h_rejected: Float[Tensor, "rejected d_model"],
    chosen_ids: Int[Tensor, " chosen"],
    rejected_ids: Int[Tensor, " rejected"],
    W_U: Float[Tensor, "d_model d_vocab"],
    b_U: Float[Tensor, " d_vocab"] | None,
    reference_margin: float,
    beta: float,
    shared: int,
    logit_softcap: float | None = None,
) -> DPOGradients:
    """Differentiates the DPO loss of one pair by automatic differentiation in float64.

    Row t predicts id t, so row 0 is the last prompt token. The first `shared` rows have the same
    context in both sequences and are one variable; row shared − 1 is the divergence position.
    Shared rows are taken from the chosen sequence.

    Args:
        h_chosen: Final hidden states that predict the chosen response.
        h_rejected: The same for the rejected response.
        chosen_ids: Token ids of the chosen response.
        rejected_ids: Token ids of the rejected response.
        W_U: The unembedding; give it in float64 to spare a copy per call.
        b_U: Its bias, or None.
        reference_margin: ln ref(y_w) − ln ref(y_l) of the reference model, in nats.
        beta: β of DPO.
        shared: Number of positions with a common context, at least 1.
        logit_softcap: c of c·tanh(z/c), if the model has one.

    Raises:
        ShapeError: Shapes do not match, or `shared` contradicts the ids or the hidden states.
    """
    states_chosen, states_rejected, W_U, b_U = _prepare(
        h_chosen, h_rejected, chosen_ids, rejected_ids, W_U, b_U, shared
    )
    stem, chosen_tail, rejected_tail = (
        part.detach().clone().requires_grad_()
        for part in (states_chosen[:shared], states_chosen[shared:], states_rejected[shared:])
    )
    with torch.enable_grad():
        chosen_logp, rejected_logp = (
            sequence_log_probability(torch.cat([stem, tail]), ids, W_U, b_U, logit_softcap)
            for tail, ids in ((chosen_tail, chosen_ids), (rejected_tail, rejected_ids))
        )
        loss = dpo_loss(chosen_logp, rejected_logp, reference_margin, 0.0, beta)
        gradients = torch.autograd.grad(loss, (stem, chosen_tail, rejected_tail))
    margin = float(chosen_logp.detach() - rejected_logp.detach()) - reference_margin
    on_stem, on_chosen, on_rejected = (gradient.cpu().numpy() for gradient in gradients)
    return DPOGradients(
        shared=on_stem,
        chosen=on_chosen,
        rejected=on_rejected,
        loss=float(loss.detach()),
        margin=margin,
        weight=_weight(margin, beta),
    )


def dpo_gradient_field(
    states: Float[np.ndarray, "point d_model"],
    position: int,
    h_chosen: Float[Tensor, "chosen d_model"],
    h_rejected: Float[Tensor, "rejected d_model"],
    chosen_ids: Int[Tensor, " chosen"],
    rejected_ids: Int[Tensor, " rejected"],
    W_U: Float[Tensor, "d_model d_vocab"],
    b_U: Float[Tensor, " d_vocab"] | None,
    reference_margin: float,
    beta: float,
    shared: int,
    logit_softcap: float | None = None,
) -> Float[np.ndarray, "point d_model"]:
    """∇ of the DPO loss at one position of the chosen sequence, at other values of its h.

    All other positions stay as they are. Below `shared` the position belongs to both sequences
    and both branches move. The vector field of Fig. 1(b), on real gradients.

    Args:
        states: The values of h to visit, such as `Lattice.states`.
        position: Row of `h_chosen` that is replaced.
        h_chosen: As in `dpo_gradients`, and so the arguments that follow.
        h_rejected: Final hidden states that predict the rejected response.
        chosen_ids: Token ids of the chosen response.
        rejected_ids: Token ids of the rejected response.
        W_U: The unembedding.
        b_U: Its bias, or None.
        reference_margin: Log-probability margin of the reference, in nats.
        beta: β of DPO.
        shared: Number of positions with a common context.
        logit_softcap: c of c·tanh(z/c), if the model has one.

    Raises:
        ShapeError: As `dpo_gradients`, or the position lies outside the chosen sequence.
    """
    states_chosen, states_rejected, W_U, b_U = _prepare(
        h_chosen, h_rejected, chosen_ids, rejected_ids, W_U, b_U, shared
    )
    if not 0 <= position < len(chosen_ids):
        raise ShapeError(
            f"gradient field: found position {position}, expected 0 to {len(chosen_ids) - 1}, a "
            "row of h_chosen"
        )
    points = torch.as_tensor(finite_rows(states, name="states")).to(W_U)
    _check_sequence(points, chosen_ids[:1].expand(len(points)), W_U)

    def token(rows: Tensor, id_: Tensor) -> Tensor:
        return _token_log_probabilities(rows, id_.expand(len(rows)), W_U, b_U, logit_softcap)

    with torch.no_grad():
        stay_chosen = torch.arange(len(chosen_ids)) != position
        stay_rejected = torch.arange(len(rejected_ids)) != (position if position < shared else -1)
        rest = sequence_log_probability(
            states_chosen[stay_chosen], chosen_ids[stay_chosen], W_U, b_U, logit_softcap
        ) - sequence_log_probability(
            states_rejected[stay_rejected], rejected_ids[stay_rejected], W_U, b_U, logit_softcap
        )
    parts = []
    with torch.enable_grad():
        for block in torch.split(points, max(1, _BUDGET // W_U.shape[1])):
            variable = block.clone().requires_grad_()
            margins = rest + token(variable, chosen_ids[position])
            if position < shared:
                margins = margins - token(variable, rejected_ids[position])
            loss = dpo_loss(margins, torch.zeros_like(margins), reference_margin, 0.0, beta)
            parts.append(torch.autograd.grad(loss.sum(), variable)[0].cpu().numpy())
    return np.concatenate(parts)


def descent_cosines(
    gradients: Float[np.ndarray, "row d_model"],
    preference_direction: Float[np.ndarray, " d_model"] | Float[np.ndarray, "row d_model"],
) -> Float[np.ndarray, " row"]:
    """cos(∇, −v): 1 where gradient descent moves h exactly along +v (claim 2).

    Args:
        gradients: One gradient per row; a zero gradient has cosine 0.
        preference_direction: v = e_w − e_l, one for all rows or one per row.

    Raises:
        ShapeError: Shapes do not match, or NaN/inf inside.
    """
    rows = finite_rows(gradients, name="gradients")
    direction = np.asarray(preference_direction)
    if direction.ndim == 1:
        direction = finite_vector(direction, name="preference direction")[None]
    else:
        direction = finite_rows(direction, name="preference direction")
    if direction.shape[1] != rows.shape[1] or len(direction) not in (1, len(rows)):
        raise ShapeError(
            f"preference direction: found shape {direction.shape}, expected ({rows.shape[1]},) or "
            f"{rows.shape}: give one direction, or one per gradient"
        )
    cosines = np.sum(unit_rows(rows) * -unit_rows(direction), axis=1)
    return np.asarray(np.clip(cosines, -1.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """Regular grid around a hidden state.

    Attributes:
        coordinates: Coordinates in the basis, from −extent to extent on each axis.
        states: The hidden states centre + Σ aⱼ basisⱼ at those coordinates.
    """

    coordinates: Float[np.ndarray, "point 3"]
    states: Float[np.ndarray, "point d_model"]


def lattice(
    centre: Float[np.ndarray, " d_model"],
    basis: Float[np.ndarray, "3 d_model"],
    extent: float,
    points_per_axis: int,
) -> Lattice:
    """Lays points_per_axis³ points around the centre, the last axis running fastest.

    Args:
        centre: The hidden state in the middle.
        basis: Orthonormal axes, such as `pca_basis`.
        extent: Half the side of the cube, in the units of the hidden state.
        points_per_axis: At least 1; with 1 only the centre.

    Raises:
        ShapeError: Shapes do not match, or NaN/inf inside.
    """
    middle, axes = finite_vector(centre, name="centre"), finite_rows(basis, name="basis")
    if axes.shape != (3, middle.size):
        raise ShapeError(f"basis: found shape {axes.shape}, expected (3, {middle.size})")
    if points_per_axis < 1 or not np.isfinite(extent):
        raise ShapeError(
            f"lattice: found {points_per_axis} points to ±{extent}, expected at least 1 point and "
            "a finite extent"
        )
    ticks = np.linspace(-extent, extent, points_per_axis) if points_per_axis > 1 else np.zeros(1)
    coordinates = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3)
    return Lattice(coordinates=coordinates, states=middle + coordinates @ axes)


def pca_basis(rows: Float[np.ndarray, "row d_model"], k: int = 3) -> Float[np.ndarray, "k d_model"]:
    """First k principal directions of the centred rows, signs as in `Spectrum.directions`.

    Raises:
        ShapeError: Wrong shape, NaN/inf inside, or fewer than k components.
    """
    directions = spectrum(rows, centred=True, keep=k).directions
    if len(directions) < k:
        raise ShapeError(
            f"principal axes: found {len(directions)} in rows of shape {np.shape(rows)}, expected "
            f"{k}: give more rows"
        )
    return directions


def _token_log_probabilities(
    h: Tensor, targets: Tensor, W_U: Tensor, b_U: Tensor | None, logit_softcap: float | None
) -> Tensor:
    logits = h @ W_U if b_U is None else h @ W_U + b_U
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    picked = logits.gather(1, targets.to(logits.device).long()[:, None])[:, 0]
    return picked - logits.logsumexp(dim=1)


def _weight(margin: float, beta: float) -> float:
    return beta * float(torch.sigmoid(torch.tensor(-beta * margin, dtype=torch.float64)))


def _prepare(
    h_chosen: Tensor,
    h_rejected: Tensor,
    chosen_ids: Tensor,
    rejected_ids: Tensor,
    W_U: Tensor,
    b_U: Tensor | None,
    shared: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    _check_sequence(h_chosen, chosen_ids, W_U)
    _check_sequence(h_rejected, rejected_ids, W_U)
    shortest = min(len(chosen_ids), len(rejected_ids))
    same = 0
    while same < shortest and int(chosen_ids[same]) == int(rejected_ids[same]):
        same += 1
    if same == shortest or shared != same + 1:
        found = "never differ" if same == shortest else f"first differ at response token {same}"
        raise ShapeError(
            f"DPO gradients: found shared={shared} for responses that {found}, expected one more "
            "than the number of common tokens: count the last prompt token as position 0"
        )
    states_chosen, states_rejected = h_chosen.detach().double(), h_rejected.detach().double()
    gap = float((states_chosen[:shared] - states_rejected[:shared]).norm())
    scale = float(states_chosen[:shared].norm())
    if not gap <= _SHARED_TOLERANCE * scale:
        raise ShapeError(
            f"DPO gradients: found shared rows of h that differ by {gap:.3g} of {scale:.3g}, "
            "expected equal ones: both sequences must begin with the same prompt"
        )
    return (
        states_chosen,
        states_rejected,
        W_U.detach().double(),
        None if b_U is None else b_U.detach().double(),
    )


def _check_sequence(h: Tensor, targets: Tensor, W_U: Tensor) -> None:
    if h.ndim != 2 or targets.shape != h.shape[:1] or W_U.shape[:1] != h.shape[1:]:
        raise ShapeError(
            f"hidden states: found h {tuple(h.shape)}, targets {tuple(targets.shape)} and W_U "
            f"{tuple(W_U.shape)}, expected (position, d_model), (position,) and (d_model, d_vocab)"
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < W_U.shape[1]:
        raise ShapeError(
            f"targets: found ids from {int(targets.min())} to {int(targets.max())}, expected 0 to "
            f"{W_U.shape[1] - 1}: drop padding and ignored labels first"
        )
