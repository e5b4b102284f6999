"""How the claim on the logit lens is measured: row 29 (Lee et al. 2024, Fig. 1)."""

from __future__ import annotations

import pandas as pd

from dsteer_tl.claims.selection import MissingRowsError, at, ends, joined, value_at
from dsteer_tl.claims.toxicity_selection import RESID_POST, fall, last_layer
from dsteer_tl.claims.verdicts import Measurement, Tables
from dsteer_tl.controls import Interval

#: Row 29 says "the last layers": ours is the last quarter.
_LAST = 4
_COLUMNS = ("log_ratio", "low", "high")


def suppressed_tokens(tables: Tables) -> Measurement:
    """Row 29: what the last layers say of the attribute's tokens is suppressed by tuning.

    The mean of ln(p_policy/p_base) over the last quarter of layers. The ends are the means of the
    ends of the layers: as wide as if the layers erred as one, which they nearly do on the same
    prompts, and never too narrow.

    Raises:
        MissingRowsError: Tokens of the attribute or neutral ones were not measured.
    """
    table = at(tables["toxicity_lens"], place=RESID_POST)
    count = last_layer(table) + 1
    first = count - max(1, count // _LAST)
    late = table[table["layer"] >= first]
    found, control = (_mean(late, group) for group in ("attribute", "neutral"))
    verdict = fall(found, control)
    rows = at(table, group="attribute")
    return Measurement(
        measured=found.value,
        ci=ends(found),
        null=control.value,
        null_name="neutral tokens",
        target_met=verdict.target_met,
        null_met=verdict.null_met,
        right_sign=verdict.right_sign,
        unit=f"nats, ln p policy/base, mean over layers {first} to {count - 1}",
        reason=joined(
            f"{value_at(rows, 'tokens'):.0f} tokens",
            _peak(rows),
            "prompts are not chosen by what the base would say, as they were in the paper",
        ),
        site=f"{RESID_POST}.{count - 1}",
        position_kind="last_prompt and response",
        n=int(value_at(rows, "prompts")),
    )


def _mean(rows: pd.DataFrame, group: str) -> Interval:
    own = at(rows, group=group)
    if not len(own) or not own[list(_COLUMNS)].notna().all(axis=None):
        raise MissingRowsError(f"no logit lens of {group} tokens at the last layers")
    value, low, high = (float(own[column].mean()) for column in _COLUMNS)
    return Interval(value=value, low=low, high=high, draws=0)


def _peak(rows: pd.DataFrame) -> str:
    """Where the base says them most, and what the policy says there."""
    peak = rows.loc[[rows["base"].idxmax()]]
    layer = int(value_at(peak, "layer"))
    return (
        f"the base says them most at {RESID_POST}.{layer}, with {value_at(peak, 'base'):.2g}, the "
        f"policy there with {value_at(peak, 'policy'):.2g}"
    )
