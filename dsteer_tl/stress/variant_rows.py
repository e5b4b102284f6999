"""Shifts and divergences of one trained variant, at one site and position kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dsteer_tl.capture import ShiftSet
from dsteer_tl.controls import random_like
from dsteer_tl.cosines import mean_shift
from dsteer_tl.distributions import kl
from dsteer_tl.lens_model import LensModel
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences import PreferenceSet, encode_pair
from dsteer_tl.sites import FINAL
from dsteer_tl.steering.scored import TokenSequence, token_log_probabilities
from dsteer_tl.stress.shift_samples import PlaceRows


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """A condition with its models still loaded.

    Attributes:
        name, role: As in `ConditionRows`.
        pair: Base and the condition's model.
        shift_set: Their residuals.
    """

    name: str
    role: str
    pair: ModelPair
    shift_set: ShiftSet


def place_rows(
    captured: Captured,
    site: str,
    kind: str,
    seed: int,
    reference: Captured | None = None,
    random_seed: int | None = None,
) -> PlaceRows:
    """Shifts and divergences of one condition at one site and position kind.

    Vectors are estimated on one half of the prompts and judged on the other. At h the policy's
    states are read by the base's W_U, so that a change of the readout does not count as a shift;
    at the last ``resid_post`` the policy is read by its own norm and W_U.

    Args:
        captured: The condition.
        site: ``"h"`` or the last ``resid_post``.
        kind: Position kind.
        seed: Of the halves.
        reference: The condition whose KL this one's v*, scaled to the reference's length, is tried
            on; None for its own.
        random_seed: Put a random vector of the same norm in place of v*.
    """
    shift_set, pair = captured.shift_set, captured.pair
    base, policy = (_tensor(captured, name, site, kind) for name in ("base", "policy"))
    shifts = shift_set.shifts(site, kind)
    prompts = shift_set.prompts(kind)
    estimating, _ = shift_set.halves(kind, seed)
    estimate = np.isin(prompts, list(estimating))
    v_star = mean_shift(shifts[estimate])
    if random_seed is not None:
        v_star = random_like(v_star, random_seed)
        shifts = np.tile(random_like(mean_shift(shifts), random_seed), (len(shifts), 1))
    base_readout, policy_readout = (m.readout_at(site) for m in (pair.base, pair.policy))
    target_readout = base_readout if site == FINAL else policy_readout
    judged = ~estimate
    half = torch.from_numpy(judged)
    whole = kl(policy_readout, policy, base_readout, base)
    in_reference = (
        whole
        if target_readout is policy_readout
        else kl(target_readout, policy, base_readout, base)
    )
    steered = np.zeros(len(shifts))
    steered[judged] = kl(
        target_readout, policy[half], base_readout, base[half] + _like(v_star, base)
    )
    carried = np.zeros(len(shifts))
    target = reference or captured
    reference_shifts = target.shift_set.shifts(site, kind)
    scale = np.linalg.norm(mean_shift(reference_shifts[estimate]))
    norm = float(np.linalg.norm(v_star))
    vector = v_star * (scale / norm) if norm > 0 else v_star
    reference_policy = _tensor(target, "policy", site, kind)
    reference_readout = base_readout if site == FINAL else target.pair.policy.readout_at(site)
    carried[judged] = kl(
        reference_readout,
        reference_policy[half],
        base_readout,
        base[half] + _like(vector, base),
    )
    return PlaceRows(
        site=site,
        position_kind=kind,
        shifts=shifts,
        base_norms=np.linalg.norm(shift_set.residuals("base", site, kind), axis=1),
        prompts=prompts,
        kl=in_reference,
        kl_whole=whole,
        kl_readout=kl(policy_readout, policy, base_readout, policy),
        judged=judged,
        kl_steered=steered,
        kl_carried=carried,
        kl_reference=kl(reference_readout, reference_policy, base_readout, base),
    )


def _tensor(captured: Captured, model: str, site: str, kind: str) -> Float[Tensor, "row d_model"]:
    rows = torch.from_numpy(captured.shift_set.residuals(model, site, kind))
    return rows.to(captured.pair.base.device)


def _like(vector: Float[np.ndarray, " d_model"], rows: Tensor) -> Tensor:
    return torch.as_tensor(vector).to(rows)


def response_log_probabilities(
    model: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: PreferenceSet,
    *,
    token_budget: int,
) -> Float[np.ndarray, "side pair"]:
    """Sums of log p over the tokens of each chosen, then of each rejected response, in nats."""
    encoded = [encode_pair(tokenizer, pair) for pair in pairs]
    sequences = [TokenSequence(pair.prompt_ids, pair.chosen_ids) for pair in encoded]
    sequences += [TokenSequence(pair.prompt_ids, pair.rejected_ids) for pair in encoded]
    found = token_log_probabilities(model, sequences, token_budget=token_budget)
    return np.array([sum(tokens) for tokens in found]).reshape(2, len(encoded))
