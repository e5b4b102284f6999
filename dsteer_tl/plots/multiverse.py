"""The multiverse of analytic choices: the verdict of every claim by every choice."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.claims import Verdict
from dsteer_tl.claims.choices import DEFAULT, DIMENSIONS, EVERY
from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.claim_labels import claim_label, number_ranges
from dsteer_tl.plots.labels import escape_text
from dsteer_tl.plots.panels import add_note, legend_rows
from dsteer_tl.plots.tables import check_table
from dsteer_tl.plots.theme import (
    GREEN,
    GRID,
    INK,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    TEMPLATE_NAME,
    TICK_SIZE,
    VERMILLION,
    WIDTH,
)

MULTIVERSE_COLUMNS = ("id", "dimension", "choice", "default", "verdict", "applies", "flips")

#: Colour and letter of each verdict.
_LOOKS = {
    Verdict.REPLICATED: (GREEN, "R"),
    Verdict.PARTIAL: (SKY_BLUE, "P"),
    Verdict.TRIVIAL: (ORANGE, "T"),
    Verdict.FAILED: (VERMILLION, "F"),
    Verdict.UNTESTABLE: (PURPLE, "U"),
    Verdict.NOT_RUN: ("#FFFFFF", "–"),
}

_CELL, _ROW, _GROUP_GAP = 17.0, 19.0, 0.45
_LEFT, _RIGHT, _BAR, _BAR_GAP = 166, 8, 62, 12
_LETTER = 4.8


def multiverse(table: pd.DataFrame, ids: Collection[int] | None = None) -> go.Figure:
    """Verdicts as a matrix: claims down, analytic choices across, the ledger's own choice first.

    A letter says what the colour says. A cell with a thick border has another verdict than the
    default; a dash is a choice by which the claim has none; an empty place is a choice that does
    not bear on it. On the right, for claims whose choices were combined, the share of all
    combinations with each verdict. Claims that have a verdict by no choice are named below.

    Args:
        table: Table `multiverse`, from `dsteer_tl.claims.multiverse.multiverse`.
        ids: Claims shown; all of them by default. Some at a time where there are many choices:
            beyond about 25 across, letters become small.

    Raises:
        ShapeError: The table lacks columns or rows, or has no default, or no verdict at all.
    """
    check_table(table, "multiverse", MULTIVERSE_COLUMNS)
    table = table if ids is None else table[table["id"].isin(list(ids))]
    judged = table[table["verdict"] != Verdict.NOT_RUN.value]
    shown = sorted({int(number) for number in judged["id"]})
    if not shown or not table["default"].any():
        raise ShapeError(
            f"table 'multiverse' has {len(judged)} rows with a verdict and "
            f"{int(table['default'].sum())} default rows; expected at least one of each: judge a "
            "run that has tables"
        )
    single = table[(table["dimension"] != EVERY) & table["id"].isin(shown)]
    every = table[(table["dimension"] == EVERY) & table["applies"] & table["id"].isin(shown)]
    places, groups = _places(single)
    figure = go.Figure(layout={"template": TEMPLATE_NAME})
    rows = {number: index for index, number in enumerate(shown)}
    pitch = _width(places, with_shares=len(every) > 0) / (max(places.values()) + 1)
    for verdict, (colour, letter) in _LOOKS.items():
        found = single[single["verdict"] == verdict.value]
        if found.empty:
            continue
        keys = zip(found["dimension"], found["choice"], strict=True)
        figure.add_trace(
            go.Scatter(
                x=[places[key] for key in keys],
                y=[rows[int(number)] for number in found["id"]],
                mode="markers+text",
                name=f"{letter}  {verdict.value.lower()}",
                text=[letter] * len(found),
                textfont={"size": min(TICK_SIZE, pitch - 2), "color": INK},
                customdata=[escape_text(str(choice)) for choice in found["choice"]],
                hovertemplate=f"row %{{y}}, %{{customdata}}: {verdict.value}<extra></extra>",
                marker={
                    "symbol": "square",
                    "size": min(_CELL - 3, pitch - 1),
                    "color": colour,
                    "line": {"color": INK, "width": [2.2 if f else 0.4 for f in found["flips"]]},
                },
            )
        )
    _add_shares(figure, every, rows)
    left_out = sorted({int(number) for number in table["id"]} - set(shown))
    counts = [int(count) for count in every.groupby("id").size()]
    _lay_out(figure, shown, left_out, places, groups, counts)
    return figure


def _places(
    single: pd.DataFrame,
) -> tuple[dict[tuple[str, str], float], dict[str, tuple[float, float]]]:
    """Where each choice stands across, and each dimension's first and last place."""
    columns = list(dict.fromkeys(zip(single["dimension"], single["choice"], strict=True)))
    order = list(dict.fromkeys(dimension for dimension, _ in _by_dimension(columns)))
    places: dict[tuple[str, str], float] = {}
    groups: dict[str, tuple[float, float]] = {}
    here = 0.0
    for dimension in order:
        first = here
        for column in columns:
            if column[0] == dimension:
                places[column] = here
                here += 1
        groups[dimension] = (first, here - 1)
        here += _GROUP_GAP
    return places, groups


def _width(places: dict[tuple[str, str], float], *, with_shares: bool) -> float:
    """Pixels across the matrix."""
    room = WIDTH - _LEFT - _RIGHT - (_BAR + _BAR_GAP if with_shares else 0)
    return float(min(room, _CELL * (max(places.values()) + 1)))


def _by_dimension(columns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The default first, then dimensions as the claims name them, then any others."""
    known = (DEFAULT, *DIMENSIONS)
    return sorted(
        columns, key=lambda column: known.index(column[0]) if column[0] in known else len(known)
    )


def _add_shares(figure: go.Figure, every: pd.DataFrame, rows: dict[int, int]) -> None:
    counts = {number: int((every["id"] == number).sum()) for number in rows}
    for verdict, (colour, letter) in _LOOKS.items():
        found = every[every["verdict"] == verdict.value]
        if found.empty:
            continue
        numbers = [number for number in rows if (found["id"] == number).any()]
        shares = [int((found["id"] == number).sum()) / counts[number] for number in numbers]
        figure.add_trace(
            go.Bar(
                x=shares,
                y=[rows[number] for number in numbers],
                orientation="h",
                width=(_CELL - 3) / _ROW,
                marker={"color": colour, "line": {"color": INK, "width": 0.4}},
                text=[letter if share > 0.15 else "" for share in shares],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"size": TICK_SIZE, "color": INK},
                hovertemplate=f"{verdict.value}: %{{x:.0%}}<extra></extra>",
                xaxis="x2",
                showlegend=False,
            )
        )


def _lay_out(
    figure: go.Figure,
    ids: list[int],
    left_out: list[int],
    places: dict[tuple[str, str], float],
    groups: dict[str, tuple[float, float]],
    counts: list[int],
) -> None:
    """Axes, frames and notes.

    Args:
        figure: Changed in place.
        ids: Claims shown.
        left_out: Claims without any verdict.
        places: Of the choices, across.
        groups: First and last place of each dimension.
        counts: Combinations of each claim that has any.
    """
    last = max(places.values())
    names = [_label(*column) for column in places]
    legend = 20 * legend_rows([trace.name for trace in figure.data if trace.name]) + 8
    head = int(_LETTER * max(map(len, names))) + 14
    body = int(_ROW * len(ids))
    notes = ["thick border: another verdict than the default"]
    notes += [f"no verdict by any choice: rows {number_ranges(left_out)}"] if left_out else []
    bottom = 16 * len(notes) + 12
    across = WIDTH - _LEFT - _RIGHT
    wide = _width(places, with_shares=len(counts) > 0)
    axis = {
        "range": [len(ids) - 0.5, -0.5],
        "tickvals": list(range(len(ids))),
        "ticktext": [claim_label(number) for number in ids],
        "ticks": "",
        "showline": False,
        "tickfont": {"size": TICK_SIZE},
    }
    figure.update_layout(
        width=WIDTH,
        height=legend + head + body + bottom,
        margin={"l": _LEFT, "r": _RIGHT, "t": legend + head, "b": bottom},
        barmode="stack",
        legend={"traceorder": "normal"},
        yaxis=axis,
        xaxis={
            "domain": [0, wide / across],
            "range": [-0.5, last + 0.5],
            "side": "top",
            "tickvals": list(places.values()),
            "ticktext": names,
            "tickangle": -90,
            "ticks": "",
            "showline": False,
            "showgrid": False,
        },
    )
    for first, end in list(groups.values())[1:]:
        figure.add_shape(
            type="rect",
            x0=first - 0.5,
            x1=end + 0.5,
            y0=-0.5,
            y1=len(ids) - 0.5,
            line={"color": GRID, "width": 1},
            layer="below",
        )
    if counts:
        start = (wide + _BAR_GAP) / across
        figure.update_layout(
            xaxis2={
                "domain": [start, start + _BAR / across],
                "range": [0, 1],
                "side": "top",
                "anchor": "y",
                "tickvals": [0.5],
                "ticktext": [f"share of {_span(counts)}<br>combinations"],
                "tickangle": -90,
                "ticks": "",
                "showline": False,
                "showgrid": False,
            }
        )
    add_note(
        figure,
        "<br>".join(notes),
        x=0,
        y=0,
        xanchor="left",
        yanchor="top",
        align="left",
        xshift=8 - _LEFT,
        yshift=-6,
        font_size=TICK_SIZE,
    )


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _label(dimension: str, choice: str) -> str:
    return DEFAULT if dimension == DEFAULT else escape_text(f"{dimension}: {choice}")
