"""Residual streams of base and policy as clouds along a held-out axis (Lee et al. 2024, Fig. 4)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import site_label
from dsteer_tl.plots.panels import finish, padded_range, panel_grid
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.tables import check_table, floats, ordered_names, select_rows
from dsteer_tl.plots.theme import GREY, series_style
from dsteer_tl.plots.toxicity_axes import PLACES, spread
from dsteer_tl.plots.toxicity_parts import counted, words

RESIDUAL_COLUMNS = ("place", "layer", "control", "model", "prompt", "axis", "pc1")

_CONTROLS = {"policy": "along the mean<br>difference", "permuted": "same, with<br>permuted labels"}
_MOST_LAYERS = 4


def toxicity_residuals(residuals: pd.DataFrame, place: str | None = None) -> go.Figure:
    """Clouds of base and policy along the mean-difference axis and the first principal component.

    Both axes are fitted on the other half of the prompts: on its own prompts the mean difference
    parts any two clouds. The lower row is the same with base and policy exchanged at random in the
    fitting half (claim 26). Both rows of a layer have the same axes.

    Args:
        residuals: Table `toxicity_residuals`.
        place: Which place of the blocks; resid_mid, as in the paper, where the table has it.

    Raises:
        ShapeError: The table lacks columns, rows or the place.
    """
    check_table(residuals, "toxicity_residuals", RESIDUAL_COLUMNS)
    place = place or ordered_names(residuals, "place", PLACES)[0]
    table = select_rows(residuals, "toxicity_residuals", place=place)
    layers = spread(sorted({int(layer) for layer in table["layer"]}), _MOST_LAYERS)
    controls = ordered_names(table, "control", tuple(_CONTROLS))
    prompts = counted([table["prompt"].nunique()], "prompts")
    figure = panel_grid(
        len(controls),
        len(layers),
        titles=[site_label(f"{place}.{layer}") for layer in layers]
        + [""] * (len(layers) * (len(controls) - 1)),
        height=90 + 150 * len(controls),
        left=62,
        right=10,
        gap_x=34,
        gap_y=16,
        share_x=True,
    )
    for col, layer in enumerate(layers, start=1):
        of_layer = table[table["layer"] == layer]
        wide = padded_range(floats(of_layer, "pc1"))
        high = padded_range(floats(of_layer, "axis"))
        for row, control in enumerate(controls, start=1):
            here = of_layer[of_layer["control"] == control]
            _add_clouds(figure, here, row, col)
            figure.update_xaxes(range=wide, nticks=4, row=row, col=col)
            figure.update_yaxes(range=high, nticks=5, row=row, col=col)
    figure.update_xaxes(title_text="PC 1", row=len(controls))
    for row, control in enumerate(controls, start=1):
        title = _CONTROLS.get(control, words(control))
        figure.update_yaxes(title_text=title, row=row, col=1)
    finish(figure)
    footnotes(figure, [f"Both axes are fitted on the other half of the prompts; {prompts}."])
    return figure


def _add_clouds(figure: go.Figure, rows: pd.DataFrame, row: int, col: int) -> None:
    """Points of both models, joined by prompt, under their ringed means."""
    x, y = _joined(rows)
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": GREY, "width": 0.6},
            opacity=0.35,
            hoverinfo="skip",
            showlegend=False,
        ),
        row=row,
        col=col,
    )
    means: dict[str, tuple[float, float]] = {}
    for model in ordered_names(rows, "model", ("base", "policy")):
        points = rows[rows["model"] == model].sort_values("prompt")
        style = series_style(model)
        across, along = floats(points, "pc1"), floats(points, "axis")
        means[model] = (float(np.mean(across)), float(np.mean(along)))
        figure.add_trace(
            go.Scatter(
                x=across,
                y=along,
                mode="markers",
                name=style.label,
                showlegend=False,
                marker={
                    "symbol": style.symbol,
                    "color": style.colour,
                    "size": 3.5,
                    "opacity": 0.35,
                    "line": {"width": 0},
                },
            ),
            row=row,
            col=col,
        )
    for model, (middle, height) in means.items():
        style = series_style(model)
        figure.add_trace(
            go.Scatter(
                x=[middle],
                y=[height],
                mode="markers",
                name=style.label,
                legendgroup=style.label,
                marker={
                    "symbol": style.symbol,
                    "color": style.colour,
                    # The policy's is smaller, for where both lie at one place.
                    "size": 12 if model == "base" else 9,
                    "line": {"width": 1.5, "color": "#FFFFFF"},
                },
            ),
            row=row,
            col=col,
        )


def _joined(rows: pd.DataFrame) -> tuple[list[float | None], list[float | None]]:
    """Segments from the base to the policy of every prompt, parted by gaps."""
    base, policy = (rows[rows["model"] == model] for model in ("base", "policy"))
    both = base.merge(policy, on="prompt", suffixes=("", "_policy")).sort_values("prompt")
    x: list[float | None] = []
    y: list[float | None] = []
    ends = [floats(both, name) for name in ("pc1", "pc1_policy", "axis", "axis_policy")]
    for x0, x1, y0, y1 in zip(*ends, strict=True):
        x += [x0, x1, None]
        y += [y0, y1, None]
    return x, y
