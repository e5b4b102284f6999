"""How much of the policy's effect the attribute's neurons carry when only they are patched."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.panels import finish, padded_range, panel_grid
from dsteer_tl.plots.tables import check_table, floats, ordered_names
from dsteer_tl.plots.theme import BAND_FILL, DOT, INK, NULL_COLOUR, SeriesStyle, translucent
from dsteer_tl.plots.toxicity_axes import forest_axis
from dsteer_tl.plots.toxicity_parts import add_marks, counted, group_style, words

TOXICITY_PATCHING_COLUMNS = (
    "group",
    "neurons",
    "statistic",
    "effect",
    "share",
    "low",
    "high",
    "draws_low",
    "draws_high",
    "prompts",
)

#: Share of the effect that toxic neurons carry (Yang et al. 2024; claim 30).
PUBLISHED_SHARE = (0.025, 0.24)

_STATISTICS = {
    "probe_projection": "change along the probe",
    "kl": "KL(policy‖base) of the next token",
}
_GROUPS = ("attribute", "random", "all")
_RANGE_COLOUR = translucent(NULL_COLOUR, 0.4)
_EFFECTS = {
    "total": SeriesStyle("total effect", INK),
    "direct": SeriesStyle("direct effect", INK),
}


def toxicity_patching(patching: pd.DataFrame) -> go.Figure:
    """Share of the policy's effect recovered when only a group's activations are patched in.

    The direct effect goes straight from the neurons to the output, the total effect also through
    later layers (claim 30). Random groups of equal size are the control: their mean has an interval
    over prompts, and a grey bar spans the groups. All neurons together are the most that neurons
    can carry.

    Args:
        patching: Table `toxicity_patching`, with 95 % intervals; the range of draws may be missing.

    Raises:
        ShapeError: The table lacks columns or rows.
    """
    check_table(patching, "toxicity_patching", TOXICITY_PATCHING_COLUMNS)
    statistics = ordered_names(patching, "statistic", tuple(_STATISTICS))
    effects = ordered_names(patching, "effect", tuple(_EFFECTS))
    lines = [
        (group, neurons)
        for group in ordered_names(patching, "group", _GROUPS)
        for neurons in sorted({int(n) for n in patching.loc[patching["group"] == group, "neurons"]})
    ]
    figure = panel_grid(
        1,
        len(statistics),
        titles=[_STATISTICS.get(name, words(name)) for name in statistics],
        height=112 + 36 * len(lines),
        left=104,
        gap_x=20,
    )
    axis = forest_axis([_line(group, neurons) for group, neurons in lines])
    step = 0.3
    for col, statistic in enumerate(statistics, start=1):
        here = patching[patching["statistic"] == statistic]
        ends: list[float] = []
        # Shapes lie in the order in which they are added: first the band, below the bars of draws.
        figure.add_vrect(
            *PUBLISHED_SHARE,
            fillcolor=BAND_FILL,
            line_width=0,
            layer="below",
            row=1,
            col=col,
            exclude_empty_subplots=False,
        )
        for order, effect in enumerate(effects):
            offset = (order - (len(effects) - 1) / 2) * step
            for place, (group, neurons) in enumerate(lines):
                rows = here[(here["group"] == group) & (here["neurons"] == neurons)]
                rows = rows[rows["effect"] == effect].iloc[:1]
                low, high = floats(rows, "low"), floats(rows, "high")
                style = group_style(group)
                ends += [*floats(rows, "share"), *low, *high]
                ends += _add_range(figure, rows, place + offset, col)
                add_marks(
                    figure,
                    floats(rows, "share"),
                    [place + offset] * len(rows),
                    # A cross has no inside to be open or filled.
                    replace(style, symbol="circle") if style.symbol == "x" else style,
                    low=low,
                    high=high,
                    open_symbol=effect == "direct",
                    showlegend=False,
                    row=1,
                    col=col,
                )
        figure.add_vline(0, line={"color": INK, "width": 1, "dash": DOT}, row=1, col=col)
        figure.update_yaxes(**axis, row=1, col=col)
        figure.update_yaxes(showticklabels=col == 1, row=1, col=col)
        figure.update_xaxes(
            range=padded_range(ends, include=(0.0, PUBLISHED_SHARE[1])),
            tickformat=".0%",
            nticks=6,
            title_text=f"recovered share, {counted(floats(here, 'prompts'), 'prompts')}",
            row=1,
            col=col,
        )
    figure.update_yaxes(title_text="neurons patched", row=1, col=1)
    _add_legend(figure, effects, ranged=bool(np.isfinite(floats(patching, "draws_low")).any()))
    return finish(figure)


def _line(group: str, neurons: int) -> str:
    """How many neurons of which group, as a label of the forest."""
    return f"all {neurons:,}" if group == "all" else f"{neurons:,} {words(group)}"


def _add_range(figure: go.Figure, rows: pd.DataFrame, y: float, col: int) -> list[float]:
    """A bar below the marks from the smallest to the largest share of the draws; its ends."""
    ends = [*floats(rows, "draws_low"), *floats(rows, "draws_high")]
    if len(ends) != 2 or not all(map(math.isfinite, ends)):
        return []
    figure.add_shape(
        type="line",
        x0=ends[0],
        x1=ends[1],
        y0=y,
        y1=y,
        line={"color": _RANGE_COLOUR, "width": 5},
        layer="below",
        row=1,
        col=col,
    )
    return ends


def _add_legend(figure: go.Figure, effects: list[str], *, ranged: bool) -> None:
    """Filled and open marks, the bar of the draws, and the published band."""
    for effect in effects:
        style = _EFFECTS.get(effect, SeriesStyle(words(effect), INK))
        symbol, width = ("circle-open", 1.4) if effect == "direct" else ("circle", 0)
        figure.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="markers",
                name=style.label,
                legendgroup=style.label,
                marker={"symbol": symbol, "size": 8, "color": INK, "line": {"width": width}},
            ),
            row=1,
            col=1,
        )
    if ranged:
        figure.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="markers",
                name="range of the random groups",
                legendgroup="range",
                legendrank=1100,
                marker={
                    "symbol": "line-ew",
                    "size": 16,
                    "line": {"width": 5, "color": _RANGE_COLOUR},
                },
            ),
            row=1,
            col=1,
        )
    low, high = (f"{100 * end:g}" for end in PUBLISHED_SHARE)
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=f"published: {low}–{high} %",
            legendgroup="published",
            legendrank=1200,
            marker={"symbol": "square", "size": 11, "color": BAND_FILL},
        ),
        row=1,
        col=1,
    )
