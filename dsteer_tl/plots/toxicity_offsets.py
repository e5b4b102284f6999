"""Is the shift of the residual stream one offset: leave-one-out cosines along depth."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import position_label
from dsteer_tl.plots.panels import add_line, finish, padded_range, panel_grid, panel_width
from dsteer_tl.plots.tables import check_table, floats, ordered_kinds, ordered_names
from dsteer_tl.plots.theme import DOT, GREEN, INK, SeriesStyle, series_style
from dsteer_tl.plots.toxicity_axes import DEPTH_TITLE, along_depth, layer_axis
from dsteer_tl.plots.toxicity_parts import counted, thin_marks

OFFSET_COLUMNS = (
    "place",
    "layer",
    "position_kind",
    "control",
    "cosine",
    "low",
    "high",
    "relative_norm",
    "prompts",
)

_LOOKS = {
    "policy": SeriesStyle("policy − base", GREEN, symbol="diamond"),
    "random_weights": series_style("random_weights"),
    "sign_flipped": replace(series_style("sign_flip"), symbol="triangle-down"),
}


def toxicity_offsets(offsets: pd.DataFrame) -> go.Figure:
    """Mean leave-one-prompt-out cosine of δ, and its relative norm, at every place in depth.

    A consistent offset has cosines near 1. Any change of the weights shifts all prompts alike to
    some degree, hence the random change of equal norm; flipped signs are what no offset gives
    (claim 26).

    Args:
        offsets: Table `toxicity_offsets`, with 95 % intervals over prompts.

    Raises:
        ShapeError: The table lacks columns or rows, or has an unknown place.
    """
    check_table(offsets, "toxicity_offsets", OFFSET_COLUMNS)
    table = along_depth(offsets, "toxicity_offsets")
    kinds = ordered_kinds(table)
    gap = 16
    titles = [
        f"{position_label(kind)}<br>"
        + counted(floats(table[table["position_kind"] == kind], "prompts"), "prompts")
        for kind in kinds
    ]
    figure = panel_grid(
        2,
        len(kinds),
        titles=titles + [""] * len(kinds),
        height=400,
        left=60,
        gap_x=gap,
        gap_y=18,
        share_x=True,
        share_y=True,
        row_heights=[0.62, 0.38],
    )
    cosines: list[float] = []
    norms: list[float] = []
    for col, kind in enumerate(kinds, start=1):
        here = table[table["position_kind"] == kind]
        for control in reversed(ordered_names(here, "control", tuple(_LOOKS))):
            rows = here[here["control"] == control]
            style = _LOOKS.get(control, series_style(control))
            low, high = floats(rows, "low"), floats(rows, "high")
            cosines += [*floats(rows, "cosine"), *low, *high]
            place = floats(rows, "depth")
            add_line(
                figure,
                place,
                floats(rows, "cosine"),
                style,
                low=low,
                high=high,
                clip=(-1.0, 1.0),
                row=1,
                col=col,
            )
            # Flipping signs leaves the norm as it is.
            if control != "sign_flipped":
                norms += floats(rows, "relative_norm")
                add_line(figure, place, floats(rows, "relative_norm"), style, row=2, col=col)
        figure.add_hline(0, line={"color": INK, "width": 1, "dash": DOT}, row=1, col=col)
    thin_marks(figure)
    width = panel_width(len(kinds), left=60, gap_x=gap)
    figure.update_xaxes(**layer_axis(table, width))
    figure.update_xaxes(title_text=DEPTH_TITLE, row=2)
    low_end, high_end = padded_range(cosines, include=(0.0,))
    figure.update_yaxes(range=[max(low_end, -1.05), min(high_end, 1.05)], row=1)
    figure.update_yaxes(range=[0, 1.08 * max([*norms, 1e-12])], nticks=5, row=2)
    figure.update_yaxes(title_text="leave-one-out cosine of δ", row=1, col=1)
    figure.update_yaxes(title_text="‖δ‖ / ‖h‖", row=2, col=1)
    return finish(figure)
