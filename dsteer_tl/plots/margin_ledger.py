"""What the change of the margin is made of: the exact terms, and where in a response they arise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.labels import count_label, position_label
from dsteer_tl.plots.panels import add_line, finish, padded_range, panel_grid
from dsteer_tl.plots.tables import check_table, floats, ordered_names
from dsteer_tl.plots.theme import (
    BLUE,
    DOT,
    INK,
    ORANGE,
    PURPLE,
    SHIFT_COLOUR,
    SeriesStyle,
)
from dsteer_tl.plots.toxicity_parts import interval

TERM_COLUMNS = (
    "scope",
    "term",
    "value",
    "low",
    "high",
    "share",
    "null",
    "null_low",
    "null_high",
    "null_equal",
    "null_equal_low",
    "null_equal_high",
    "n",
)
LEDGER_COLUMNS = ("pair", "side", "offset", "along", "off", "scale", "readout", "total")

STYLES = {
    "along": SeriesStyle("along v*", SHIFT_COLOUR, symbol="diamond"),
    "off": SeriesStyle("off v*", ORANGE, symbol="square"),
    "scale": SeriesStyle("scale of the norm", PURPLE, symbol="triangle-up"),
    "readout": SeriesStyle("readout", BLUE, symbol="cross"),
    "total": SeriesStyle("total", INK),
}
_SCOPES = ("response", "divergence", "later")
_SCOPE_TITLES = {"response": "whole response", "divergence": "first differing token"}
_NULLS = (
    ("null", "null: random direction", "x", -0.22),
    ("null_equal", "null: random, equal length", "star-open", 0.22),
)
#: An offset is shown while at least this share of pairs reaches it.
_REACHED = 0.5


def margin_ledger(margin_terms: pd.DataFrame, margin_ledger: pd.DataFrame) -> go.Figure:
    """Exact terms of Δmargin above, with their nulls; their course along the response below.

    Above, the mean over pairs of each term in nats. The nulls put a random direction in place of v*
    (in the split, or moved along as far as v* was) and show the mean and the span of the draws.
    Below, the running sum over tokens of each term of Δ ln p, mean over the pairs that are as long.

    Args:
        margin_terms: Table `margin_terms`, with 95 % intervals.
        margin_ledger: Table `margin_ledger`.

    Raises:
        ShapeError: A table lacks columns or rows, or has an unknown term.
    """
    check_table(margin_terms, "margin_terms", TERM_COLUMNS)
    check_table(margin_ledger, "margin_ledger", LEDGER_COLUMNS)
    unknown = sorted({str(term) for term in margin_terms["term"]} - set(STYLES))
    if unknown:
        raise ShapeError(
            f"table 'margin_terms' has terms {', '.join(unknown)}; expected {', '.join(STYLES)}: "
            "run the analysis that writes this table again"
        )
    scopes = ordered_names(margin_terms, "scope", _SCOPES)
    sides = ordered_names(margin_ledger, "side", ("chosen", "rejected"))
    count = count_label([int(n) for n in margin_terms["n"]]) + " pairs"
    columns = 6
    figure = panel_grid(
        2,
        columns,
        titles=[
            *(f"{_SCOPE_TITLES.get(scope, position_label(scope))}<br>{count}" for scope in scopes),
            *(f"{side} response, running sum" for side in sides),
        ],
        height=470,
        gap_x=40,
        gap_y=78,
        specs=[
            [{"colspan": 2}, None] * len(scopes) + [None] * (columns - 2 * len(scopes)),
            [{"colspan": 3}, None, None] * len(sides) + [None] * (columns - 3 * len(sides)),
        ],
    )
    for place, scope in enumerate(scopes):
        _add_terms(figure, margin_terms[margin_terms["scope"] == scope], 2 * place + 1)
    drawn: list[float] = []
    for place, side in enumerate(sides):
        drawn += _add_profile(figure, margin_ledger[margin_ledger["side"] == side], 3 * place + 1)
    for place in range(len(sides)):
        figure.update_yaxes(range=padded_range(drawn, include=(0.0,)), row=2, col=3 * place + 1)
        figure.update_xaxes(title_text="offset of the token", row=2, col=3 * place + 1)
    figure.update_yaxes(title_text="nats a pair", row=1, col=1)
    figure.update_yaxes(title_text="Δ ln p, nats", row=2, col=1)
    return finish(figure)


def _add_terms(figure: go.Figure, rows: pd.DataFrame, column: int) -> None:
    terms = ordered_names(rows, "term", tuple(STYLES))
    drawn: list[float] = []
    for place, term in enumerate(terms):
        row = rows[rows["term"] == term]
        style = STYLES[term]
        drawn += [*floats(row, "low"), *floats(row, "high")]
        figure.add_trace(
            go.Bar(
                x=[place],
                y=floats(row, "value"),
                width=0.7,
                marker={"color": style.colour, "opacity": 0.85},
                error_y=interval(
                    floats(row, "value"),
                    floats(row, "low"),
                    floats(row, "high"),
                    SeriesStyle("", INK),
                ),
                customdata=floats(row, "share"),
                hovertemplate="%{y:.3f} nats, share %{customdata:.2f}<extra></extra>",
                name=style.label,
                legendgroup=style.label,
            ),
            row=1,
            col=column,
        )
        for null, label, symbol, shift in _NULLS:
            if not np.isfinite(floats(row, null)).all():
                continue
            drawn += [*floats(row, f"{null}_low"), *floats(row, f"{null}_high")]
            figure.add_trace(
                go.Scatter(
                    x=[place + shift],
                    y=floats(row, null),
                    mode="markers",
                    marker={
                        "symbol": symbol,
                        "size": 7,
                        "color": "#444950",
                        "line": {"color": "#444950", "width": 1},
                    },
                    error_y=interval(
                        floats(row, null),
                        floats(row, f"{null}_low"),
                        floats(row, f"{null}_high"),
                        SeriesStyle("", "#444950"),
                    ),
                    name=label,
                    legendgroup=label,
                    legendrank=1100,
                ),
                row=1,
                col=column,
            )
    figure.add_hline(0, line={"color": INK, "width": 1}, row=1, col=column)
    figure.update_xaxes(
        tickvals=list(range(len(terms))), ticktext=terms, tickangle=-40, row=1, col=column
    )
    figure.update_yaxes(range=padded_range(drawn, include=(0.0,)), row=1, col=column)


def _add_profile(figure: go.Figure, rows: pd.DataFrame, column: int) -> list[float]:
    counts = rows.groupby("offset")["pair"].nunique()
    offsets = counts.index[counts >= _REACHED * counts.max()]
    means = rows[rows["offset"].isin(offsets)].groupby("offset")[list(STYLES)].mean().cumsum()
    for term, style in STYLES.items():
        add_line(
            figure,
            [float(offset) for offset in means.index],
            floats(means, term),
            style,
            row=2,
            col=column,
        )
        # The bars above have its key.
        figure.data[-1].showlegend = False
    figure.add_hline(0, line={"color": INK, "width": 1, "dash": DOT}, row=2, col=column)
    return [float(value) for value in means.to_numpy().ravel()]
