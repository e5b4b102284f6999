"""Where in depth the effect lies: residuals of the policy patched into the base, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.lens_model import Edit, LensModel, PaddedBatch, length_sorted_batches, pad
from dsteer_tl.lens_model.base import EditFunction
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from dsteer_tl.sites import FINAL


@dataclass(frozen=True, slots=True, eq=False)
class PatchingResult:
    """KL to the policy at every probed row, before and after patching one site.

    Attributes:
        site: Where the policy's (or a random) residual replaced the base's, at all positions.
        source: ``"policy"``, or ``"random"``: base plus a random shift of the policy's norm.
        kinds: Position kind of each row.
        prompts: Prompt of each row.
        kl: KL(policy‖patched) of each row, in nats.
        kl_base: KL(policy‖base) of each row.
    """

    site: str
    source: str
    kinds: tuple[str, ...]
    prompts: Int[np.ndarray, " row"]
    kl: Float[np.ndarray, " row"]
    kl_base: Float[np.ndarray, " row"]


@torch.inference_mode()
def patch_sites(
    pair: ModelPair,
    probes: Sequence[Probe],
    sites: Sequence[str],
    *,
    token_budget: int,
    seed: int,
    progress: bool = True,
) -> list[PatchingResult]:
    """Replace the base's residual stream by the policy's at one site and run on (claim 10).

    Everything above the site is the base's. If the effect of training sat in the last layers, then
    patching an early site would recover little and the recovered share would jump late; the
    control adds a random shift of the same norm at every position.

    Raises:
        HookError: A site does not exist.
    """
    collected: dict[tuple[str, str], list[tuple[str, int, float, float]]] = {}
    batches = list(length_sorted_batches([len(probe.ids) for probe in probes], token_budget))
    generator = torch.Generator().manual_seed(seed)
    for indices in tqdm(batches, desc="patching", unit="batch", disable=not progress):
        chosen = [probes[index] for index in indices]
        batch = pad([probe.ids for probe in chosen])
        rows = [
            (row, position, kind, probe.prompt)
            for row, probe in enumerate(chosen)
            for kind, positions in probe.positions.items()
            for position in positions
        ]
        at = (torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows]))
        target, policy_states = _logits_and_states(pair.policy, batch, sites, at)
        plain, base_states = _logits_and_states(pair.base, batch, sites, at)
        kl_base = _kl(target, plain)
        for site in sites:
            shift = policy_states[site] - base_states[site]
            noise = torch.randn(shift.shape, generator=generator).to(shift.device, shift.dtype)
            noise = noise * (shift.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))
            for source, states in (
                ("policy", policy_states[site]),
                ("random", base_states[site] + noise),
            ):
                with pair.base.hooks([Edit(site, _replacement(states))]):
                    patched = pair.base.forward(batch.ids, batch.mask)[at].log_softmax(-1)
                kl = _kl(target, patched)
                collected.setdefault((site, source), []).extend(
                    (kind, prompt, float(after), float(before))
                    for (_, _, kind, prompt), after, before in zip(rows, kl, kl_base, strict=True)
                )
    return [
        PatchingResult(
            site,
            source,
            tuple(row[0] for row in found),
            np.array([row[1] for row in found]),
            np.array([row[2] for row in found]),
            np.array([row[3] for row in found]),
        )
        for (site, source), found in collected.items()
    ]


def _replacement(states: Tensor) -> EditFunction:
    return lambda _: states


def _logits_and_states(
    model: LensModel, batch: PaddedBatch, sites: Sequence[str], at: tuple[Tensor, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    with model.reading([site for site in sites if site != FINAL]) as store:
        logits = model.forward(batch.ids, batch.mask)[at].log_softmax(-1)
    return logits, {site: tensor.clone() for site, tensor in store.items()}


def _kl(log_p: Tensor, log_q: Tensor) -> Float[np.ndarray, " row"]:
    p, q = log_p.double(), log_q.to(log_p.device).double()
    result: np.ndarray = (p.exp() * (p - q)).sum(-1).cpu().numpy()
    return result
