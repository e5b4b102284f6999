"""How far apart the states of chosen and rejected responses lie: table separation (claim 19)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.controls import Interval
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import Gather, LensModel, length_sorted_batches, pad
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences import EncodedPair
from dsteer_tl.separation import (
    PairSums,
    calinski_harabasz,
    chi_difference,
    chi_interval,
    chi_ratio,
    exceedance,
    exchanged_chi,
    identity_error,
    pair_sums,
    without_length,
    xie_beni,
)
from dsteer_tl.sites import FINAL, resid_post

logger = logging.getLogger(__name__)

#: Share of the null's draws below `null_high`.
_EDGE = 0.95


def separation_table(
    pair: ModelPair,
    encoded: Sequence[EncodedPair],
    configuration: MeasurementConfiguration,
    *,
    controls: Mapping[str, LensModel] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The table ``separation``: CHI and XB of chosen against rejected responses, by model and site.

    The state of a response is the mean of the residuals at its tokens, at ``h``, the last
    ``resid_post`` and the middle one. Rows of a model have the index ``chi``, ``xb`` or
    ``chi_without_length``; rows of a change, ``change`` for the policy and ``<control>_change`` for
    each control, have ``chi_ratio`` and ``chi_difference`` over the base, and the same without
    length. ``low`` and ``high`` bound a 95 % interval over prompts, in which both models are
    resampled together; ``null_mean``, ``null_high`` (95 % quantile; for ``xb``, where small is
    better, 5 %) and the one-sided ``p`` come from exchanging chosen and rejected within prompts,
    alike in all models. What is known of ``chi`` is known of ``xb`` by their identity, whose
    relative error is ``identity_error``. ``n`` counts responses.

    Args:
        pair: Base and policy.
        encoded: Tokenised preference pairs.
        configuration: Batch size, draws and seed.
        controls: Further models by name, as the base with random weight changes.
        progress: Show a progress bar.

    Raises:
        ShapeError: Fewer than two prompts have a pair with two responses that fit the context.
    """
    models = {"base": pair.base, "policy": pair.policy, **(controls or {})}
    kept = _usable(encoded, min(model.n_ctx for model in models.values()))
    layers = pair.base.n_layers
    sites = list(dict.fromkeys([resid_post((layers - 1) // 2), resid_post(layers - 1), FINAL]))
    sequences = [
        _Response(item.prompt_ids, response)
        for responses in ("chosen_ids", "rejected_ids")
        for item in kept
        for response in (getattr(item, responses),)
    ]
    lengths = np.array([len(item.response) for item in sequences], dtype=np.float64)
    numbers: dict[tuple[int, ...], int] = {}
    prompts = np.array([numbers.setdefault(item.prompt_ids, len(numbers)) for item in kept])
    rows: list[dict[str, object]] = []
    pooled = {
        name: pooled_responses(model, sequences, sites, configuration.token_budget, name, progress)
        for name, model in models.items()
    }
    for site in sites:
        states = {name: found[site] for name, found in pooled.items()}
        rows += separation_rows(site, states, lengths, prompts, configuration)
    return pd.DataFrame(rows)


@dataclass(frozen=True, slots=True)
class _Response:
    """One sequence: a prompt and one of its responses, in tokens."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


def _usable(encoded: Sequence[EncodedPair], n_ctx: int) -> list[EncodedPair]:
    whole = [item for item in encoded if item.chosen_ids and item.rejected_ids]
    kept = [
        item
        for item in whole
        if len(item.prompt_ids) + max(len(item.chosen_ids), len(item.rejected_ids)) <= n_ctx
    ]
    for dropped, why in (
        (len(encoded) - len(whole), "have an empty response"),
        (len(whole) - len(kept), f"are longer than the context, {n_ctx} tokens"),
    ):
        if dropped:
            logger.info("separation: %d pairs %s and were left out", dropped, why)
    if len({item.prompt_ids for item in kept}) < 2:
        raise ShapeError(
            f"separation: {len(kept)} of {len(encoded)} pairs have two responses that fit the "
            f"context ({n_ctx} tokens), expected pairs of at least two prompts"
        )
    return kept


@torch.no_grad()
def pooled_responses(
    model: LensModel,
    sequences: Sequence[_Response],
    sites: Sequence[str],
    token_budget: int,
    name: str,
    progress: bool,
) -> dict[str, Float[np.ndarray, "response d_model"]]:
    """Mean residual over the tokens of each response, at each site; one pass a sequence."""
    pooled = {
        site: torch.zeros(len(sequences), model.d_model, dtype=torch.float64) for site in sites
    }
    ids = [item.prompt + item.response for item in sequences]
    with tqdm(
        total=len(ids), desc=f"separation, {name}", unit="response", disable=not progress
    ) as bar:
        for batch in length_sorted_batches([len(row) for row in ids], token_budget):
            padded = pad([ids[index] for index in batch])
            places = [(row, len(sequences[index].prompt)) for row, index in enumerate(batch)]
            counts = torch.tensor([len(sequences[index].response) for index in batch])
            rows = torch.repeat_interleave(torch.arange(len(batch)), counts)
            positions = torch.cat(
                [
                    torch.arange(start, start + int(counts[row]), dtype=torch.long)
                    for row, start in places
                ]
            )
            captured = model.capture(padded.ids, padded.mask, sites, Gather(rows, positions))
            for site, states in captured.items():
                pooled[site][torch.tensor(batch)] = _row_means(states, rows, counts)
            bar.update(len(batch))
    return {site: states.numpy() for site, states in pooled.items()}


def _row_means(states: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
    total = torch.zeros(len(counts), states.shape[1], dtype=torch.float64)
    return total.index_add_(0, rows, states.double()) / counts[:, None]


Classes = tuple[np.ndarray, np.ndarray]


def _classes(states: np.ndarray, lengths: np.ndarray) -> dict[str, Classes]:
    """Chosen and rejected states, as they are and without the effect of length."""
    half = len(states) // 2
    chosen, rejected = states[:half], states[half:]
    return {
        "chi": (chosen, rejected),
        "chi_without_length": without_length(chosen, rejected, lengths[:half], lengths[half:]),
    }


def separation_rows(
    site: str,
    states: Mapping[str, Float[np.ndarray, "response d_model"]],
    lengths: Float[np.ndarray, " response"],
    prompts: Int[np.ndarray, " pair"],
    configuration: MeasurementConfiguration,
) -> list[dict[str, object]]:
    """Rows of the table at one site.

    Args:
        site: Where the states are from.
        states: By model, ``base`` and ``policy`` among them: all chosen responses, then all
            rejected ones in the same order.
        lengths: Tokens of each response.
        prompts: The prompt of each pair.
        configuration: Draws and seed.

    Raises:
        ShapeError: Shapes do not match, or fewer than two prompts.
    """
    found = {name: _classes(each, lengths) for name, each in states.items()}
    draws, seed = configuration.draws, configuration.seed
    n = 2 * len(prompts)
    rows: list[dict[str, object]] = []
    for index in ("chi", "chi_without_length"):
        sums = {name: pair_sums(*classes[index], prompts) for name, classes in found.items()}
        nulls = {name: exchanged_chi(each, draws, seed) for name, each in sums.items()}
        for name, classes in found.items():
            numbers = _numbers(chi_interval(sums[name], draws, seed), nulls[name], n)
            row = {"model": name, "site": site, "index": index}
            if index == "chi":
                xb = xie_beni(*classes[index])
                numbers["identity_error"] = identity_error(
                    calinski_harabasz(*classes[index]), xb, n
                )
                rows += [{**row, **numbers}, {**row, "index": "xb", **_as_xb(numbers, xb, n)}]
            else:
                rows.append({**row, **numbers})
        for name in found:
            if name != "base":
                rows += _changes(site, index, name, sums, nulls, n, configuration)
    return rows


def _changes(
    site: str,
    index: str,
    name: str,
    sums: Mapping[str, PairSums],
    nulls: Mapping[str, np.ndarray],
    n: int,
    configuration: MeasurementConfiguration,
) -> list[dict[str, object]]:
    """Ratio and difference of a model's CHI to the base's."""
    draws, seed = configuration.draws, configuration.seed
    model = "change" if name == "policy" else f"{name}_change"
    ratio = chi_ratio(sums["base"], sums[name], draws, seed)
    difference = chi_difference(sums["base"], sums[name], draws, seed)
    found = {
        "ratio": (ratio, _divided(nulls[name], nulls["base"])),
        "difference": (difference, nulls[name] - nulls["base"]),
    }
    return [
        {
            "model": model,
            "site": site,
            "index": index.replace("chi", f"chi_{what}", 1),
            **_numbers(interval, null, n),
        }
        for what, (interval, null) in found.items()
    ]


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
    return ratio


def _numbers(interval: Interval, null: np.ndarray, n: int) -> dict[str, float]:
    known = null[np.isfinite(null)]  # a ratio to a base that exchanges part by exactly nothing
    return {
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "null_mean": float(known.mean()) if known.size else float("nan"),
        "null_high": float(np.quantile(known, _EDGE)) if known.size else float("nan"),
        "p": exceedance(interval.value, null),
        "n": n,
        "identity_error": float("nan"),
    }


def _as_xb(chi: Mapping[str, float], xb: float, n: int) -> dict[str, float]:
    """The numbers of XB that follow from those of CHI."""

    def through(value: float) -> float:
        return (n - 2) / (4 * value) if value != 0 else float("inf")

    return {
        **chi,
        "value": xb,
        "low": through(chi["high"]),
        "high": through(chi["low"]),
        "null_mean": through(chi["null_mean"]),
        "null_high": through(chi["null_high"]),
    }
