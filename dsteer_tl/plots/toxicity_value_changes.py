"""Do changes of value vectors point along the shift (Lee et al. 2024, Fig. 5)?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from dsteer_tl.plots.labels import number
from dsteer_tl.plots.panels import finish, outline, panel_grid
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.tables import check_table, floats
from dsteer_tl.plots.theme import BLUE, DOT, INK, ORANGE, SeriesStyle, translucent
from dsteer_tl.plots.toxicity_parts import PERMUTED, evenly, group_style

VALUE_CHANGE_COLUMNS = (
    "layer",
    "neuron",
    "group",
    "mean_activation",
    "cosine",
    "cosine_permuted",
)

#: Points that a browser draws without delay.
MOST_POINTS = 4000
_SEED = 0
_BINS = 40

_SIGNS = {
    "negative": SeriesStyle("activation < 0", BLUE),
    "positive": SeriesStyle("activation ≥ 0", ORANGE, symbol="square"),
}
_ATTRIBUTE = group_style("attribute")
_PERMUTED = replace(PERMUTED, label="Δv permuted")


def _view(values: Float[np.ndarray, " neuron"], share: float = 0.998) -> tuple[float, float]:
    """A range that holds all but the outermost values, with 0 inside."""
    if not len(values):
        return -1.0, 1.0
    rest = (1 - share) / 2
    low, high = np.quantile(values, [rest, 1 - rest])
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    span = (high - low) or 1.0
    return low - 0.05 * span, high + 0.05 * span


def toxicity_value_changes(value_changes: pd.DataFrame, points: int = MOST_POINTS) -> go.Figure:
    """Cosine of each neuron's Δv with the mean δ, against its mean activation.

    A neuron whose activation is negative moves the stream along δ when its value vector moves
    against it, so the two signs are told apart at the right. There, too, is the null: the same
    changes dealt to other neurons (claim 27).

    Args:
        value_changes: Table `toxicity_value_changes`, a row per neuron.
        points: Most neurons drawn as points, those of the attribute in any case; the histograms
            and all numbers are of all neurons.

    Raises:
        ShapeError: The table lacks columns or rows.
    """
    check_table(value_changes, "toxicity_value_changes", VALUE_CHANGE_COLUMNS)
    table = value_changes.sort_values(["layer", "neuron"], kind="stable")
    # A value vector that did not change has no direction to compare.
    table = table[np.isfinite(table["mean_activation"]) & np.isfinite(table["cosine"])]
    mean = table["mean_activation"].to_numpy(np.float64)
    ranges = (_view(mean), _view(table["cosine"].to_numpy(np.float64), 0.9995))
    figure = panel_grid(
        1,
        2,
        titles=["each neuron", "all neurons"],
        height=340,
        left=60,
        gap_x=18,
        column_widths=[0.68, 0.32],
        share_y=True,
    )
    drawn = _add_neurons(figure, table, points)
    _add_histograms(figure, table, ranges[1])
    figure.add_hline(0, line={"color": INK, "width": 1, "dash": DOT})
    figure.add_vline(0, line={"color": INK, "width": 1, "dash": DOT}, row=1, col=1)
    figure.update_xaxes(
        range=list(ranges[0]), title_text="mean activation in the base", nticks=7, row=1, col=1
    )
    figure.update_xaxes(rangemode="tozero", title_text="share", nticks=4, row=1, col=2)
    figure.update_yaxes(range=list(ranges[1]))
    figure.update_yaxes(title_text="cos(Δv<sub>i</sub>, δ)", row=1, col=1)
    finish(figure)
    beyond = int(((mean < ranges[0][0]) | (mean > ranges[0][1])).sum())
    agree, null = (_agreement(mean, table[name]) for name in ("cosine", "cosine_permuted"))
    shown = f"{drawn:,} of {len(table):,} neurons are points"
    outside = f", {beyond:,} neurons lie beyond the axis of activations" if beyond else ""
    footnotes(
        figure,
        [
            f"{shown}{outside}. Activation and cosine have the same sign in "
            f"{number(100 * agree, 1)} %; permuted: {number(100 * null, 1)} %."
        ],
    )
    return figure


def _agreement(mean: Float[np.ndarray, " neuron"], cosines: pd.Series) -> float:
    """Share of neurons whose activation and cosine have the same sign; NaN where there are none."""
    same = np.sign(mean) == np.sign(cosines.to_numpy(np.float64))
    return float(same.mean()) if len(same) else float("nan")


def _add_neurons(figure: go.Figure, table: pd.DataFrame, points: int) -> int:
    """Draw a sample of the neurons and all of the attribute's; how many."""
    chosen = table["group"] == "attribute"
    others = evenly(table[~chosen], max(points - int(chosen.sum()), 0), _SEED)
    negative = others["mean_activation"] < 0
    layers = (
        (others[negative], _SIGNS["negative"], 3.0, 0.35),
        (others[~negative], _SIGNS["positive"], 3.0, 0.35),
        (table[chosen], _ATTRIBUTE, 7.0, 0.9),
    )
    for rows, style, size, opacity in layers:
        figure.add_trace(
            go.Scatter(
                x=floats(rows, "mean_activation"),
                y=floats(rows, "cosine"),
                mode="markers",
                name=style.label,
                legendgroup=style.label,
                showlegend=style is _ATTRIBUTE,
                marker={
                    "symbol": style.symbol,
                    "color": style.colour,
                    "size": size,
                    "opacity": opacity,
                    "line": {"width": 0.8 if style is _ATTRIBUTE else 0, "color": "#FFFFFF"},
                },
                customdata=rows[["layer", "neuron"]].astype(int).to_numpy().tolist(),
                hovertemplate="MLP.v[%{customdata[0]},%{customdata[1]}]: %{y:.2f}<extra></extra>",
            ),
            row=1,
            col=1,
        )
    return len(others) + int(chosen.sum())


def _add_histograms(figure: go.Figure, table: pd.DataFrame, view: tuple[float, float]) -> None:
    edges = np.linspace(*view, _BINS + 1)
    negative = (table["mean_activation"] < 0).to_numpy()
    cosine = table["cosine"].to_numpy(np.float64)
    samples = (
        (table["cosine_permuted"].to_numpy(np.float64), _PERMUTED, 0.1),
        (cosine[negative], _SIGNS["negative"], 0.22),
        (cosine[~negative], _SIGNS["positive"], 0.22),
    )
    for values, style, opacity in samples:
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        y, x = outline(values, edges)
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="lines",
                fill="tozerox",
                fillcolor=translucent(style.colour, opacity),
                line={"color": style.colour, "width": 1.4, "dash": style.dash},
                name=style.label,
                legendgroup=style.label,
                legendrank=1000 if style.dash == "solid" else 1100,
            ),
            row=1,
            col=2,
        )
