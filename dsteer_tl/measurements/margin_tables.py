"""Tables margin_ledger, margin_terms and token_shifts: the change of the margin, token by token.

Δmargin = [ln π(y_w|x) − ln π(y_l|x)] − [ln ref(y_w|x) − ln ref(y_l|x)], the sum over the tokens of
the chosen completion of Δ ln p, less that over the rejected one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from dsteer_tl.attribution.margin_ledger import (
    PLACES,
    SIDES,
    ResponseStates,
    changed_rows,
    norm_readout,
    read_responses,
)
from dsteer_tl.attribution.margin_terms import TERMS, MarginTerms, margin_terms
from dsteer_tl.attribution.token_shifts import cross_fitted, prompt_numbers, shift_parts
from dsteer_tl.capture import ShiftSet
from dsteer_tl.controls import bootstrap_mean, bootstrap_ratio, random_direction
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences import EncodedPair
from dsteer_tl.sites import FINAL, resid_post

#: Scopes of `margin_terms`: the whole response, the first token that differs, what follows it.
SCOPES = ("response", "divergence", "later")
#: Random directions of the nulls.
RANDOM_DRAWS = 4
SHIFT_DRAWS = 32
#: Logits of one model at most, over all rows: more pairs than `gradient_pairs` are taken only while
#: they stay below.
_MOST_LOGITS = 2**28


def margin_pairs(
    encoded: Sequence[EncodedPair], d_vocab: int, configuration: MeasurementConfiguration
) -> int:
    """How many pairs the ledger takes, from the first on.

    All of them while their logits, tokens × vocabulary, are at most 2²⁸; never fewer than
    `gradient_pairs`, as far as there are.
    """
    tokens = np.cumsum([len(item.chosen_ids) + len(item.rejected_ids) for item in encoded])
    affordable = int(np.sum(tokens * d_vocab <= _MOST_LOGITS))
    return min(len(encoded), max(configuration.gradient_pairs, affordable))


def margin_tables(
    pair: ModelPair,
    shift_set: ShiftSet,
    encoded: Sequence[EncodedPair],
    configuration: MeasurementConfiguration,
    *,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """The tables ``margin_ledger`` and ``margin_terms``.

    ``margin_ledger`` has one row a token of either completion: the exact terms of Δ ln p (movement
    of the last ``resid_post`` along v̂*, and off it; change of the norm's scale; change of the
    readout), their sum, and its error against the models' own log-probabilities. ``margin_terms``
    has their means over pairs as parts of Δmargin, with intervals over prompts. Its null, for the
    first two, is a random direction in place of v̂*; ``null_equal`` a movement of the same length in
    a random direction. Both are means over `RANDOM_DRAWS` directions, with the least and the most.

    v̂* is estimated on the other half of the prompts.

    Raises:
        HookError: A model's end cannot be rebuilt from its final norm and readout.
        ShapeError: There are no completions, or fewer than two prompts.
    """
    encoded = encoded[: margin_pairs(encoded, pair.base.d_vocab, configuration)]
    last = resid_post(pair.base.n_layers - 1)
    states = read_responses(
        pair,
        encoded,
        (last, FINAL),
        token_budget=configuration.token_budget,
        progress=progress,
    )
    prompts = prompt_numbers(encoded)
    fitted = cross_fitted(shift_set, last, configuration.seed)
    base, policy = (
        norm_readout(model, states, name)
        for name, model in (("base", pair.base), ("policy", pair.policy))
    )
    half = fitted.half(prompts[states.pair])
    found = margin_terms(
        changed_rows(states, last, base, policy, fitted.directions, half),
        base,
        policy,
        _random_directions(pair.base.d_model, RANDOM_DRAWS, configuration.seed),
    )
    ledger = _token_columns(pair, states, prompts)
    for name, values in zip(TERMS, found.terms, strict=True):
        ledger[name] = values
    ledger["total"] = found.terms.sum(axis=0)
    change = states.log_probabilities["policy"] - states.log_probabilities["base"]
    ledger["error"] = ledger["total"] - change
    return {
        "margin_ledger": ledger,
        "margin_terms": _term_table(states, prompts, found, configuration),
    }


def _random_directions(d_model: int, draws: int, seed: int) -> Float[np.ndarray, "draw d_model"]:
    seeds = np.random.SeedSequence(seed).generate_state(draws, dtype=np.uint64)
    return np.stack([random_direction(d_model, int(each)) for each in seeds])


def _token_columns(
    pair: ModelPair, states: ResponseStates, prompts: Int[np.ndarray, " pair"]
) -> pd.DataFrame:
    texts = {int(token): pair.tokenizer.decode([int(token)]) for token in np.unique(states.tokens)}
    return pd.DataFrame(
        {
            "pair": states.pair,
            "prompt": prompts[states.pair],
            "side": np.array(SIDES)[states.side],
            "offset": states.offset,
            "place": np.array(PLACES)[states.place],
            "token_id": states.tokens,
            "token": [texts[int(token)] for token in states.tokens],
        }
    )


def _term_table(
    states: ResponseStates,
    prompts: Int[np.ndarray, " pair"],
    found: MarginTerms,
    configuration: MeasurementConfiguration,
) -> pd.DataFrame:
    pairs = len(prompts)
    sign = np.where(states.side == SIDES.index("chosen"), 1.0, -1.0)

    def per_pair(values: np.ndarray, scope: str) -> Float[np.ndarray, " pair"]:
        inside = 1.0 if scope == "response" else states.place == PLACES.index(scope)
        return np.bincount(states.pair, weights=sign * values * inside, minlength=pairs)

    draws, seed = configuration.draws, configuration.seed
    rows = []
    for scope in SCOPES:
        total = per_pair(found.terms.sum(axis=0), scope)
        for place, term in enumerate((*TERMS, "total")):
            values = total if term == "total" else per_pair(found.terms[place], scope)
            mean = bootstrap_mean(values, prompts, draws=draws, seed=seed)
            share = bootstrap_ratio(values, total, prompts, draws=draws, seed=seed)
            row = {
                "scope": scope,
                "term": term,
                "value": mean.value,
                "low": mean.low,
                "high": mean.high,
                "share": share.value,
                "share_low": share.low,
                "share_high": share.high,
            }
            for name, null in (("null", found.random), ("null_equal", found.equal)):
                of_term = null[:, place] if place < null.shape[1] else null[:0, 0]
                means = np.array([per_pair(draw, scope).mean() for draw in of_term])
                row[name] = float(means.mean()) if len(means) else np.nan
                row[f"{name}_low"] = float(means.min()) if len(means) else np.nan
                row[f"{name}_high"] = float(means.max()) if len(means) else np.nan
            rows.append(row | {"n": pairs})
    return pd.DataFrame(rows)


def token_shift_table(
    pair: ModelPair,
    shift_set: ShiftSet,
    encoded: Sequence[EncodedPair],
    configuration: MeasurementConfiguration,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """The table ``token_shifts``: where in the chosen responses the shift at h is along v*.

    A row is the state that predicts the token: ``along`` = ⟨δ, v̂*⟩ with v̂* of the other half of the
    prompts, ``off`` the length of the rest, ``cos`` of both, ``cos_random`` the mean |cos| with
    `SHIFT_DRAWS` random directions, and ``log_probability_change`` of the token in nats.

    Raises:
        ShapeError: There are no completions, or fewer than two prompts.
    """
    states = read_responses(
        pair,
        encoded,
        (FINAL,),
        sides=("chosen",),
        token_budget=configuration.token_budget,
        progress=progress,
    )
    prompts = prompt_numbers(encoded)
    fitted = cross_fitted(shift_set, FINAL, configuration.seed)
    parts = shift_parts(
        states.shift(FINAL),
        fitted.directions,
        fitted.half(prompts[states.pair]),
        _random_directions(pair.base.d_model, SHIFT_DRAWS, configuration.seed),
    )
    table = _token_columns(pair, states, prompts).drop(columns=["side", "place"])
    decode = pair.tokenizer.decode
    texts = [decode(list(item.prompt_ids), skip_special_tokens=True) for item in encoded]
    table.insert(2, "prompt_text", [texts[index] for index in states.pair])
    table["along"], table["off"], table["cos"] = parts.along, parts.off, parts.cos
    table["cos_random"] = parts.random
    own = states.log_probabilities
    table["log_probability_change"] = own["policy"] - own["base"]
    return table
