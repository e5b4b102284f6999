"""What follows from what the policy's components write: causal patching policy → base."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.contributions import BLOCKS
from dsteer_tl.plots.labels import count_label, position_label
from dsteer_tl.plots.panels import (
    add_line,
    finish,
    padded_range,
    panel_grid,
    panel_width,
    site_axis,
)
from dsteer_tl.plots.tables import (
    check_table,
    floats,
    ordered_kinds,
    ordered_names,
    select_rows,
)
from dsteer_tl.plots.theme import (
    BLACK,
    DASH,
    DOT,
    GREEN,
    INK,
    NULL_COLOUR,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    SeriesStyle,
)

COMPONENT_PATCHING_COLUMNS = (
    "group",
    "component",
    "layer",
    "positions",
    "position_kind",
    "effect",
    "recovered",
    "low",
    "high",
    "null",
    "n",
)

#: The share at which an effect counts as held.
HELD = 0.9
_COMPONENTS = {"attn_out": BLOCKS["attention"], "mlp_out": BLOCKS["mlp"]}
_GROUPS = {
    "from": SeriesStyle("all from layer l up", GREEN, symbol="diamond"),
    "upto": SeriesStyle("all up to layer l", PURPLE, symbol="triangle-up"),
}
_POSITIONS = {
    "prompt": SeriesStyle("prompt tokens", SKY_BLUE, symbol="star"),
    "last_prompt": SeriesStyle("last prompt token", VERMILLION, symbol="cross"),
    "response": SeriesStyle("response tokens", BLACK, symbol="triangle-down"),
}
_NULL = SeriesStyle("random change, equal norm", NULL_COLOUR, DASH, "x")


def component_patching(table: pd.DataFrame, position_kind: str | None = None) -> go.Figure:
    """Share of the policy's effect that its components recover in the base, by layer (claim 10).

    Above, attention or MLP of one layer alone; below, all of them from the last layer downwards
    and from the first upwards, with the line at 90 %; and from the last downwards where only some
    tokens are replaced. Left KL(policy‖base), right the margin of chosen over rejected. Shares of
    single components need not add up: later layers respond.

    Args:
        table: Table `component_patching`, with 95 % intervals over prompts.
        position_kind: Where the KL is measured; response tokens if not given and there are any.

    Raises:
        ShapeError: The table lacks columns or rows, or has no such position kind.
    """
    check_table(table, "component_patching", COMPONENT_PATCHING_COLUMNS)
    divergences = select_rows(table, "component_patching", effect="kl")
    kinds = ordered_kinds(divergences)
    kind = position_kind or ("response" if "response" in kinds else kinds[0])
    columns = [
        (
            f"KL(policy‖base)<br>{position_label(kind)}",
            select_rows(divergences, "component_patching", position_kind=kind),
        )
    ]
    margin = table[table["effect"] == "margin"]
    if not margin.empty:
        columns.append(("margin log p(y<sub>w</sub>) − log p(y<sub>l</sub>)<br>pairs", margin))
    layers = [f"resid_post.{layer}" for layer in sorted({int(n) for n in table["layer"]})]
    places = [name for name in _POSITIONS if name in set(table["positions"])]
    rows = 3 if places else 2
    gap = 16
    figure = panel_grid(
        rows,
        len(columns),
        titles=[
            f"{title}, {count_label([int(n) for n in part.loc[part['positions'] == 'all', 'n']])}"
            for title, part in columns
        ]
        + [""] * (len(columns) * (rows - 1)),
        height=60 + 165 * rows,
        left=60,
        gap_x=gap,
        gap_y=22,
        share_x=True,
        share_y=True,
    )
    drawn: list[list[float]] = [[] for _ in range(rows)]
    for col, (_, part) in enumerate(columns, start=1):
        everywhere = part[part["positions"] == "all"]
        single = everywhere[everywhere["group"] == "component"]
        for name in ordered_names(single, "component", tuple(_COMPONENTS)):
            line = single[single["component"] == name]
            drawn[0] += _line(figure, line, _COMPONENTS[name], row=1, col=col)
        for name, style in _GROUPS.items():
            line = everywhere[everywhere["group"] == name]
            drawn[1] += _line(figure, line, style, row=2, col=col)
        for name in places:
            line = part[(part["group"] == "from") & (part["positions"] == name)]
            drawn[2] += _line(figure, line, _POSITIONS[name], row=3, col=col)
        for row in range(1, rows + 1):
            figure.add_hline(0, line={"color": INK, "width": 1, "dash": DOT}, row=row, col=col)
            if row > 1:
                figure.add_hline(
                    HELD, line={"color": INK, "width": 1, "dash": DASH}, row=row, col=col
                )
    for row, values in enumerate(drawn, start=1):
        low, high = padded_range(values, include=(0.0, 1.0) if row > 1 else (0.0,))
        figure.update_yaxes(range=[max(low, -1.0), min(high, 1.3)], row=row)
    titles = ("one component", "all tokens", "some tokens, l up")
    for row, title in enumerate(titles[:rows], start=1):
        figure.update_yaxes(title_text=f"recovered share,<br>{title}", row=row, col=1)
    figure.update_xaxes(**site_axis(layers, panel_width(len(columns), left=60, gap_x=gap)))
    figure.update_xaxes(title_text="layer l", row=rows)
    return finish(figure)


def _line(
    figure: go.Figure, line: pd.DataFrame, style: SeriesStyle, *, row: int, col: int
) -> list[float]:
    """One series over its null; returns what decides the range."""
    if line.empty:
        return []
    line = line.sort_values("layer")
    x, share, null = (floats(line, name) for name in ("layer", "recovered", "null"))
    add_line(figure, x, null, _NULL, width=1, row=row, col=col)
    add_line(
        figure,
        x,
        share,
        style,
        low=floats(line, "low"),
        high=floats(line, "high"),
        clip=(-math.inf, 1.3),
        row=row,
        col=col,
    )
    return [*share, *(value for value in null if value > -0.6)]
