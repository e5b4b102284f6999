"""Picking rows out of the tables of the toxicity study, with the reason where one is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dsteer_tl.claims.selection import MissingRowsError, at, value_at
from dsteer_tl.claims.verdicts import Measurement, Tables
from dsteer_tl.controls import Interval

BASE, POLICY = "base", "policy"
SCORE, PERPLEXITY, F1 = "attribute_score", "perplexity", "f1"
SCORE_COLUMNS = (SCORE, "low", "high")
CHANGE_COLUMNS = ("change", "change_low", "change_high")
#: Where Lee et al. look for the offset (sec. 5.2).
RESID_MID, RESID_POST = "resid_mid", "resid_post"
#: Numbers of a run are rounded before they are read; a published bound is met to this much.
ROUNDING = 1e-9
#: One more random group passes all of so many in one of eleven cases.
FEWEST_GROUPS = 10


def optional(tables: Tables, name: str) -> pd.DataFrame:
    """A table that adds to a reason and decides nothing; empty where the run lacks it."""
    return tables.get(name, pd.DataFrame())


def check_columns(table: pd.DataFrame, name: str, columns: Sequence[str]) -> None:
    """Name the columns that a table of an earlier version lacks.

    Raises:
        MissingRowsError: It lacks some.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        raise MissingRowsError(
            f"{name} has no column {', '.join(missing)}: run the toxicity study anew"
        )


def check_groups(groups: float, what: str) -> None:
    """Ask for as many random groups as a comparison with their range needs.

    Raises:
        MissingRowsError: There are fewer than `FEWEST_GROUPS`.
    """
    if not groups >= FEWEST_GROUPS:
        raise MissingRowsError(
            f"{groups:.0f} random groups of {what} were measured, at least {FEWEST_GROUPS} are "
            "needed: fewer are passed by chance too often"
        )


def why_not(tables: Tables, metric: str) -> str:
    """Why a metric has no value, in the words of ``toxicity_metrics``."""
    states = optional(tables, "toxicity_metrics")
    idle = at(states, status="NOT RUN") if len(states) else states
    if not len(idle):
        return f"{metric} has no value"
    named = at(idle, metric=metric)
    rows = named if len(named) else idle
    told = (
        f"{name} NOT RUN ({reason})"
        for name, reason in zip(rows["metric"], rows["reason"], strict=True)
    )
    return ", ".join(dict.fromkeys(told))


def scorer_of(tables: Tables) -> str:
    """What scored the continuations, as text."""
    states = optional(tables, "toxicity_metrics")
    rows = at(states, metric=SCORE, status="RUN") if len(states) else states
    source = str(rows["source"].to_numpy()[0]) if len(rows) else ""
    if not source or "Perspective" in source:
        return ""
    # A ratio takes 0 for "nothing of it".
    shifted = ", where a text without rated words has 0.5, so that ratios are nearer to 1"
    return (
        f"scored by {source}, published with the Perspective API"
        f"{shifted if 'VADER' in source else ''}"
    )


def stand_in(tables: Tables) -> str:
    """What is studied where it is not toxicity, which the claims are on."""
    attribute = first_text(optional(tables, "toxicity_probe"), "attribute")
    if attribute in ("", "toxic", "toxicity"):
        return ""
    return f"the attribute is “{attribute}”, not toxicity"


def known(tables: Tables, rows: pd.DataFrame, column: str, **where: object) -> float:
    """One number of the first row with the given values.

    Raises:
        MissingRowsError: There is no such row, or it holds no number: the metric could not run.
    """
    value = value_at(rows, column, **where)
    if not np.isfinite(value):
        raise MissingRowsError(why_not(tables, column))
    return value


def interval(
    tables: Tables, rows: pd.DataFrame, columns: tuple[str, str, str], **where: object
) -> Interval:
    """A value with its ends, from three columns of one row.

    Raises:
        MissingRowsError: There is no such row, or it has no value.
    """
    value = known(tables, rows, columns[0], **where)
    low, high = (value_at(rows, column, **where) for column in columns[1:])
    return Interval(value=value, low=low, high=high, draws=0)


def told(found: Interval, digits: int = 3) -> str:
    """A change with its interval, as text without a negative zero."""
    value, low, high = (f"{end:+z.{digits}f}" for end in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def first_text(rows: pd.DataFrame, column: str) -> str:
    """The text in a column of the first row, or nothing."""
    return str(rows[column].to_numpy()[0]) if len(rows) else ""


def last_layer(rows: pd.DataFrame) -> int:
    """The last layer of a table.

    Raises:
        MissingRowsError: It has no rows.
    """
    if not len(rows):
        raise MissingRowsError("no layer was measured")
    return int(rows["layer"].max())


def ratio_to_base(base: Interval, change: Interval) -> Interval:
    """1 + change/base, with an interval that errs on the side of caution.

    The paired change and the score of the base come from the same prompts, but not their joint
    draws. The ends are the outermost of all combinations of both intervals: for small errors the
    sum of both, never less than the error of the ratio, whatever their correlation.

    Args:
        base: Score of the base; its lower end must be above zero, else the ends are NaN.
        change: Paired change from the base.

    Returns:
        The ratio; NaN where the base has nothing of the attribute.
    """
    value = 1 + change.value / base.value if base.value > 0 else float("nan")
    if not base.low > 0:
        return Interval(value=value, low=float("nan"), high=float("nan"), draws=0)
    corners = [
        1 + end / size for end in (change.low, change.high) for size in (base.low, base.high)
    ]
    return Interval(value=value, low=min(corners), high=max(corners), draws=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one model, or one vector subtracted from the base, writes.

    Attributes:
        vector: Its name.
        change: Paired change of the attribute score from the base.
        ratio: Its score over the base's.
        perplexity, f1: Of the running text.
        prompts: Prompts.
    """

    vector: str
    change: Interval
    ratio: Interval
    perplexity: float
    f1: float
    prompts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The base: score, perplexity and F1 (NaN where it was not measured)."""

    score: Interval
    perplexity: float
    f1: float
    prompts: int


def base_of(tables: Tables) -> Anchor:
    """The base in ``toxicity_interventions``.

    Raises:
        MissingRowsError: It is not there, or the scorer could not run.
    """
    rows = at(tables["toxicity_interventions"], vector=BASE)
    return Anchor(
        score=interval(tables, rows, SCORE_COLUMNS),
        perplexity=known(tables, rows, PERPLEXITY),
        f1=value_at(rows, F1),
        prompts=int(value_at(rows, "prompts")),
    )


def outcome(tables: Tables, vector: str, *, matched: bool = False) -> Outcome:
    """A model, or a vector at the coefficient that matches the policy's perplexity.

    Args:
        tables: Of a run.
        vector: Its name in ``toxicity_interventions``.
        matched: Take the row whose perplexity is that of the policy.

    Raises:
        MissingRowsError: It was not measured, not at that perplexity, or the scorer could not run.
    """
    rows = at(tables["toxicity_interventions"], vector=vector)
    if not len(rows):
        raise MissingRowsError(f"{vector} was not measured")
    rows = at(rows, matched=True) if matched else rows
    if not len(rows):
        raise MissingRowsError(
            f"no coefficient of {vector} gave the perplexity of the policy, "
            f"{_perplexity(tables, POLICY)}, base {_perplexity(tables, BASE)}"
        )
    change = interval(tables, rows, CHANGE_COLUMNS)
    return Outcome(
        vector=vector,
        change=change,
        ratio=ratio_to_base(base_of(tables).score, change),
        perplexity=known(tables, rows, PERPLEXITY),
        f1=value_at(rows, F1),
        prompts=int(value_at(rows, "prompts")),
    )


def _perplexity(tables: Tables, vector: str) -> str:
    rows = at(tables["toxicity_interventions"], vector=vector)
    return f"{value_at(rows, PERPLEXITY):.4g}" if len(rows) else "not measured"


def measured_outcomes(
    tables: Tables, names: Sequence[str], *, matched: bool = False
) -> tuple[Outcome, ...]:
    """Those of the named vectors that were measured."""
    found = []
    for name in names:
        try:
            found.append(outcome(tables, name, matched=matched))
        except MissingRowsError:
            continue
    return tuple(found)


def nothing_to_reduce(found: Measurement, base: Interval) -> Measurement:
    """The measurement of a base that has nothing of the attribute: UNTESTABLE."""
    return replace(
        found,
        measured=base.value,
        ci=(base.low, base.high),
        null=float("nan"),
        null_name="",
        unit="attribute score of the base",
        reason="the base has nothing of the attribute: nothing to reduce",
        untestable=True,
    )
