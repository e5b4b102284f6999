"""States of base and policy at every token of both completions, and the end of the model checked.

What `dsteer_tl.attribution.margin_terms` splits is read here from the hooked models: the last
``resid_post``, h, and the models' own log-probabilities. The final norm is rebuilt from its
parameters with its scale free, and compared with what the model itself gave before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.attribution.margin_terms import ChangedRows, NormReadout
from dsteer_tl.distributions import as_double
from dsteer_tl.errors import HookError, ShapeError
from dsteer_tl.lens_model import LensModel, length_sorted_batches, pad
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences import EncodedPair, divergence_position
from dsteer_tl.sites import FINAL, resid_post

SIDES = ("chosen", "rejected")
#: Where a token stands: before the completions differ, the first that differs, after it.
PLACES = ("shared", "divergence", "later")

#: Largest relative error of the rebuilt norm and logits; half precision rounds at 2⁻⁸. Norms of
#: transformers compute in float32 whatever the weights are.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 3e-2
_HALF = (torch.float16, torch.bfloat16)
_CHECKED_ROWS = 8

# Logits that are turned to float64 at a time.
_BLOCK_LOGITS = 2**20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResponseStates:
    """Both models' states where they predict the tokens of completions, one row a token.

    Attributes:
        pair: Place of the pair in what was read.
        side: Place in `SIDES`.
        offset: Of the token in its completion; 0 is the first.
        place: Place in `PLACES`.
        tokens: The token that is predicted.
        states: States by model ("base", "policy") and site.
        log_probabilities: The model's own ln p of the token, by model, in nats.
        logits: The model's own logits of a few rows, by model.
        checked: Which rows these are.
    """

    pair: Int[np.ndarray, " row"]
    side: Int[np.ndarray, " row"]
    offset: Int[np.ndarray, " row"]
    place: Int[np.ndarray, " row"]
    tokens: Int[np.ndarray, " row"]
    states: dict[tuple[str, str], Float[Tensor, "row d_model"]]
    log_probabilities: dict[str, Float[np.ndarray, " row"]]
    logits: dict[str, Float[Tensor, "checked d_vocab"]]
    checked: Int[np.ndarray, " checked"]

    def shift(self, site: str) -> Float[np.ndarray, "row d_model"]:
        """δ = policy − base at a site, in float64."""
        base, policy = (self.states[model, site].double().cpu() for model in ("base", "policy"))
        shift: np.ndarray = (policy - base).numpy()
        return shift


@torch.inference_mode()
def read_responses(
    pair: ModelPair,
    encoded: Sequence[EncodedPair],
    sites: Sequence[str],
    *,
    sides: Sequence[str] = SIDES,
    token_budget: int,
    progress: bool = True,
) -> ResponseStates:
    """Run base and policy over prompt and completion, and keep every row that predicts a token.

    Rows are ordered by pair, side and offset, whatever the batches were.

    Args:
        pair: Base and policy.
        encoded: Pairs of completions in tokens.
        sites: What to keep.
        sides: Which completions.
        token_budget: Padded tokens a forward pass.
        progress: Show a progress bar.

    Raises:
        HookError: A site does not exist.
        ShapeError: No completion has a token, or a sequence is longer than the context.
    """
    found = [
        (index, item, SIDES.index(side), (*item.prompt_ids, *_completion(item, side)))
        for index, item in enumerate(encoded)
        for side in sides
    ]
    texts = [text for text in found if len(text[3]) > len(text[1].prompt_ids)]
    if not texts:
        raise ShapeError(
            f"{len(encoded)} pairs have no token in their completions, expected at least one: "
            "there is no change of a margin to split"
        )
    rows: list[tuple[int, int, int, int, int]] = []
    kept: dict[tuple[str, str], list[Tensor]] = {}
    own: dict[str, list[Tensor]] = {"base": [], "policy": []}
    logits: dict[str, Tensor] = {}
    batches = list(length_sorted_batches([len(text[3]) for text in texts], token_budget))
    for indices in tqdm(batches, desc="responses", unit="batch", disable=not progress):
        batch = pad([texts[index][3] for index in indices])
        at: list[tuple[int, int]] = []
        for line, index in enumerate(indices):
            number, item, side, ids = texts[index]
            start, common = len(item.prompt_ids), _common(item)
            diverges = divergence_position(item) is not None
            for position in range(start, len(ids)):
                offset = position - start
                at.append((line, position - 1))
                rows.append((number, side, offset, _place(offset, common, diverges), ids[position]))
        lines, positions = torch.tensor(at).unbind(dim=1)
        targets = torch.tensor([row[4] for row in rows[-len(at) :]])
        for name, model in (("base", pair.base), ("policy", pair.policy)):
            with model.reading(sites) as store:
                scores = model.forward(batch.ids, batch.mask)[lines, positions]
            for site in sites:
                kept.setdefault((name, site), []).append(
                    store[site][lines, positions].cpu().clone()
                )
            own[name].append(_log_probabilities(scores, targets.to(scores.device)))
            logits.setdefault(name, scores[:_CHECKED_ROWS].cpu().clone())
    table = np.array(rows)
    order = np.lexsort((table[:, 2], table[:, 1], table[:, 0]))
    rank = torch.from_numpy(order)
    return ResponseStates(
        pair=table[order, 0],
        side=table[order, 1],
        offset=table[order, 2],
        place=table[order, 3],
        tokens=table[order, 4],
        states={key: torch.cat(parts)[rank] for key, parts in kept.items()},
        log_probabilities={name: torch.cat(parts).numpy()[order] for name, parts in own.items()},
        logits=logits,
        checked=np.argsort(order)[:_CHECKED_ROWS],
    )


def _completion(item: EncodedPair, side: str) -> tuple[int, ...]:
    return item.chosen_ids if side == "chosen" else item.rejected_ids


def _common(item: EncodedPair) -> int:
    """Tokens that both completions begin with."""
    divergence = divergence_position(item)
    if divergence is None:
        return min(len(item.chosen_ids), len(item.rejected_ids))
    return divergence.position + 1 - len(item.prompt_ids)


def _place(offset: int, common: int, diverges: bool) -> int:
    if offset < common:
        return PLACES.index("shared")
    return PLACES.index("divergence" if diverges and offset == common else "later")


def _log_probabilities(
    logits: Float[Tensor, "row d_vocab"], targets: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    parts = []
    step = max(1, _BLOCK_LOGITS // logits.shape[1])
    for start in range(0, len(logits), step):
        block = as_double(logits[start : start + step])
        picked = block.gather(1, targets[start : start + step, None])[:, 0]
        parts.append((picked - block.logsumexp(dim=1)).cpu())
    return torch.cat(parts)


def norm_readout(model: LensModel, states: ResponseStates, name: str) -> NormReadout:
    """The end of a model with the scale of its final norm free, checked on the model's own states.

    Gain and bias are the model's `norm_parameters`. Which norm it is (with or without the mean
    taken away; gain γ, or 1 + γ as in Gemma) is what fits h best.

    Args:
        model: The model.
        states: Its states at the last ``resid_post`` and ``h``.
        name: Its name in them, "base" or "policy".

    Raises:
        HookError: No such norm gives the model's h, or its readout not the model's logits.
    """
    x, h = (
        as_double(states.states[name, site]).to(model.device)
        for site in (resid_post(model.n_layers - 1), FINAL)
    )
    parameters = {key: as_double(value) for key, value in model.norm_parameters.items()}
    ones = torch.ones(model.d_model, dtype=x.dtype, device=x.device)
    weight = parameters.get("weight")
    gains = (ones,) if weight is None else (weight.to(x), weight.to(x) + 1)
    bias = parameters["bias"].to(x) if "bias" in parameters else torch.zeros_like(ones)
    tolerance = _HALF_TOLERANCE if model.dtype in _HALF else _TOLERANCE
    forms = [
        NormReadout(gain=gain, bias=bias, centred=centred, readout=model.readout)
        for gain in gains
        for centred in (False, True)
    ]
    errors = [_relative(form.normed(x, form.scales(x, h)), h) for form in forms]
    best = int(np.argmin(errors))
    if not errors[best] <= tolerance:
        raise HookError(
            f"the final norm of {name} {model.name} is off by {errors[best]:.2g} of h when rebuilt "
            f"from {sorted(parameters) or 'no parameters'}, expected at most {tolerance:g}: it is "
            "neither an RMSNorm nor a LayerNorm whose weights this library sees (an adapter on the "
            "norm must be merged first), so its margin cannot be split"
        )
    rows = torch.from_numpy(states.checked)
    form = forms[best]
    own = as_double(states.logits[name]).to(model.device)
    M, c = form.columns(slice(0, model.d_vocab))
    rebuilt = x[rows] @ M / form.scales(x[rows], h[rows])[:, None] + c
    if form.readout.softcap is not None:
        rebuilt = form.readout.softcap * torch.tanh(rebuilt / form.readout.softcap)
    error = _relative(rebuilt, own)
    if not error <= tolerance:
        raise HookError(
            f"the logits of {name} {model.name} are off by {error:.2g} of their size when rebuilt "
            f"from the final norm and W_U, expected at most {tolerance:g}: something else "
            "transforms its logits (an adapter on W_U must be merged first), so its margin cannot "
            "be split"
        )
    return form


def _relative(found: Tensor, expected: Tensor) -> float:
    """Largest error over the rows, as a share of each row's length."""
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def changed_rows(
    states: ResponseStates,
    site: str,
    base: NormReadout,
    policy: NormReadout,
    directions: Float[np.ndarray, "half d_model"],
    half: Int[np.ndarray, " row"],
) -> ChangedRows:
    """The rows that `margin_terms` splits, with the scales that each model's norm had.

    Args:
        states: Both models' states at the last ``resid_post`` and ``h``.
        site: Name of the last ``resid_post``.
        base: End of the base.
        policy: End of the policy.
        directions: Unit vectors to split along.
        half: Which of them is each row's.
    """
    device = base.gain.device
    x, h = (
        {name: as_double(states.states[name, key]).to(device) for name in ("base", "policy")}
        for key in (site, FINAL)
    )
    return ChangedRows(
        base=x["base"],
        policy=x["policy"],
        base_scale=base.scales(x["base"], h["base"]),
        policy_scale=policy.scales(x["policy"], h["policy"]),
        tokens=torch.from_numpy(states.tokens).to(device),
        directions=torch.from_numpy(directions).to(device),
        half=torch.from_numpy(half).to(device),
    )
