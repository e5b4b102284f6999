"""How little the weights move, tensor by tensor, beside a random change of equal norm."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import escape_text
from dsteer_tl.plots.panels import finish, panel_grid
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.tables import check_table, floats, ordered_names
from dsteer_tl.plots.theme import (
    BAND_INK,
    DASH,
    GREEN,
    INK,
    NULL_COLOUR,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    SeriesStyle,
)
from dsteer_tl.plots.toxicity_axes import log_axis, plain_power
from dsteer_tl.plots.toxicity_parts import add_level

WEIGHT_COLUMNS = (
    "tensor",
    "kind",
    "cosine",
    "cosine_random",
    "norm_difference",
    "relative_change",
)

#: Cosine of each tensor before and after, above this; and the norm's relative difference, below
#: (Lee et al. 2024, sec. 5.1; claim 24).
PUBLISHED_COSINE = 0.99
PUBLISHED_NORM_DIFFERENCE = 1e-5

_KINDS = {
    "attention": SeriesStyle("attention", SKY_BLUE),
    "mlp_key": SeriesStyle("MLP keys", ORANGE, symbol="triangle-up"),
    "mlp_value": SeriesStyle("MLP values", PURPLE, symbol="diamond"),
    "norm": SeriesStyle("norms", GREEN, symbol="square"),
    "embedding": SeriesStyle("embedding", INK, symbol="star"),
    "unembedding": SeriesStyle("unembedding", INK, symbol="cross"),
}
_OTHER = SeriesStyle("other", INK, symbol="pentagon")
_RANDOM = SeriesStyle("random change, equal norm", NULL_COLOUR, DASH, "x")


def _add_points(
    figure: go.Figure, rows: pd.DataFrame, column: str, style: SeriesStyle, col: int
) -> None:
    """A mark per tensor; the control is a line through its tensors, as its marks lie on theirs."""
    control = style.dash != "solid"
    rows = rows.sort_values("relative_change", kind="stable") if control else rows
    figure.add_trace(
        go.Scatter(
            x=floats(rows, "relative_change"),
            y=floats(rows, column),
            mode="lines" if control else "markers",
            name=style.label,
            legendgroup=style.label,
            legendrank=1100 if control else 1000,
            line={"color": style.colour, "dash": style.dash, "width": 1.8},
            marker={
                "symbol": style.symbol,
                "color": style.colour,
                "size": 6,
                "opacity": 0.8,
                "line": {"width": 0},
            },
            customdata=[escape_text(str(name)) for name in rows["tensor"]],
            hovertemplate="%{customdata}: %{y:.2e} at change %{x:.2e}<extra></extra>",
        ),
        row=1,
        col=col,
    )


def toxicity_weights(weights: pd.DataFrame) -> go.Figure:
    """1 − cosine and the difference of norms of every tensor, against its relative change.

    A change of relative size r that knows nothing of the weights has 1 − cosine ≈ r²/2 in high
    dimension, so a cosine near 1 says that r is small and no more: the random change of equal norm
    lies on the same line (claim 24). Tensors that did not change have no place on log axes and are
    counted below.

    Args:
        weights: Table `toxicity_weights`.

    Raises:
        ShapeError: The table lacks columns or rows.
    """
    check_table(weights, "toxicity_weights", WEIGHT_COLUMNS)
    turned = np.maximum(1 - weights["cosine"].to_numpy(np.float64), 0.0)
    random = np.maximum(1 - weights["cosine_random"].to_numpy(np.float64), 0.0)
    table = weights.assign(turned=turned, turned_random=random)
    table = table.sort_values("tensor", kind="stable")
    moved = table[(table["relative_change"] > 0) & (table["turned"] > 0)]
    figure = panel_grid(
        1,
        2,
        titles=["turned by", "lengthened or shortened by"],
        height=330,
        left=62,
        gap_x=74,
    )
    for kind in ordered_names(moved, "kind", tuple(_KINDS)):
        rows = moved[moved["kind"] == kind]
        style = _KINDS.get(kind, _OTHER)
        _add_points(figure, rows, "turned", style, 1)
        _add_points(figure, rows, "norm_difference", style, 2)
    _add_points(figure, moved, "turned_random", _RANDOM, 1)
    change = log_axis(floats(moved, "relative_change"), most=5)
    span = (10.0 ** change["range"][0], 10.0 ** change["range"][1])
    for col, level in ((1, 1 - PUBLISHED_COSINE), (2, PUBLISHED_NORM_DIFFERENCE)):
        add_level(figure, level, span, BAND_INK, "published bounds", row=1, col=col)
    heights = floats(moved, "turned") + floats(moved, "turned_random")
    figure.update_xaxes(**change, title_text="relative change ‖Δθ‖ / ‖θ‖")
    figure.update_yaxes(
        **log_axis(heights, include=[1 - PUBLISHED_COSINE]), title_text="1 − cosine", col=1
    )
    figure.update_yaxes(
        **log_axis(floats(moved, "norm_difference"), include=[PUBLISHED_NORM_DIFFERENCE]),
        title_text="relative difference of norms",
        col=2,
    )
    finish(figure)
    still = len(table) - len(moved)
    count = f"{len(moved):,} tensors" + (
        f", {still:,} more did not move measurably" if still else ""
    )
    bound = plain_power(PUBLISHED_NORM_DIFFERENCE)
    footnotes(
        figure,
        [
            f"{count}. Published bounds: cosine > {PUBLISHED_COSINE}, mean difference of norms "
            f"< {bound}."
        ],
        below=48,
    )
    return figure
