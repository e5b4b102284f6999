"""Weight space against activation space: how many directions ΔW has, and how many ΔH."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.panels import add_line, finish, panel_grid
from dsteer_tl.plots.tables import check_table, floats, ordered_names
from dsteer_tl.plots.theme import (
    BLUE,
    DASH,
    INK,
    NULL_COLOUR,
    ORANGE,
    PURPLE,
    SHIFT_COLOUR,
    SKY_BLUE,
    VERMILLION,
    SeriesStyle,
    series_style,
)
from dsteer_tl.plots.toxicity_parts import words

WEIGHT_SPECTRA_COLUMNS = (
    "tensor",
    "layer",
    "kind",
    "index",
    "share",
    "effective_rank",
    "v_star_cos",
    "null_share",
    "null_effective_rank",
    "null_v_star_cos",
)

STYLES = {
    "attention_query": SeriesStyle("W query", BLUE),
    "attention_key": SeriesStyle("W key", SKY_BLUE, symbol="square"),
    "attention_value": SeriesStyle("W value", PURPLE, symbol="triangle-up"),
    "attention_input": SeriesStyle("W query, key, value", BLUE),
    "attention_output": SeriesStyle("W attention out", VERMILLION, symbol="square"),
    "mlp_in": SeriesStyle("W MLP in", "#8A6100", symbol="triangle-down"),
    "mlp_gate": SeriesStyle("W MLP gate", ORANGE, symbol="triangle-up"),
    "mlp_out": SeriesStyle("W MLP out", INK, symbol="cross"),
    "shift": SeriesStyle("ΔH of the shifts", SHIFT_COLOUR, symbol="diamond"),
}
_PANELS = (
    ("rank", "effective rank ÷ Gaussian’s"),
    ("ratio", "σ<sub>2</sub> / σ<sub>1</sub>"),
    ("cos", "|cos(u<sub>1</sub>, v*)|"),
)
_NULL = SeriesStyle("null: Gaussian matrix of the same shape", NULL_COLOUR, DASH, "x")


def weight_spectra(weight_spectra: pd.DataFrame) -> go.Figure:
    """Rank and direction of ΔW by layer on the left, of ΔH on the right, on the same axes.

    Effective rank is exp of the spectral entropy, divided by that of a Gaussian matrix of the same
    shape: 1 is a change without any structure. Below, σ₂/σ₁, and the cosine of the first singular
    vector with v* for the matrices that write into the stream.

    Args:
        weight_spectra: Table `weight_spectra`.

    Raises:
        ShapeError: The table lacks columns or rows, or has no matrix inside a block.
    """
    check_table(weight_spectra, "weight_spectra", WEIGHT_SPECTRA_COLUMNS)
    lines = _by_matrix(weight_spectra[weight_spectra["layer"] >= 0])
    if lines.empty:
        raise ShapeError(
            "table 'weight_spectra' has no matrix inside a block; expected layers from 0: "
            "the policy's blocks were not trained, or not captured"
        )
    kinds = ordered_names(lines, "kind", tuple(STYLES))
    matrices = int((lines["kind"] != "shift").sum())
    figure = panel_grid(
        len(_PANELS),
        2,
        titles=[f"weights, ΔW: {matrices} matrices", "activations, ΔH"]
        + [""] * (2 * len(_PANELS) - 2),
        height=560,
        gap_x=16,
        gap_y=18,
        share_x=True,
        share_y=True,
    )
    for row, (name, title) in enumerate(_PANELS, start=1):
        for kind in kinds:
            # An odd name has the look of a control, under its own name.
            style = STYLES.get(kind) or SeriesStyle(words(kind), series_style(kind).colour)
            here = lines[lines["kind"] == kind].groupby("layer", sort=True)[[name]].mean()
            here = here[np.isfinite(here[name])]
            if here.empty:
                continue
            column = 2 if kind == "shift" else 1
            add_line(
                figure,
                [float(v) for v in here.index],
                floats(here, name),
                style,
                row=row,
                col=column,
            )
        for column, chosen in ((1, lines["kind"] != "shift"), (2, lines["kind"] == "shift")):
            null = lines[chosen].groupby("layer", sort=True)[[f"null_{name}"]].mean()
            null = null[np.isfinite(null[f"null_{name}"])]
            if not null.empty:
                add_line(
                    figure,
                    [float(v) for v in null.index],
                    floats(null, f"null_{name}"),
                    _NULL,
                    width=1.4,
                    row=row,
                    col=column,
                )
        figure.update_yaxes(title_text=title, row=row, col=1)
        figure.update_yaxes(range=[0, 1.05], row=row)
    last = int(lines["layer"].max())
    step = max(1, math.ceil((last + 1) / 10))
    figure.update_xaxes(
        range=[-0.4, last + 0.4], tickvals=list(range(0, last + 1, step)), showticklabels=False
    )
    figure.update_xaxes(title_text="layer", showticklabels=True, row=len(_PANELS))
    return finish(figure)


def _by_matrix(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a matrix: what the panels show, and their nulls."""
    first = rows[rows["index"] == 1].set_index("tensor")
    second = rows[rows["index"] == 2].set_index("tensor").reindex(first.index)
    return pd.DataFrame(
        {
            "layer": first["layer"],
            "kind": first["kind"],
            "rank": first["effective_rank"] / first["null_effective_rank"],
            "null_rank": 1.0,
            "ratio": np.sqrt(second["share"] / first["share"]),
            "null_ratio": np.sqrt(second["null_share"] / first["null_share"]),
            "cos": first["v_star_cos"],
            "null_cos": first["null_v_star_cos"],
        }
    )
