"""Figure 3: cosines of each prompt's shift with the steering vector, against their nulls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import count_label, number, position_label, site_label
from dsteer_tl.plots.panels import add_note, add_outline, finish, panel_grid
from dsteer_tl.plots.tables import check_table, ordered_kinds, ordered_names, select_rows
from dsteer_tl.plots.theme import BAND_FILL, BAND_INK, DASH, SHIFT_COLOUR, series_style

COSINE_COLUMNS = ("site", "position_kind", "prompt", "cos", "cos_loo")
COSINE_NULL_COLUMNS = ("site", "position_kind", "null", "cos")

#: Range of cos θ⁽ⁱ⁾ that the paper reports (D-STEER, Fig. 3; claim 6).
PUBLISHED_BAND = (0.92, 0.96)

NULLS = ("sign_flip", "random_weights", "centred_pairs")
BIN_WIDTH = 0.02


def cosine_histogram(
    cosines: pd.DataFrame, cosine_nulls: pd.DataFrame, site: str = "h"
) -> go.Figure:
    """Figure 3: histogram of leave-one-out cosines, one panel per position kind.

    The published band is shaded and the null distributions lie behind. Bars and outlines are
    shares of their own sample per bin of 0.02, so samples of unequal size compare.

    Args:
        cosines: Table `cosines`; `cos_loo` is the cosine with the mean of the *other* shifts.
        cosine_nulls: Table `cosine_nulls`.
        site: Which site to draw.

    Raises:
        ShapeError: A table lacks columns or rows, or the site is not there.
    """
    check_table(cosines, "cosines", COSINE_COLUMNS)
    check_table(cosine_nulls, "cosine_nulls", COSINE_NULL_COLUMNS)
    rows = select_rows(cosines, "cosines", site=site)
    nulls = cosine_nulls[cosine_nulls["site"] == site]
    kinds = ordered_kinds(rows)
    values = np.concatenate([rows["cos_loo"].to_numpy(float), nulls["cos"].to_numpy(float)])
    values = values[np.isfinite(values)]
    first = np.floor(min(float(values.min(initial=0.0)), 0.0) / BIN_WIDTH)
    edges = np.arange(first, round(1 / BIN_WIDTH) + 1) * BIN_WIDTH
    titles = []
    for kind in kinds:
        observed = rows.loc[rows["position_kind"] == kind, "cos_loo"].to_numpy(np.float64)
        inside = float(((observed >= PUBLISHED_BAND[0]) & (observed <= PUBLISHED_BAND[1])).mean())
        titles.append(
            f"{position_label(kind)}: mean {number(float(observed.mean()))}, "
            f"sd {number(float(observed.std()))}, "
            f"{100 * inside:.0f} % in the band, {count_label([len(observed)])}"
        )
    figure = panel_grid(
        len(kinds),
        1,
        titles=titles,
        height=108 * len(kinds) + 118,
        top=68,
        gap_y=30,
        share_x=True,
    )
    for index, kind in enumerate(kinds, start=1):
        here = nulls[nulls["position_kind"] == kind]
        for null in ordered_names(here, "null", NULLS):
            sample = here.loc[here["null"] == null, "cos"].to_numpy(np.float64)
            style = series_style(null)
            label = f"null: {style.label}"
            add_outline(figure, sample, edges, style, label=label, opacity=0.15, row=index, col=1)
        observed = rows.loc[rows["position_kind"] == kind, "cos_loo"].to_numpy(np.float64)
        shares = np.histogram(np.clip(observed, edges[0], edges[-1]), bins=edges)[0] / len(observed)
        filled = shares > 0
        figure.add_trace(
            go.Bar(
                x=((edges[:-1] + edges[1:]) / 2)[filled].tolist(),
                y=shares[filled].tolist(),
                width=BIN_WIDTH * 0.92,
                marker={"color": SHIFT_COLOUR, "opacity": 0.75, "line": {"width": 0}},
                name="leave-one-out cosine with v*",
                legendgroup="observed",
            ),
            row=index,
            col=1,
        )
        figure.add_vrect(
            *PUBLISHED_BAND, fillcolor=BAND_FILL, line_width=0, layer="below", row=index, col=1
        )
        figure.add_vline(
            float(observed.mean()),
            line={"color": SHIFT_COLOUR, "width": 1.5, "dash": DASH},
            row=index,
            col=1,
        )
    add_note(
        figure,
        "published<br>0.92–0.96",
        x=PUBLISHED_BAND[0] - 0.01,
        y=0.98,
        xref="x",
        yref="y domain",
        xanchor="right",
        yanchor="top",
        align="right",
        font_color=BAND_INK,
    )
    figure.update_xaxes(range=[float(edges[0]), 1.005], dtick=0.2)
    figure.update_yaxes(rangemode="tozero", nticks=4, title_text="share")
    figure.update_xaxes(
        title_text=f"cos(δ<sup>(i)</sup>, v*) at {site_label(site)},  bins of {BIN_WIDTH}",
        row=len(kinds),
        col=1,
    )
    figure.update_layout(bargap=0)
    return finish(figure)
