"""The n of a caption, taken from the tables that the figure shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from dsteer_tl.claims.selection import main_kind
from dsteer_tl.plots.labels import count_label

Tables = Mapping[str, pd.DataFrame]
Count = Callable[[Tables], str]


def column(table: str, unit: str, name: str = "n") -> Count:
    """The count that a column holds: "n = 128 prompts", or a range where rows differ.

    Args:
        table: Its name.
        unit: What is counted, in the plural.
        name: The column.
    """

    def count(tables: Tables) -> str:
        rows = tables.get(table)
        if rows is None or name not in rows:
            return ""
        numbers = pd.to_numeric(rows[name], errors="coerce").dropna()
        found = [int(value) for value in numbers if value > 0]
        return f"{count_label(found)} {unit}" if found else ""

    return count


def at_main_kind(table: str, unit: str) -> Count:
    """As `column`, at the position kind of figures that draw one: the last prompt token, if any."""

    def count(tables: Tables) -> str:
        rows = tables.get(table)
        if rows is None or "position_kind" not in rows or rows.empty:
            return ""
        return column(table, unit)({table: rows[rows["position_kind"] == main_kind(rows)]})

    return count


def sweep_points(tables: Tables) -> str:
    """Prompts behind one point of a sweep; lengths of refusals, which count refusals, are apart."""
    rows = tables.get("sweep")
    if rows is None or "metric" not in rows:
        return ""
    kept = rows[rows["metric"] != "refusal_length"]
    return column("sweep", "prompts a point")({"sweep": kept})


def distinct(table: str, unit: str, *names: str) -> Count:
    """How many different values the columns have together: "n = 128 pairs"."""

    def count(tables: Tables) -> str:
        rows = tables.get(table)
        if rows is None or not set(names) <= set(rows.columns):
            return ""
        return f"n = {len(rows.drop_duplicates(list(names))):,} {unit}"

    return count


def rows_of(table: str, unit: str) -> Count:
    """How many rows a table has."""

    def count(tables: Tables) -> str:
        rows = tables.get(table)
        return f"n = {len(rows):,} {unit}" if rows is not None and len(rows) else ""

    return count


def any_of(table: str, unit: str = "prompts") -> Count:
    """The count that a table states, whatever it is called: its column n, else prompts, else pairs.

    For tables of which one row may rest on other prompts than the next.
    """

    def count(tables: Tables) -> str:
        for name, what in (("n", unit), ("prompts", "prompts"), ("pairs", "pairs")):
            text = column(table, what, name)(tables)
            if text:
                return text
        for name, what in (("prompt", "prompts"), ("pair", "pairs")):
            text = distinct(table, what, name)(tables)
            if text:
                return text
        return ""

    return count


def together(*counts: Count) -> Count:
    """Several counts, those that are known."""

    def count(tables: Tables) -> str:
        return "; ".join(text for one in counts if (text := one(tables)))

    return count
