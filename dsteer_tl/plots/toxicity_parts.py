"""What figures of the toxicity study share: looks of groups, marks, levels, samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import escape_text
from dsteer_tl.plots.theme import (
    DASH,
    DASH_DOT,
    DOT,
    INK,
    LONG_DASH,
    NULL_COLOUR,
    ORANGE,
    PURPLE,
    SeriesStyle,
    series_style,
)

#: The attribute's own look, and the looks of what it is compared with.
GROUPS: dict[str, SeriesStyle] = {
    "attribute": SeriesStyle("attribute", PURPLE, symbol="diamond"),
    "most_active": SeriesStyle("most active", ORANGE, LONG_DASH, "triangle-up"),
    "shuffled_probe": SeriesStyle("probe of shuffled labels", INK, DOT, "triangle-down"),
    "matched": SeriesStyle("random, same mean activation", NULL_COLOUR, DASH, "x"),
    "neutral": SeriesStyle("neutral", NULL_COLOUR, DASH, "x"),
    "random": SeriesStyle("random", NULL_COLOUR, DASH, "x"),
    "all": SeriesStyle("all", INK, symbol="square"),
}
PERMUTED = SeriesStyle("permuted", NULL_COLOUR, DASH_DOT, "x")


def group_style(group: str) -> SeriesStyle:
    """The look of a group of neurons or tokens; grey dashes where it is not a known one."""
    return GROUPS[group] if group in GROUPS else series_style(group)


def thin_marks(figure: go.Figure, most: int = 32) -> None:
    """Lines alone for series of more points than that, whose marks would hide the dashes."""
    for trace in figure.data:
        if trace.mode == "lines+markers" and len(trace.x) > most:
            trace.mode = "lines"


def interval(
    values: Sequence[float], low: Sequence[float], high: Sequence[float], style: SeriesStyle
) -> dict[str, object]:
    """Options of an error bar that reaches from `low` to `high`; none where an end is missing."""
    above = [max(end - value, 0.0) for value, end in zip(values, high, strict=True)]
    below = [max(value - end, 0.0) for value, end in zip(values, low, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": [end if math.isfinite(end) else 0.0 for end in above],
        "arrayminus": [end if math.isfinite(end) else 0.0 for end in below],
        "color": style.colour,
        "thickness": 1.5,
        "width": 0,
    }


def add_marks(
    figure: go.Figure,
    x: Sequence[float],
    y: Sequence[float],
    style: SeriesStyle,
    *,
    low: Sequence[float],
    high: Sequence[float],
    label: str | None = None,
    open_symbol: bool = False,
    size: float = 8,
    showlegend: bool = True,
    row: int | None = None,
    col: int | None = None,
) -> None:
    """Marks with horizontal intervals, as in a forest plot.

    Args:
        figure: Drawn into.
        x: Values.
        y: Lines of the forest, from the top.
        style: Colour, marker and name; a dashed style stands after the others in the legend.
        low: Lower ends of the intervals.
        high: Upper ends of the intervals.
        label: Name in the legend, if not the style's own.
        open_symbol: Whether marks are outlines.
        size: Of the marks, in pixels.
        showlegend: Whether the legend has an entry.
        row: Panel, counted from 1.
        col: Panel, counted from 1.
    """
    name = label if label is not None else style.label
    symbol = f"{style.symbol}-open" if open_symbol else style.symbol
    figure.add_trace(
        go.Scatter(
            x=list(x),
            y=list(y),
            mode="markers",
            name=name,
            legendgroup=name,
            legendrank=1000 if style.dash == "solid" else 1100,
            showlegend=showlegend,
            marker={
                "symbol": symbol,
                "color": style.colour,
                "size": size,
                "line": {"width": 1.4 if open_symbol else 0, "color": style.colour},
            },
            error_x=interval(x, low, high, style),
        ),
        row=row,
        col=col,
    )


def add_level(
    figure: go.Figure,
    level: float,
    span: tuple[float, float],
    colour: str,
    label: str,
    *,
    upright: bool = False,
    row: int | None = None,
    col: int | None = None,
) -> None:
    """A dotted reference line with an entry in the legend, where two labels never meet.

    Args:
        figure: Drawn into.
        level: Where it stands; nothing is drawn where it is no number.
        span: From where to where it reaches along the other axis.
        colour: Of the line.
        label: Name in the legend.
        upright: Whether it is vertical, `level` being a place on the x axis.
        row: Panel, counted from 1.
        col: Panel, counted from 1.
    """
    if not math.isfinite(level):
        return
    along, across = list(span), [level, level]
    figure.add_trace(
        go.Scatter(
            x=across if upright else along,
            y=along if upright else across,
            mode="lines",
            name=label,
            legendgroup=label,
            legendrank=1200,
            line={"color": colour, "width": 1.3, "dash": DOT},
            hoverinfo="name",
        ),
        row=row,
        col=col,
    )


def evenly(rows: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """At most `most` rows, drawn without replacement; the same ones for the same rows and seed."""
    if len(rows) <= most:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), size=most, replace=False)
    return rows.iloc[np.sort(chosen)]


def words(name: str) -> str:
    """A name of a table in words, harmless."""
    return escape_text(name.replace("_", " "))


def counted(counts: Sequence[float], noun: str) -> str:
    """Text "96 prompts", or "90–96 prompts" where rows differ."""
    low, high = int(min(counts)), int(max(counts))
    return f"{low:,} {noun}" if low == high else f"{low:,}–{high:,} {noun}"
