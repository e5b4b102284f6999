"""Flat figures: grids of panels, lines with confidence bands, and the axis of sites."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from dsteer_tl.plots.theme import (
    HEIGHT,
    LABEL_SIZE,
    TEMPLATE_NAME,
    WIDTH,
    SeriesStyle,
    translucent,
)

SITE_TITLE = "layer of resid_post  (h: final hidden state)"
SHORT_SITE_TITLE = "layer of resid_post, h"

_TICK_PIXELS = 19


def panel_grid(
    rows: int,
    columns: int,
    *,
    titles: Sequence[str] | None = None,
    height: int = HEIGHT,
    left: int = 54,
    right: int = 12,
    top: int = 52,
    bottom: int = 46,
    gap_x: int = 40,
    gap_y: int = 46,
    share_x: bool = False,
    share_y: bool = False,
    **options: object,
) -> go.Figure:
    """An empty grid of panels in the house look; distances are pixels.

    Args:
        rows: Panels down.
        columns: Panels across.
        titles: One per panel, row by row.
        height: Of the whole figure.
        left: Margin for the titles and ticks of the first column.
        right: Margin on the right.
        top: Margin above; `finish` sets it anew to hold the legend and the panel titles.
        bottom: Margin for the ticks and title of the x axis.
        gap_x: Between columns.
        gap_y: Between rows.
        share_x: One x axis per column, ticks on its lowest panel.
        share_y: One y axis per row, ticks on its first panel.
        options: Anything else for `plotly.subplots.make_subplots`.
    """
    wide, high = WIDTH - left - right, height - top - bottom
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=list(titles) if titles is not None else None,
        horizontal_spacing=gap_x / wide if columns > 1 else 0,
        vertical_spacing=gap_y / high if rows > 1 else 0,
        shared_xaxes="columns" if share_x else False,
        shared_yaxes="rows" if share_y else False,
        **options,
    )
    figure.update_layout(
        template=TEMPLATE_NAME,
        width=WIDTH,
        height=height,
        margin={"l": left, "r": right, "t": top, "b": bottom},
    )
    # The titles are all the annotations there are so far.
    figure.update_annotations(font_size=LABEL_SIZE, yshift=2)
    return figure


def panel_width(columns: int, *, left: int = 54, right: int = 12, gap_x: int = 40) -> float:
    """Pixels across one panel of `panel_grid`."""
    return (WIDTH - left - right - gap_x * (columns - 1)) / columns


def add_line(
    figure: go.Figure,
    x: Sequence[float],
    y: Sequence[float],
    style: SeriesStyle,
    *,
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    clip: tuple[float, float] | None = None,
    label: str | None = None,
    width: float = 2,
    row: int | None = None,
    col: int | None = None,
) -> None:
    """One series: a line with markers, over its confidence band where there is one.

    Args:
        figure: Drawn into.
        x: Positions.
        y: Values.
        style: Colour, dash, marker and name.
        low: Lower ends of the interval.
        high: Upper ends of the interval.
        clip: Bounds that the quantity cannot leave; the band is cut there, the line never is.
        label: Name in the legend, if not the style's own.
        width: Of the line, in pixels.
        row: Panel, counted from 1.
        col: Panel, counted from 1.
    """
    name = label if label is not None else style.label
    places: list[float] = []
    if low is not None and high is not None:
        ends = np.asarray([low, high], dtype=np.float64)
        if clip is not None:
            ends = np.clip(ends, *clip)
        finite = np.isfinite(ends).all(axis=0)
        places = np.asarray(x, dtype=np.float64)[finite].tolist()
    if low is not None and high is not None and places:
        figure.add_trace(
            go.Scatter(
                x=places + places[::-1],
                y=ends[0, finite].tolist() + ends[1, finite][::-1].tolist(),
                fill="toself",
                fillcolor=translucent(style.colour, 0.18),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                name=f"{name}, 95 % CI",
                legendgroup=name,
                showlegend=False,
            ),
            row=row,
            col=col,
        )
    figure.add_trace(
        go.Scatter(
            x=list(x),
            y=list(y),
            mode="lines+markers",
            name=name,
            legendgroup=name,
            legendrank=1000 if style.dash == "solid" else 1100,
            line={"color": style.colour, "dash": style.dash, "width": width},
            marker={"symbol": style.symbol, "size": 5 if len(x) <= 16 else 3.5},
        ),
        row=row,
        col=col,
    )


def plain_length(label: str) -> int:
    """Characters of a label as shown: without tags, an entity as one character."""
    return len(re.sub(r"&[#\w]+;", "x", re.sub(r"<[^>]+>", "", label)))


def legend_rows(labels: Sequence[str], width: float = WIDTH - 12) -> int:
    """Rows that a horizontal legend of these labels takes, estimated on the wide side."""
    rows, used = (1, 0.0) if labels else (0, 0.0)
    for label in labels:
        item = 46 + 5.7 * plain_length(label)
        if used and used + item > width:
            rows, used = rows + 1, 0.0
        used += item
    return rows


def finish(figure: go.Figure, *, narrow: bool = False) -> go.Figure:
    """One legend for all panels, controls last, and a top margin that holds it and the titles.

    The height of the figure follows the margin, so panels keep their size.

    Args:
        figure: Made by `panel_grid`.
        narrow: Whether a wide left margin leaves the legend the panels' width alone.
    """
    entries: dict[str, tuple[float, str]] = {}
    for trace in figure.data:
        if trace.showlegend is False or trace.legendgroup is None:
            continue
        trace.showlegend = trace.legendgroup not in entries
        entries.setdefault(trace.legendgroup, (trace.legendrank or 1000, trace.name))
    # In the legend's own order (rank, then first come), as that decides where it wraps.
    labels = [name for _, name in sorted(entries.values(), key=lambda entry: entry[0])]
    titles = [
        note.text
        for note in figure.layout.annotations
        if note.text and note.yref == "paper" and note.yanchor == "bottom" and note.y > 0.999
    ]
    lines = max((title.count("<br>") + 1 for title in titles), default=0)
    margin = figure.layout.margin
    width = WIDTH - margin.l - margin.r if narrow else WIDTH - 12
    top = 10 + 20 * legend_rows(labels, width) + (15 * lines + 6 if lines else 4)
    figure.layout.height += top - figure.layout.margin.t
    figure.layout.margin.t = top
    return figure


def site_ticks(sites: Sequence[str], width: float) -> tuple[list[int], list[str]]:
    """Tick places and texts for the axis of sites, as many as fit in `width` pixels.

    Layers are labelled every 1, 2, 4, 5, 8, 10, … sites; h, when there, always is, and a layer
    whose label would run into it is not.
    """
    count = len(sites)
    room = max(2, int(width / _TICK_PIXELS))
    steps = [1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 64]
    step = next((step for step in steps if count / step <= room), 100)
    last = count - 1
    has_final = sites[last] == "h"
    places = [
        place
        for place, site in enumerate(sites)
        if site != "h"
        and int(site.partition(".")[2]) % step == 0
        and not (has_final and (last - place) < max(1.0, 0.6 * step))
    ]
    texts = [sites[place].partition(".")[2] for place in places]
    return ([*places, last], [*texts, "h"]) if has_final else (places, texts)


def site_axis(sites: Sequence[str], width: float, title: str | None = None) -> dict[str, object]:
    """Options of an x axis along `sites` in a panel of `width` pixels."""
    places, texts = site_ticks(sites, width)
    pad = 0.5 if len(sites) < 20 else 0.8
    axis: dict[str, object] = {
        "tickvals": places,
        "ticktext": texts,
        "range": [-pad, len(sites) - 1 + pad],
        "tickangle": 0,
    }
    if title is not None:
        axis["title_text"] = title
    return axis


def padded_range(
    values: Sequence[float], *, include: Sequence[float] = (), pad: float = 0.06
) -> list[float]:
    """An axis range around all finite values, with a margin of `pad` of the span on both sides."""
    numbers = np.asarray([*values, *include], dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size == 0:
        return [0.0, 1.0]
    low, high = float(numbers.min()), float(numbers.max())
    span = (high - low) or abs(high) or 1.0
    return [low - pad * span, high + pad * span]


def add_note(figure: go.Figure, text: str, *, x: float, y: float, **options: object) -> None:
    """A line of text at paper coordinates; `xanchor`, `yanchor`, `font_color`… as options."""
    figure.add_annotation(
        **{
            "text": text,
            "x": x,
            "y": y,
            "xref": "paper",
            "yref": "paper",
            "showarrow": False,
            "font_size": LABEL_SIZE,
            **options,
        }
    )


def outline(
    values: Float[np.ndarray, " sample"], edges: Float[np.ndarray, " edge"]
) -> tuple[list[float], list[float]]:
    """The outline of a histogram, as the share of the sample per bin; shares sum to 1.

    Values outside the edges count in the first or last bin, so nothing is dropped.
    """
    inside = np.clip(values, edges[0], edges[-1])
    shares = np.histogram(inside, bins=edges)[0] / max(len(values), 1)
    filled = np.flatnonzero(shares)
    # Only as far as there are counts: empty bins would draw a line along the axis.
    first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, 0)
    x = np.repeat(edges[first : last + 2], 2)
    y = np.concatenate([[0.0], np.repeat(shares[first : last + 1], 2), [0.0]])
    return x.tolist(), y.tolist()


def add_outline(
    figure: go.Figure,
    values: Float[np.ndarray, " sample"],
    edges: Float[np.ndarray, " edge"],
    style: SeriesStyle,
    *,
    label: str | None = None,
    opacity: float = 0.3,
    row: int | None = None,
    col: int | None = None,
) -> None:
    """A histogram as a filled outline; dashes and fill follow the series' style."""
    x, y = outline(values, edges)
    name = label if label is not None else style.label
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            fill="tozeroy",
            fillcolor=translucent(style.colour, opacity),
            line={"color": style.colour, "width": 1.3, "dash": style.dash},
            name=name,
            legendgroup=name,
            legendrank=1000 if style.dash == "solid" else 1100,
        ),
        row=row,
        col=col,
    )
