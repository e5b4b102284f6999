"""How the claims on what falls in the forward pass are measured: rows 25 and 29.

Activations (Lee et al. 2024, Fig. 2), and what the logit lens reads of tokens (Fig. 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dsteer_tl.claims.selection import MissingRowsError, at, ends, joined, value_at
from dsteer_tl.claims.sweep_selection import SEED
from dsteer_tl.claims.toxicity_selection import (
    RESID_POST,
    check_columns,
    check_groups,
    last_layer,
    optional,
    told,
)
from dsteer_tl.claims.verdicts import Measurement, Tables
from dsteer_tl.controls import Interval, bootstrap_ratio

#: Row 29 says "the last layers": ours is the last quarter.
_LAST = 4
_LOG_RATIO = ("log_ratio", "low", "high")
_DRAWS = 1000


def falling_activations(tables: Tables) -> Measurement:
    """Row 25: activations of the value vectors of the attribute drop, both models on one text.

    The claim is on a set of neurons, so that neurons are drawn anew, not prompts: over prompts any
    set of neurons that happens to fall falls for certain. Each neuron has a partner of its layer
    and activity, and both groups are measured in the unit of the attribute's, whose sizes do not
    cancel as activations of both signs do.

    ==========================  ==============  =================  ==========
    attribute's neurons         less partners   partners           verdict
    ==========================  ==============  =================  ==========
    interval below 0            below 0         reach 0            REPLICATED
    interval below 0            any             interval below 0   TRIVIAL
    interval below 0            reaches 0       higher, reach 0    PARTIAL
    interval below 0            reaches 0       lower, reach 0     FAILED
    interval reaches 0          any             any                FAILED
    ==========================  ==============  =================  ==========

    Raises:
        MissingRowsError: They or matched neurons were not measured off policy, or are not partners
            row by row.
    """
    found = _activation_changes(tables, "off_policy")
    attribute, matched, less = found.attribute, found.matched, found.difference
    falls, matched_falls = attribute.high < 0, matched.high < 0
    return Measurement(
        measured=attribute.value,
        ci=ends(attribute),
        null=matched.value,
        null_name="neurons of equal activation",
        target_met=falls and (less.high < 0 or matched_falls),
        null_met=matched_falls,
        right_sign=falls and attribute.value < matched.value,
        unit="change of the oriented activation over the mean size of the attribute's in the base, "
        "one text for both",
        reason=joined(
            f"interval over neurons; less their partners {told(less, 2)}, partners alone "
            f"{told(matched, 2)}",
            f"{found.falling[0]:.0%} of {found.neurons} neurons fall, of matched ones "
            f"{found.falling[1]:.0%}",
            _over_prompts(tables, found.size),
            _on_policy(tables),
        ),
        position_kind="generated",
        n=found.neurons,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ActivationChanges:
    """Changes over ``size``, the mean of the attribute's absolute activations in the base."""

    attribute: Interval
    matched: Interval
    difference: Interval
    falling: tuple[float, float]
    size: float
    neurons: int


def _activation_changes(tables: Tables, texts: str) -> _ActivationChanges:
    table = at(tables["toxicity_activations"], texts=texts)
    own, matched = (at(table, group=group) for group in ("attribute", "matched"))
    if len(own) < 2:
        raise MissingRowsError(f"{len(own)} neurons of the attribute were read {texts}")
    alike = ["layer", "sign"]
    if not np.array_equal(own[alike].to_numpy(), matched[alike].to_numpy()):
        raise MissingRowsError(f"no matched neurons, one for each of the attribute's, {texts}")
    sizes = own["mean_base"].abs().to_numpy(dtype=np.float64)
    before, after = (rows["change"].to_numpy(dtype=np.float64) for rows in (own, matched))
    if not (np.isfinite([before, after]).all() and 0 < sizes.sum() < np.inf):
        raise MissingRowsError("the neurons of the attribute are not active in the base")
    # One seed draws the same neurons, with their partners, all three times.
    parts = (
        bootstrap_ratio(change, sizes, draws=_DRAWS, seed=SEED)
        for change in (before, after, before - after)
    )
    attribute, control, difference = parts
    return _ActivationChanges(
        attribute=attribute,
        matched=control,
        difference=difference,
        falling=(float(np.mean(before < 0)), float(np.mean(after < 0))),
        size=float(sizes.mean()),
        neurons=len(own),
    )


def _over_prompts(tables: Tables, size: float) -> str:
    """The other interval: of these neurons, on other prompts."""
    changes = optional(tables, "toxicity_activation_changes")
    rows = at(changes, texts="off_policy", group="attribute") if len(changes) else changes
    if not len(rows):
        return ""
    low, high = (value_at(rows, end) / size for end in ("prompt_low", "prompt_high"))
    return f"of these neurons over prompts [{low:+z.2f}, {high:+z.2f}]"


def _on_policy(tables: Tables) -> str:
    try:
        found = _activation_changes(tables, "on_policy").attribute
    except MissingRowsError:
        return ""
    return f"on each model's own text {told(found, 2)}, where the text differs too"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """Whether something falls, and further than random groups do.

    Attributes:
        target_met: It falls, and is not between the two cases of PARTIAL.
        null_met: Its interval does not lie below what random groups do.
        right_sign: It falls, and its own value lies below what random groups do.
    """

    target_met: bool
    null_met: bool
    right_sign: bool


def fall(effect: Interval, groups: Interval) -> Fall:
    """The rule of a claim that says "falls", publishes no number and has many random groups.

    =======================  ==============================  ==========
    effect                   against the range of groups     verdict
    =======================  ==============================  ==========
    interval below 0         interval below it               REPLICATED
    interval below 0         value below it, interval not    PARTIAL
    interval below 0         value not below it              TRIVIAL
    interval reaches 0       any                             FAILED
    =======================  ==============================  ==========

    Args:
        effect: Change of what should fall, with its interval.
        groups: Changes of random groups: their mean, with their range.
    """
    falls = effect.high < 0
    below, apart = effect.value < groups.low, effect.high < groups.low
    return Fall(
        target_met=falls and (apart or not below),
        null_met=not apart,
        right_sign=falls and below,
    )


def suppressed_tokens(tables: Tables) -> Measurement:
    """Row 29: what the last layers say of the attribute's tokens is suppressed by tuning.

    The mean of ln(p_policy/p_base) over the last quarter of layers. The ends are the means of the
    ends of the layers: as wide as if the layers erred as one, which they nearly do on the same
    prompts, and never too narrow. The range of the random groups of neutral tokens is averaged in
    the same way, as if one group were the lowest at every layer.

    Raises:
        MissingRowsError: Tokens of the attribute or enough neutral groups were not measured.
    """
    check_columns(tables["toxicity_lens"], "toxicity_lens", ("draws",))
    table = at(tables["toxicity_lens"], place=RESID_POST)
    count = last_layer(table) + 1
    first = count - max(1, count // _LAST)
    late = table[table["layer"] >= first]
    found, control = (_mean(late, group) for group in ("attribute", "neutral"))
    groups = float(at(late, group="neutral")["draws"].min())
    check_groups(groups, "neutral tokens")
    verdict = fall(found, control)
    rows = at(table, group="attribute")
    return Measurement(
        measured=found.value,
        ci=ends(found),
        null=control.value,
        null_name=f"{groups:.0f} groups of neutral tokens",
        target_met=verdict.target_met,
        null_met=verdict.null_met,
        right_sign=verdict.right_sign,
        unit=f"nats, ln p policy/base, mean over layers {first} to {count - 1}",
        reason=joined(
            f"{value_at(rows, 'tokens'):.0f} tokens; groups of as many neutral ones from "
            f"{control.low:+z.2f} to {control.high:+z.2f}",
            _peak(rows),
            "prompts are not chosen by what the base would say, as they were in the paper",
        ),
        site=f"{RESID_POST}.{count - 1}",
        position_kind="generated",
        n=int(value_at(rows, "prompts")),
    )


def _mean(rows: pd.DataFrame, group: str) -> Interval:
    own = at(rows, group=group)
    if not len(own) or not own[list(_LOG_RATIO)].notna().all(axis=None):
        raise MissingRowsError(f"no logit lens of {group} tokens at the last layers")
    value, low, high = (float(own[column].mean()) for column in _LOG_RATIO)
    return Interval(value=value, low=low, high=high, draws=0)


def _peak(rows: pd.DataFrame) -> str:
    """Where the base says them most, and what the policy says there."""
    peak = rows.loc[[rows["base"].idxmax()]]
    layer = int(value_at(peak, "layer"))
    return (
        f"the base says them most at {RESID_POST}.{layer}, with {value_at(peak, 'base'):.2g}, the "
        f"policy there with {value_at(peak, 'policy'):.2g}"
    )
