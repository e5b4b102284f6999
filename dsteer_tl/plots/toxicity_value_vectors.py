"""Value vectors closest to the probe: how close, in which layers, of how many directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.panels import (
    add_line,
    add_outline,
    finish,
    padded_range,
    panel_grid,
    panel_width,
)
from dsteer_tl.plots.tables import check_table, floats, ordered_names
from dsteer_tl.plots.theme import DOT, INK
from dsteer_tl.plots.toxicity_axes import layer_axis
from dsteer_tl.plots.toxicity_parts import group_style, thin_marks

VALUE_VECTOR_COLUMNS = ("group", "rank", "layer", "cosine", "listed_share")
SVD_COLUMNS = ("group", "component", "singular_value", "share")

_GROUPS = ("attribute", "shuffled_probe", "random")


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean of the first 1, 2, … values."""
    numbers = np.asarray(values, dtype=np.float64)
    return [float(mean) for mean in np.cumsum(numbers) / np.arange(1, len(numbers) + 1)]


def toxicity_value_vectors(value_vectors: pd.DataFrame, svd: pd.DataFrame) -> go.Figure:
    """Cosines of the N value vectors closest to the probe, their layers, tokens and spectrum.

    The best of many vectors are close to any direction: hence the N that are closest to a probe of
    shuffled labels, and N random ones. A singular value above the random group's says that the
    group shares a direction (claim 21; Lee et al. 2024, sec. 3.1).

    Args:
        value_vectors: Table `toxicity_value_vectors`; `cosine` is with the group's own probe,
            `listed_share` the share of listed words among the 10 tokens that a vector promotes.
        svd: Table `toxicity_svd`, of the group's unit-norm vectors.

    Raises:
        ShapeError: A table lacks columns or rows.
    """
    check_table(value_vectors, "toxicity_value_vectors", VALUE_VECTOR_COLUMNS)
    check_table(svd, "toxicity_svd", SVD_COLUMNS)
    groups = ordered_names(value_vectors, "group", _GROUPS)
    counts = value_vectors.groupby("group").size()
    figure = panel_grid(
        2,
        2,
        titles=[
            f"cosine with the probe, N = {int(counts.max())}",
            "layers they lie in",
            "listed words among top-10 tokens",
            "singular values of unit vectors",
        ],
        height=430,
        gap_x=60,
        gap_y=66,
    )
    layers = int(value_vectors["layer"].max()) + 1
    edges = np.arange(layers + 1) - 0.5
    cosines: list[float] = []
    for group in groups:
        rows = value_vectors[value_vectors["group"] == group]
        rows = rows.sort_values(["rank", "layer"])
        style = group_style(group)
        rank = floats(rows, "rank")
        # Random vectors come in no order.
        ordered = sorted(floats(rows, "cosine"), reverse=True)
        cosines += ordered
        add_line(figure, rank, ordered, style, width=1.8, row=1, col=1)
        add_outline(
            figure,
            rows["layer"].to_numpy(np.float64),
            edges,
            style,
            opacity=0.3 if group == "attribute" else 0.08,
            row=1,
            col=2,
        )
        listed = _running_mean(floats(rows, "listed_share"))
        add_line(figure, rank, listed, style, width=1.8, row=2, col=1)
    for group in ordered_names(svd, "group", _GROUPS):
        rows = svd[svd["group"] == group].sort_values("component")
        component = [place + 1 for place in floats(rows, "component")]
        style = group_style(group)
        add_line(figure, component, floats(rows, "singular_value"), style, width=1.8, row=2, col=2)
    thin_marks(figure)
    figure.add_hline(0, line={"color": INK, "width": 1, "dash": DOT}, row=1, col=1)
    last = float(value_vectors["rank"].max())
    figure.update_xaxes(title_text="rank by cosine", range=[0, 1.03 * last + 0.5], col=1)
    figure.update_xaxes(
        **layer_axis(value_vectors, panel_width(2, gap_x=60), half=False),
        title_text="layer",
        row=1,
        col=2,
    )
    figure.update_xaxes(range=[-0.6, layers - 0.4], row=1, col=2)
    last = float(svd["component"].max()) + 1
    figure.update_xaxes(title_text="component", range=[0, 1.03 * last + 0.5], row=2, col=2)
    figure.update_yaxes(
        range=padded_range(cosines, include=(0.0,)), title_text="cosine", row=1, col=1
    )
    figure.update_yaxes(rangemode="tozero", title_text="share of vectors", row=1, col=2)
    figure.update_yaxes(rangemode="tozero", title_text="mean over the first ranks", row=2, col=1)
    figure.update_yaxes(rangemode="tozero", title_text="σ / √N", row=2, col=2)
    return finish(figure)
