"""Steering inside the network: the residual is kept once, the layers above run again.

The blocks below the lowest steered site see nothing of the coefficient, so their output is kept and
each coefficient costs only the blocks above it. The unembedding runs on the scored tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from dsteer_tl.errors import HookError
from dsteer_tl.lens_model import Edit, LensModel
from dsteer_tl.sites import FINAL
from dsteer_tl.steering.interventions import Intervention, add_at, steered_tokens
from dsteer_tl.steering.scored import Batch


class Replay:
    """One host and batch, ready to be steered at or above a site.

    Args:
        lens: The model that is steered.
        batch: Right-padded sequences.
        site: The lowest steered site, ``"resid_post.<layer>"``.
        residual: What `unsteered_logits` kept of the batch at the site; a pass of its own reads it
            where there is none.
    """

    def __init__(
        self,
        lens: LensModel,
        batch: Batch,
        site: str,
        residual: Float[Tensor, "batch position d_model"] | None = None,
    ) -> None:
        if site == FINAL:
            raise HookError("nothing follows 'h': use the algebra of the logits")
        self.lens, self.batch, self.site = lens, batch, site
        if residual is None:
            _, kept = unsteered_logits(lens, batch, [site])
            residual = kept[site]
        self.residual = residual

    def logits(self, intervention: Intervention, scale: float) -> Float[Tensor, "token d_vocab"]:
        """Logits at the scored tokens; bit for bit those of `unsteered_logits` at scale 0.

        Raises:
            HookError: The intervention steers below the kept residual.
        """
        lens, batch = self.lens, self.batch
        if not intervention.vectors or intervention.vectors[0].space != self.site:
            raise HookError(
                f"the residual was kept at {self.site!r}, {intervention.name!r} first acts at "
                f"{intervention.site!r}"
            )
        edits = [edit for edit in batch_edits(intervention, scale, batch) if edit.site != self.site]
        first = intervention.vectors[0]
        residual = add_at(
            self.residual,
            _offsets(first.values, scale, len(batch.ids)),
            _steered(intervention, batch),
        )
        with torch.inference_mode(), lens.resumed(self.site, residual), lens.hooks(edits):
            return lens.logits_at(batch.ids, batch.mask, batch.scored)


def unsteered_logits(
    lens: LensModel, batch: Batch, sites: Sequence[str] = ()
) -> tuple[Float[Tensor, "token d_vocab"], dict[str, Float[Tensor, "batch position d_model"]]]:
    """Logits at the scored tokens, and the residuals at sites, of one pass."""
    with torch.inference_mode(), lens.reading(sites) as kept:
        logits = lens.logits_at(batch.ids, batch.mask, batch.scored)
    return logits, kept


def logits_by_hooks(
    lens: LensModel, intervention: Intervention, scale: float, batch: Batch
) -> Float[Tensor, "token d_vocab"]:
    """One forward pass under hooks for one coefficient: the slow way that others must equal."""
    edits = batch_edits(intervention, scale, batch)
    with torch.inference_mode(), lens.hooks(edits):
        logits = lens.logits_at(batch.ids, batch.mask, batch.scored)
    if intervention.logit_bias is not None and scale != 0:
        moved = logits + torch.from_numpy(scale * intervention.logit_bias).to(logits)
        steered = batch.at_tokens(_steered(intervention, batch)).to(logits.device)
        logits = torch.where(steered[:, None], moved, logits)
    return logits


def batch_edits(intervention: Intervention, scale: float, batch: Batch) -> Sequence[Edit]:
    """The edits of one teacher-forced batch."""
    steered = _steered(intervention, batch)

    return [
        Edit(
            vector.space,
            partial(
                add_at, offsets=_offsets(vector.values, scale, len(batch.ids)), steered=steered
            ),
        )
        for vector in intervention.vectors
    ]


def _steered(intervention: Intervention, batch: Batch) -> Tensor:
    return steered_tokens(intervention.positions, batch.mask, batch.prompt_lengths)


def _offsets(values: object, scale: float, rows: int) -> Tensor:
    return (scale * torch.as_tensor(values))[None].expand(rows, -1)
