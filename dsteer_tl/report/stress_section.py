"""Stress tests as small tables: what is the same in every row stands above, intervals in cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from dsteer_tl.report.captions import CAPTIONS
from dsteer_tl.report.figure_section import anchor
from dsteer_tl.report.stress_pivot import Pivoted, pivoted
from dsteer_tl.report.words import counted, number, with_interval

PREFIX = "stress_"
_MOST_ROWS = 40
#: Ends of intervals, as pairs of column names.
_ENDS = (("ci_low", "ci_high"), ("low", "high"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Text of a cell, and whether it is a number."""

    text: str
    numeric: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallTable:
    """One stress test.

    Attributes:
        name, anchor: Of the table, and of its figure on the page ("" for none).
        title: In words.
        same: What every row has in common, as "n = 64, site = h".
        heads, numeric: Column heads, and which hold numbers.
        rows: Cells.
        left_out: A sentence where the table is longer than what is shown.
    """

    name: str
    anchor: str
    title: str
    same: str
    heads: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left_out: str


def stress_tables(
    tables: Mapping[str, pd.DataFrame], figures: Mapping[str, object]
) -> tuple[SmallTable, ...]:
    """Every table of a stress test, in the order of their captions; others by name.

    Args:
        tables: Of the run.
        figures: Figures on the page by name.
    """
    order = {name: place for place, name in enumerate(CAPTIONS)}
    names = [name for name in tables if name.startswith(PREFIX) and len(tables[name])]
    names.sort(key=lambda name: (order.get(name, len(order)), name))
    return tuple(_shown(name, tables[name], name in figures) for name in names)


def _shown(name: str, table: pd.DataFrame, drawn: bool) -> SmallTable:
    short = pivoted(table)
    return _small(name, table, drawn) if short is None else _of_conditions(name, short, drawn)


def _of_conditions(name: str, short: Pivoted, drawn: bool) -> SmallTable:
    rows = [
        tuple(Cell(text=str(text), numeric=place >= short.keys) for place, text in enumerate(row))
        for row in short.table.itertuples(index=False, name=None)
    ]
    return SmallTable(
        name=name,
        anchor=anchor(name) if drawn else "",
        title=_title(name),
        same="",
        heads=tuple(_words(column) for column in short.table.columns),
        numeric=tuple(place >= short.keys for place in range(len(short.table.columns))),
        rows=tuple(rows[:_MOST_ROWS]),
        left_out=f"Values with 95 % intervals: {short.note}; all are in tables/{name}.parquet.",
    )


def _title(name: str) -> str:
    caption = CAPTIONS.get(name)
    return _words(name.removeprefix(PREFIX)) if caption is None else caption.title


def _small(name: str, table: pd.DataFrame, drawn: bool) -> SmallTable:
    shown = _columns(table)
    common = [
        head
        for head, cells in shown.items()
        if len(table) > 1 and len({c.text for c in cells}) == 1
    ]
    if len(common) == len(shown):
        common = []
    heads = [head for head in shown if head not in common]
    rows = list(zip(*(shown[head] for head in heads), strict=True))
    left_out = ""
    if len(rows) > _MOST_ROWS:
        left_out = (
            f"The first {_MOST_ROWS} of {counted(len(rows), 'row')}; all are in "
            f"tables/{name}.parquet."
        )
    return SmallTable(
        name=name,
        anchor=anchor(name) if drawn else "",
        title=_title(name),
        same=", ".join(f"{head} = {shown[head][0].text}" for head in common if shown[head][0].text),
        heads=tuple(heads),
        numeric=tuple(all(cell.numeric for cell in shown[head]) for head in heads),
        rows=tuple(tuple(row) for row in rows[:_MOST_ROWS]),
        left_out=left_out,
    )


def _columns(table: pd.DataFrame) -> dict[str, list[Cell]]:
    """Cells by column head; the two ends of an interval stand in the cell of their value."""
    intervals = _intervals([str(column) for column in table.columns])
    ends = {end for pair in intervals.values() for end in pair}
    columns: dict[str, list[Cell]] = {}
    for column in table.columns:
        if column in ends:
            continue
        values = table[column].tolist()
        if column in intervals:
            low, high = (table[end].tolist() for end in intervals[column])
            texts = [with_interval(*triple) for triple in zip(values, low, high, strict=True)]
            columns[f"{_words(column)} [95 % CI]"] = [Cell(text=t, numeric=True) for t in texts]
        else:
            columns[_words(column)] = [_cell(value) for value in values]
    return columns


def _intervals(columns: list[str]) -> dict[str, tuple[str, str]]:
    """Value → ends: ``x`` with ``x_low`` and ``x_high``, and the column before ``ci_low``."""
    found = {
        column: (f"{column}_low", f"{column}_high")
        for column in columns
        if {f"{column}_low", f"{column}_high"} <= set(columns)
    }
    for low, high in _ENDS:
        if low in columns and high in columns and columns.index(low) > 0:
            found.setdefault(columns[columns.index(low) - 1], (low, high))
    return found


def _cell(value: object) -> Cell:
    if isinstance(value, bool):
        return Cell(text="yes" if value else "no", numeric=False)
    if isinstance(value, int):
        return Cell(text=f"{value:,}", numeric=True)
    if isinstance(value, float):
        return Cell(text=number(value), numeric=True)
    return Cell(text="" if value is None else str(value), numeric=False)


def _words(name: object) -> str:
    return str(name).replace("_", " ")
