"""Gradients of the DPO loss with respect to hidden states of a real model, at any site."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsteer_tl.errors import DataError
from dsteer_tl.gradients import dpo_loss
from dsteer_tl.lens_model import Edit, LensModel, pad
from dsteer_tl.preferences import EncodedPair, divergence_position


@dataclass(frozen=True, slots=True, eq=False)
class SiteGradients:
    """∂L_DPO/∂x at one site, for the positions that predict response tokens.

    Attributes:
        site: Where x lives.
        shared: Gradients at the positions of the common context, both branches added up; the last
            row is the divergence position.
        chosen: Gradients at later positions of the chosen sequence.
        rejected: Gradients at later positions of the rejected sequence.
        loss: Value of the loss.
    """

    site: str
    shared: Float[np.ndarray, "position d_model"]
    chosen: Float[np.ndarray, "position d_model"]
    rejected: Float[np.ndarray, "position d_model"]
    loss: float

    @property
    def divergence(self) -> Float[np.ndarray, " d_model"]:
        """The gradient at the divergence position."""
        row: np.ndarray = self.shared[-1]
        return row


def site_gradients(
    model: LensModel, encoded: EncodedPair, site: str, *, beta: float
) -> SiteGradients:
    """Backpropagate the DPO loss of one pair to the residual stream at ``site``.

    The reference is the model itself, as at the first step of training, so that the margin is zero
    and the weight of the gradient β/2. At ``h`` and the divergence position the result is
    −(β/2)(e_w − e_l) for every prompt, an identity (D-STEER sec. 2.2); before the final norm its
    Jacobian enters, and at later positions the gradient is e_y − E_p[e].

    Raises:
        DataError: The responses do not diverge.
        HookError: The site does not exist.
    """
    divergence = divergence_position(encoded)
    if divergence is None:
        raise DataError(
            "chosen is a prefix of rejected or the other way round: they do not diverge"
        )
    start = len(encoded.prompt_ids) - 1
    branches = [
        _branch(model, encoded.prompt_ids, response, site)
        for response in (encoded.chosen_ids, encoded.rejected_ids)
    ]
    (leaf_chosen, chosen_logp), (leaf_rejected, rejected_logp) = branches
    loss = dpo_loss(chosen_logp, rejected_logp, chosen_logp.detach(), rejected_logp.detach(), beta)
    gradient_chosen, gradient_rejected = (
        gradient[0].double().cpu().numpy()
        for gradient in torch.autograd.grad(loss, [leaf_chosen, leaf_rejected])
    )
    after = divergence.position + 1
    return SiteGradients(
        site,
        gradient_chosen[start:after] + gradient_rejected[start:after],
        gradient_chosen[after:-1],
        gradient_rejected[after:-1],
        float(loss.detach()),
    )


def _branch(
    model: LensModel, prompt: tuple[int, ...], response: tuple[int, ...], site: str
) -> tuple[Tensor, Tensor]:
    """A leaf tensor at the site and log π(response | prompt) as a function of it."""
    leaves: list[Tensor] = []

    def make_leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().requires_grad_(True))
        return leaves[0]

    batch = pad([(*prompt, *response)])
    with torch.enable_grad(), model.hooks([Edit(site, make_leaf)]):
        logits = model.forward(batch.ids, batch.mask)[0]
        start = len(prompt) - 1
        targets = torch.as_tensor(response, device=logits.device)
        predicted = logits[start : start + len(response)].float().log_softmax(-1)
        return leaves[0], predicted.gather(-1, targets[:, None]).sum()
