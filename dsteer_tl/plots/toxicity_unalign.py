"""Scaling the keys of a few neurons: does the attribute come back, and at what perplexity?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.panels import add_line, finish, padded_range, panel_grid
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.tables import check_table, floats, ordered_names
from dsteer_tl.plots.theme import DASH, INK, NULL_COLOUR, ORANGE, PURPLE, SeriesStyle, series_style
from dsteer_tl.plots.toxicity_axes import log_axis
from dsteer_tl.plots.toxicity_parts import add_level, counted, words

UNALIGN_COLUMNS = (
    "host",
    "group",
    "keys",
    "scale",
    "neurons",
    "attribute_score",
    "low",
    "high",
    "perplexity",
    "perplexity_low",
    "perplexity_high",
    "prompts",
)

_KEYS = {"in": "W_in scaled", "gate": "W_gate scaled", "both": "both scaled"}
_GROUPS = {
    "attribute": SeriesStyle("attribute", PURPLE, symbol="diamond"),
    "most_active": SeriesStyle("most active", ORANGE, symbol="triangle-up"),
    "random": SeriesStyle("random", NULL_COLOUR, symbol="x"),
}
_PANELS = (
    ("attribute_score", "low", "high", "attribute score"),
    ("perplexity", "perplexity_low", "perplexity_high", "perplexity (log scale)"),
)


def toxicity_unalign(unalign: pd.DataFrame) -> go.Figure:
    """Attribute score and perplexity while the key vectors of a group of neurons are scaled.

    Groups of random and of the most active neurons are the controls, and so is the base under the
    same scaling, dashed: a score that rises in the base as well says nothing of an alignment that
    is undone. The perplexity is what it costs (claim 28). The dotted lines are the unscaled models.

    Args:
        unalign: Table `toxicity_unalign`, with 95 % intervals; a column of panels for each set of
            keys. Scores may be missing where the scorer could not run; that row is left out then.

    Raises:
        ShapeError: The table lacks columns or rows.
    """
    check_table(unalign, "toxicity_unalign", UNALIGN_COLUMNS)
    keys = ordered_names(unalign, "keys", tuple(_KEYS))
    panels = [p for p in _PANELS if np.isfinite(unalign[p[0]]).any()] or [_PANELS[1]]
    side_by_side = len(keys) == 1 and len(panels) > 1
    cells = {
        (panel[0], key): (1, p + 1) if side_by_side else (p + 1, k + 1)
        for p, panel in enumerate(panels)
        for k, key in enumerate(keys)
    }
    down, across = max(cells.values())[0], max(cell[1] for cell in cells.values())
    titles = [_KEYS.get(key, words(key)) for key in keys] if not side_by_side else []
    figure = panel_grid(
        down,
        across,
        titles=[*titles, *[""] * (down * across - len(titles))] if len(keys) > 1 else None,
        height=100 + (200 if down == 1 else 300),
        left=58,
        gap_x=66 if side_by_side else 22,
        gap_y=18,
        share_x=not side_by_side,
        share_y=not side_by_side,
    )
    span = (float(unalign["scale"].min()), float(unalign["scale"].max()))
    for column, low, high, title in panels:
        drawn: list[float] = []
        for key in keys:
            cell = cells[column, key]
            here = unalign[unalign["keys"] == key]
            drawn += _add_groups(figure, here, (column, low, high), cell)
            drawn += _add_unscaled(figure, here, column, span, cell)
        options = (
            log_axis(drawn, most=5)
            if column == "perplexity"
            else {"range": padded_range(drawn), "nticks": 6}
        )
        for key in keys:
            row, col = cells[column, key]
            figure.update_yaxes(**options, row=row, col=col)
        row, col = cells[column, keys[0]]
        figure.update_yaxes(title_text=title, row=row, col=col)
    pad = 0.04 * (span[1] - span[0])
    ticks = sorted({float(scale) for scale in unalign["scale"]})
    kept = [t for t in ticks if t == ticks[0] or t - span[0] >= 0.12 * (span[1] - span[0])]
    figure.update_xaxes(
        range=[span[0] - pad, span[1] + pad],
        tickvals=kept,
        ticktext=[f"×{tick:g}" for tick in kept],
    )
    figure.update_xaxes(title_text="scale of the keys", row=down)
    # One name a group, by its solid line; dashes have an entry of their own.
    figure.for_each_trace(
        lambda t: t.update(legendrank=900, showlegend=t.line.dash == "solid"),
        {"mode": "lines+markers"},
    )
    if (unalign["host"] == "base").any():
        figure.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="lines",
                name="in the base",
                legendgroup="in the base",
                legendrank=1100,
                line={"color": INK, "dash": DASH, "width": 1.4},
            ),
            row=1,
            col=1,
        )
    finish(figure)
    neurons = counted(floats(unalign, "neurons"), "neurons")
    prompts = counted(floats(unalign, "prompts"), "prompts")
    notes = [f"{neurons} a group, {prompts}; bands: 95 % CI."]
    if len(panels) < len(_PANELS):
        notes[0] += " NOT RUN: attribute score."
    footnotes(figure, notes)
    return figure


def _add_groups(
    figure: go.Figure, rows: pd.DataFrame, columns: tuple[str, str, str], cell: tuple[int, int]
) -> list[float]:
    """A line per host and group; every value drawn, for the range of the axis."""
    value, low, high = columns
    drawn: list[float] = []
    for host in ordered_names(rows, "host", ("base", "policy")):
        for group in ordered_names(rows, "group", tuple(_GROUPS)):
            line = rows[(rows["host"] == host) & (rows["group"] == group)]
            line = line[np.isfinite(line[value])].sort_values("scale")
            if line.empty:
                continue
            known = _GROUPS.get(group, SeriesStyle(words(group), NULL_COLOUR, symbol="cross"))
            banded = host == "policy"
            style = known if banded else replace(known, dash=DASH)
            add_line(
                figure,
                floats(line, "scale"),
                floats(line, value),
                style,
                low=floats(line, low) if banded else None,
                high=floats(line, high) if banded else None,
                clip=(0.0, 1.0) if value == "attribute_score" else None,
                width=2 if banded else 1.4,
                row=cell[0],
                col=cell[1],
            )
            drawn += floats(line, value)
            if banded:
                drawn += floats(line, low) + floats(line, high)
    return drawn


def _add_unscaled(
    figure: go.Figure,
    rows: pd.DataFrame,
    column: str,
    span: tuple[float, float],
    cell: tuple[int, int],
) -> list[float]:
    """Levels of both models at scale 1, where every group is the same model."""
    levels: list[float] = []
    for host in ordered_names(rows, "host", ("base", "policy")):
        still = rows[(rows["host"] == host) & ((rows["scale"] - 1).abs() < 1e-9)]
        if len(still):
            levels.append(float(still[column].iloc[0]))
            label = f"unscaled {host}"
            add_level(
                figure, levels[-1], span, series_style(host).colour, label, row=cell[0], col=cell[1]
            )
    return levels
