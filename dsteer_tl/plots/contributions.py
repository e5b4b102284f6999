"""Who writes v*: direct contributions of attention, MLPs and heads by layer."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import count_label, number, position_label
from dsteer_tl.plots.panels import add_line, finish, padded_range, panel_grid, site_axis
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.tables import check_table, floats, ordered_kinds, select_rows
from dsteer_tl.plots.theme import (
    BLUE,
    DOT,
    INK,
    NULL_COLOUR,
    ORANGE,
    TICK_SIZE,
    VERMILLION,
    WIDTH,
    SeriesStyle,
    translucent,
)

CONTRIBUTION_COLUMNS = (
    "component",
    "kind",
    "layer",
    "position_kind",
    "share",
    "low",
    "high",
    "null_low",
    "null_high",
    "n",
)

#: One look for attention and MLPs in all figures of attribution.
BLOCKS = {
    "attention": SeriesStyle("attention", BLUE),
    "mlp": SeriesStyle("MLP", ORANGE, symbol="square"),
}
_NULL = "random directions, 95 %"
_LEFT, _RIGHT = 54, 62
# A number fits in cells of this size; more heads than that are colours alone.
_CELL = (24, 12)


def contributions(table: pd.DataFrame, position_kind: str | None = None) -> go.Figure:
    """Shares of the shift along v* that each block writes, and below that each head.

    Attention, MLPs and embedding sum to 1, the heads of a layer (with the bias) to its attention.
    The grey band holds what the same components write along random directions, as a share of the
    same shift. Direct contributions: what a change in one layer makes a later layer write counts
    in the later one.

    Args:
        table: Table `contributions`, with 95 % intervals over prompts.
        position_kind: Where it is measured; the last prompt token if not given.

    Raises:
        ShapeError: The table lacks columns or rows, or has no such position kind.
    """
    check_table(table, "contributions", CONTRIBUTION_COLUMNS)
    kind = position_kind or ordered_kinds(table)[0]
    rows = select_rows(table, "contributions", position_kind=kind)
    heads = rows[rows["kind"] == "head"]
    layers = [f"resid_post.{layer}" for layer in sorted({int(n) for n in rows["layer"] if n >= 0})]
    title = f"{position_label(kind)}, {count_label([int(n) for n in rows['n']])}"
    lower = [] if heads.empty else ["attention by head"]
    number_of_heads = 0 if heads.empty else 1 + max(_head(name) for name in heads["component"])
    heights = [190.0, min(240.0, max(60.0, 17.0 * number_of_heads))][: 1 + len(lower)]
    figure = panel_grid(
        1 + len(lower),
        1,
        titles=[title, *lower],
        height=int(sum(heights)) + 98 + 34 * len(lower),
        left=_LEFT,
        right=_RIGHT,
        gap_y=34,
        share_x=True,
        row_heights=heights,
    )
    _blocks(figure, rows)
    if lower:
        _heads(figure, heads, (WIDTH - _LEFT - _RIGHT) / len(layers), heights[1] / number_of_heads)
    figure.update_xaxes(**site_axis(layers, WIDTH - _LEFT - _RIGHT))
    figure.update_xaxes(range=[-0.5, len(layers) - 0.5])
    figure.update_xaxes(title_text="layer", row=1 + len(lower))
    finish(figure)
    notes = [f"Embedding: {_percent(rows, 'embed')} of the shift."]
    if lower:
        bias = rows.loc[rows["kind"] == "bias", "share"]
        if bias.any():
            notes.append(f"Biases of all attentions together: {number(100 * bias.sum(), 1)} %.")
        notes.append("Numbers, in %: heads outside the 95 % range of random directions.")
    footnotes(figure, [" ".join(notes)])
    return figure


def _blocks(figure: go.Figure, rows: pd.DataFrame) -> None:
    drawn: list[float] = []
    blocks = rows[rows["kind"].isin(list(BLOCKS))]
    null = blocks.groupby("layer", sort=True).agg({"null_low": "min", "null_high": "max"})
    places = [float(layer) for layer in null.index]
    figure.add_trace(
        go.Scatter(
            x=[*places, *places[::-1]],
            y=[*floats(null, "null_high"), *floats(null, "null_low")[::-1]],
            fill="toself",
            fillcolor=translucent(NULL_COLOUR, 0.3),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            name=_NULL,
            legendgroup=_NULL,
            legendrank=1100,
        ),
        row=1,
        col=1,
    )
    drawn += [*floats(null, "null_high"), *floats(null, "null_low")]
    for kind, style in BLOCKS.items():
        line = blocks[blocks["kind"] == kind].sort_values("layer")
        low, high = floats(line, "low"), floats(line, "high")
        drawn += [*low, *high, *floats(line, "share")]
        add_line(
            figure,
            floats(line, "layer"),
            floats(line, "share"),
            style,
            low=low,
            high=high,
            row=1,
            col=1,
        )
    figure.add_hline(0, line={"color": INK, "width": 1, "dash": DOT}, row=1, col=1)
    figure.update_yaxes(
        title_text="share of ⟨δ, v*⟩",
        range=padded_range(drawn, include=(0.0,)),
        tickformat=".0%",
        row=1,
        col=1,
    )


def _heads(figure: go.Figure, heads: pd.DataFrame, wide: float, high: float) -> None:
    place = [(int(row["layer"]), _head(row["component"])) for _, row in heads.iterrows()]
    layers, last = 1 + max(layer for layer, _ in place), max(head for _, head in place)
    shares: list[list[float | None]] = [[None] * layers for _ in range(last + 1)]
    texts = [[""] * layers for _ in range(last + 1)]
    readable = wide >= _CELL[0] and high >= _CELL[1]
    for (layer, head), (_, row) in zip(place, heads.iterrows(), strict=True):
        share = float(row["share"])
        shares[head][layer] = share
        if readable and not row["null_low"] <= share <= row["null_high"]:
            texts[head][layer] = number(100 * share, 1)
    limit = max(float(heads["share"].abs().max()), 1e-12)
    figure.add_trace(
        go.Heatmap(
            x=list(range(layers)),
            y=list(range(last + 1)),
            z=shares,
            text=texts,
            texttemplate="%{text}",
            textfont={"size": TICK_SIZE - 1},
            hovertemplate="layer %{x}, head %{y}: %{z:.1%}<extra></extra>",
            coloraxis="coloraxis",
            xgap=1.5,
            ygap=1.5,
            name="head",
        ),
        row=2,
        col=1,
    )
    step = max(1, math.ceil(12 / high))
    figure.update_yaxes(
        title_text="head",
        autorange="reversed",
        showgrid=False,
        showline=False,
        ticks="",
        tickvals=list(range(0, last + 1, step)),
        row=2,
        col=1,
    )
    domain = figure.layout.yaxis2.domain
    figure.update_layout(
        coloraxis={
            "colorscale": [[0, VERMILLION], [0.5, "#FFFFFF"], [1, BLUE]],
            "cmin": -limit,
            "cmax": limit,
            "colorbar": {
                "thickness": 10,
                "len": domain[1] - domain[0],
                "y": (domain[0] + domain[1]) / 2,
                "yanchor": "middle",
                "x": 1.02,
                "xanchor": "left",
                "tickfont": {"size": TICK_SIZE},
                "tickformat": ".0%",
                "tickvals": [-limit, 0, limit],
                "outlinewidth": 0,
            },
        }
    )


def _head(component: str) -> int:
    return int(component.rsplit(".", 1)[1])


def _percent(rows: pd.DataFrame, kind: str) -> str:
    return f"{number(100 * float(rows.loc[rows['kind'] == kind, 'share'].sum()), 1)} %"
