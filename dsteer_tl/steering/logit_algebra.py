"""Steering at h, or by a constant logit bias, for every coefficient from one forward pass.

Adding λv to h adds λb to the logits, b = W_Uᵀv, so that with z the unsteered logits

    log Σ_y exp(z_y + λ b_y) = m + c_λ + log Σ_y exp(z_y − m) · exp(λ b_y − c_λ),

and the sum over the vocabulary is, for all tokens and coefficients at once, one matrix product.
KL(p‖steered) = Σ p log p − Σ p z − λ Σ p b + log Σ exp(z + λb) follows without another pass over
the vocabulary for each coefficient. The exp(z − m) are those of the unsteered model's own softmax,
the exp(λb − c) are the same for all tokens and made once for all batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsteer_tl.lens_model import LensModel
from dsteer_tl.steering.interventions import Intervention
from dsteer_tl.steering.reference import Reference, Role, compare, row_blocks
from dsteer_tl.steering.scored import Batch

# Beyond this spread of λb in nats, exp(z − m)·exp(λb − c) could underflow for every token.
_SAFE_SPREAD = 600.0
# Columns of W_U that are float64 at a time.
_COLUMNS = 4096
# Most exponentials that a line keeps from batch to batch: 32 MiB.
_KEPT = 2**22
# Picking candidates pays while they are at most this part of the vocabulary, a quarter.
_CANDIDATES_PAY = 4


def logit_direction(lens: LensModel, intervention: Intervention) -> Float[Tensor, " d_vocab"]:
    """b: what one unit of the intervention adds to the logits before any soft-capping."""
    if intervention.logit_bias is not None:
        return torch.from_numpy(intervention.logit_bias).to(lens.device)
    (vector,) = intervention.vectors
    W_U = lens.readout.W_U
    values = torch.from_numpy(vector.values).to(W_U.device)
    # In parts: W_U in float64 may be larger than the model.
    parts = [values @ part.to(torch.float64) for part in torch.split(W_U, _COLUMNS, 1)]
    return torch.cat(parts).to(lens.device) * lens.readout.scale


def steered_logits(
    lens: LensModel,
    logits: Float[Tensor, "token d_vocab"],
    direction: Float[Tensor, " d_vocab"],
    coefficient: float,
    *,
    is_bias: bool,
) -> Float[Tensor, "token d_vocab"]:
    """The logits after steering; bit for bit the given ones at λ = 0."""
    if coefficient == 0:
        return logits
    added = (coefficient * direction).to(logits.dtype)
    softcap = lens.readout.softcap
    if softcap is None or is_bias:
        return logits + added
    # The direction is a change before the cap.
    before = lens.readout.invert_transform(logits) * lens.readout.scale
    return softcap * torch.tanh((before + added) / softcap)


class Line:
    """z + λb for the scales of one intervention: what is the same for every token and batch.

    Args:
        lens: The model that is steered.
        intervention: A vector at h, or a logit bias.
        scales: Multiples of it, sign included.

    Attributes:
        direction: b.
        grid: The scales.
        closed: Whether the closed form holds: no soft-capping between z and the logits, and no
            scale at which the shared exponentials could underflow.
        first_alone: Whether only what is predicted at a prompt token is steered.
    """

    def __init__(
        self, lens: LensModel, intervention: Intervention, scales: Sequence[float]
    ) -> None:
        self.lens = lens
        self.is_bias = intervention.logit_bias is not None
        self.direction = logit_direction(lens, intervention)
        self.first_alone = intervention.positions == "prompt"
        # The rows that are not steered are those of λ = 0.
        own = [*scales, 0.0] if self.first_alone else list(scales)
        self.grid = self.direction.new_tensor(own)
        capped = lens.readout.softcap is not None and not self.is_bias
        spread = float(self.direction.max() - self.direction.min()) * max(map(abs, own), default=0)
        self.closed = bool(own) and not capped and spread <= _SAFE_SPREAD
        self._kept: tuple[Tensor, Tensor] | None = None

    def exponentials(
        self,
    ) -> tuple[Float[Tensor, "coefficient d_vocab"], Float[Tensor, " coefficient"]]:
        """exp(λb − c) and c, the largest λb of each coefficient."""
        if self._kept is not None:
            return self._kept
        exponents = self.grid[:, None] * self.direction[None]
        highest = exponents.max(dim=-1).values
        found = exponents.sub_(highest[:, None]).exp_(), highest
        # Where they are many, a batch makes them again: there are as many lines as curves.
        self._kept = found if exponents.numel() <= _KEPT else None
        return found


def score_grid(
    line: Line, role: Role, batch: Batch, reference: Reference
) -> dict[str, Float[Tensor, "coefficient token"]]:
    """`scored.STATISTICS` for every scale of one intervention.

    Args:
        line: The intervention and its scales.
        role: The model that is steered, which must be in `reference`.
        batch: Sequences and positions.
        reference: Base and policy at those positions.
    """
    if line.closed:
        found = _closed_form(line, role, batch, reference)
    else:
        logits = reference.models[role].logits
        single = [
            compare(
                steered_logits(line.lens, logits, line.direction, scale, is_bias=line.is_bias),
                batch,
                reference,
            )
            for scale in line.grid.tolist()
        ]
        found = {name: torch.stack([own[name] for own in single]) for name in single[0]}
    if not line.first_alone:
        return found
    # At h nothing but the scored tokens that are predicted at a prompt token is steered.
    first = batch.positions < torch.tensor(batch.prompt_lengths)[batch.rows]
    return {
        name: torch.where(first.to(values.device), values[:-1], values[-1])
        for name, values in found.items()
    }


def _closed_form(line: Line, role: Role, batch: Batch, reference: Reference) -> dict[str, Tensor]:
    host, scales = reference.models[role], line.grid[:, None]
    weights, highest = line.exponentials()
    partition = (weights @ host.weights.T).log() + host.highest + highest[:, None]
    targets = batch.targets.to(host.logits.device)
    token_logit = host.logits.gather(1, targets[:, None])[:, 0].to(scales.dtype)
    found = {"log_probability": token_logit + scales * line.direction[targets] - partition}
    if not reference.asked:
        return found
    top = _likeliest(host.logits, line)
    for name in reference.asked:
        model = reference.models[name]
        mean_move = (model.weights @ line.direction) / model.total
        cross = reference.mean_logit(role, name) + scales * mean_move - partition
        own = model.mean_logit - model.normaliser
        found[f"kl_{name}"] = (own - cross).clamp_min(0)
        found[f"top1_{name}"] = (top == model.top).to(scales.dtype)
    return found


def _likeliest(logits: Tensor, line: Line) -> Int[Tensor, "coefficient token"]:
    """Argmax of z + λb for each λ, among the tokens that can be it anywhere on the grid.

    A token whose largest value over the grid is below another's smallest never is the likeliest.
    """
    grid, direction = line.grid.to(logits.dtype), line.direction.to(logits.dtype)
    ends = torch.stack([line.grid.min() * line.direction, line.grid.max() * line.direction])
    low, high = (ends.amin(dim=0).to(logits.dtype), ends.amax(dim=0).to(logits.dtype))
    found = []
    for rows in row_blocks(logits):
        own = logits[rows]
        possible = own + high >= (own + low).amax(dim=-1, keepdim=True)
        counts = possible.sum(dim=-1)
        most = int(counts.max())
        if _CANDIDATES_PAY * most > logits.shape[-1]:
            whole = [(own + scale * direction).argmax(dim=-1) for scale in grid]
            found.append(torch.stack(whole))
            continue
        row, token = possible.nonzero(as_tuple=True)
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        candidates = token.new_zeros(len(own), most).index_put((row, place), token)
        values = own.new_full((len(own), most), -torch.inf)
        values = values.index_put((row, place), own[row, token])
        moved = values + grid[:, None, None] * direction[candidates]
        best = moved.argmax(dim=-1)
        found.append(candidates.expand(len(grid), -1, -1).gather(2, best[..., None])[..., 0])
    return torch.cat(found, dim=1)
