"""Picking rows out of tables, with a clear word where they are missing."""

from __future__ import annotations

import pandas as pd

from dsteer_tl.controls import Interval, bootstrap_mean
from dsteer_tl.sites import FINAL

_DRAWS = 1000
_SEED = 0


class MissingRowsError(Exception):
    """A table lacks the rows that a claim is measured from: the row is NOT RUN."""


def at(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """The rows whose columns have the given values, perhaps none."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def value_at(table: pd.DataFrame, column: str, **where: object) -> float:
    """One number: the first row with the given values.

    Raises:
        MissingRowsError: There is no such row.
    """
    rows = at(table, **where)
    if not len(rows):
        asked = ", ".join(f"{name} {value}" for name, value in where.items())
        raise MissingRowsError(f"no {column} was measured for {asked}")
    return float(rows[column].to_numpy()[0])


def interval_at(table: pd.DataFrame, **where: object) -> tuple[float, float]:
    """The columns ``ci_low`` and ``ci_high`` of one row.

    Raises:
        MissingRowsError: There is no such row.
    """
    return value_at(table, "ci_low", **where), value_at(table, "ci_high", **where)


def main_kind(table: pd.DataFrame) -> str:
    """The position kind at which a claim is judged: where the paper measures, if it is there.

    Raises:
        MissingRowsError: The table has no rows.
    """
    kinds = list(dict.fromkeys(table["position_kind"]))
    if not kinds:
        raise MissingRowsError("no rows at any position kind")
    return "last_prompt" if "last_prompt" in kinds else str(kinds[0])


def other_kinds(table: pd.DataFrame, column: str, kind: str) -> str:
    """The same statistic at h at the other position kinds, as text."""
    rows = at(table, site=FINAL)
    return ", ".join(
        f"{value:.2f} at {other}"
        for other, value in zip(rows["position_kind"], rows[column], strict=True)
        if other != kind
    )


def joined(*parts: str) -> str:
    """Parts of a reason, without the empty ones."""
    return "; ".join(part for part in parts if part)


def mean_of(rows: pd.DataFrame, column: str, groups: str) -> Interval:
    """Mean of a column with its interval over groups.

    Raises:
        MissingRowsError: Fewer than two groups, so that there is no interval.
    """
    if rows[groups].nunique() < 2:
        raise MissingRowsError(f"{column} was measured on {rows[groups].nunique()} {groups}s")
    return bootstrap_mean(
        rows[column].to_numpy(dtype=float), rows[groups].to_numpy(), draws=_DRAWS, seed=_SEED
    )


def ends(interval: Interval) -> tuple[float, float]:
    """Both ends of an interval."""
    return interval.low, interval.high
