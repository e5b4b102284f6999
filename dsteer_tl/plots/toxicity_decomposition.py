"""What the shift is made of: changed value vectors, changed activations, attention, biases."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import count_label, position_label
from dsteer_tl.plots.panels import add_line, finish, padded_range, panel_grid, panel_width
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.tables import check_table, floats, ordered_kinds, ordered_names
from dsteer_tl.plots.theme import (
    BLUE,
    DOT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    SeriesStyle,
    series_style,
)
from dsteer_tl.plots.toxicity_axes import DEPTH_TITLE, along_depth, layer_axis, plain_power
from dsteer_tl.plots.toxicity_parts import PERMUTED, thin_marks

DECOMPOSITION_COLUMNS = (
    "place",
    "layer",
    "position_kind",
    "term",
    "control",
    "share",
    "low",
    "high",
    "error",
    "rows",
)

_TERMS = {
    "value_vectors": SeriesStyle("value vectors: Σ m Δv", GREEN, symbol="diamond"),
    "activations": SeriesStyle("activations: Σ Δm v", ORANGE, symbol="square"),
    "interaction": SeriesStyle("both: Σ Δm Δv", PURPLE, symbol="triangle-up"),
    "attention": SeriesStyle("attention", SKY_BLUE),
    "bias": SeriesStyle("biases", INK, symbol="triangle-down"),
    "embedding": SeriesStyle("embedding", BLUE, symbol="star"),
}
_PERMUTED = replace(PERMUTED, label="value vectors, Δv permuted")


def toxicity_decomposition(decomposition: pd.DataFrame) -> go.Figure:
    """Shares of δ along its own direction that each part of the blocks so far has written.

    The shares of all terms sum to 1 at every place. A term that is 0 everywhere is named below and
    not drawn. The control deals the same changes Δv to other neurons of their layer (claim 27; Lee
    et al. 2024, sec. 5.2).

    Args:
        decomposition: Table `toxicity_decomposition`, with 95 % intervals.

    Raises:
        ShapeError: The table lacks columns or rows, or has an unknown place.
    """
    check_table(decomposition, "toxicity_decomposition", DECOMPOSITION_COLUMNS)
    table = along_depth(decomposition, "toxicity_decomposition")
    kinds = ordered_kinds(table)
    gap = 16
    figure = panel_grid(
        1,
        len(kinds),
        titles=[
            f"{position_label(kind)}<br>"
            + count_label([int(n) for n in table.loc[table["position_kind"] == kind, "rows"]])
            for kind in kinds
        ],
        height=340,
        left=54,
        gap_x=gap,
        share_y=True,
    )
    terms = ordered_names(table, "term", tuple(_TERMS))
    absent = [term for term in terms if not table.loc[table["term"] == term, "share"].any()]
    drawn: list[float] = []
    for col, kind in enumerate(kinds, start=1):
        here = table[table["position_kind"] == kind]
        for term in terms:
            for control in ordered_names(here, "control", ("permuted_rows", "measured")):
                rows = here[(here["term"] == term) & (here["control"] == control)]
                if rows.empty or term in absent:
                    continue
                measured = control == "measured"
                share, low, high = (floats(rows, name) for name in ("share", "low", "high"))
                drawn += [*share, *low, *high]
                add_line(
                    figure,
                    floats(rows, "depth"),
                    share,
                    _TERMS.get(term, series_style(term)) if measured else _PERMUTED,
                    low=low,
                    high=high,
                    row=1,
                    col=col,
                )
        for level in (0, 1):
            figure.add_hline(level, line={"color": INK, "width": 1, "dash": DOT}, row=1, col=col)
    thin_marks(figure)
    figure.update_xaxes(
        **layer_axis(table, panel_width(len(kinds), left=54, gap_x=gap)),
        title_text=DEPTH_TITLE,
    )
    figure.update_yaxes(range=padded_range(drawn, include=(0.0, 1.0)))
    figure.update_yaxes(title_text="share of δ along its direction", row=1, col=1)
    finish(figure)
    error = plain_power(float(table["error"].max()))
    zero = ", ".join(_TERMS[term].label if term in _TERMS else term for term in absent)
    footnotes(
        figure,
        [
            (f"0 everywhere: {zero}. " if zero else "")
            + f"Terms add up to δ; the largest relative error is {error}."
        ],
    )
    return figure
