"""Figure 4a: spectral entropy per layer, and where the policy's is lower."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import position_label
from dsteer_tl.plots.panels import (
    SITE_TITLE,
    add_line,
    finish,
    panel_grid,
    panel_width,
    site_axis,
)
from dsteer_tl.plots.tables import (
    along_sites,
    check_table,
    floats,
    ordered_sites,
    select_rows,
)
from dsteer_tl.plots.theme import POLICY_COLOUR, series_style, translucent

ENTROPY_COLUMNS = ("site", "position_kind", "matrix", "entropy", "ci_low", "ci_high")
MATRICES = ("random_weights", "base", "policy", "shift")


def collapse_regions(entropy: pd.DataFrame, sites: Sequence[str]) -> list[tuple[int, int]]:
    """Runs of sites where the entropy falls from base to policy.

    The rule is that the 95 % interval of the paired difference (matrix ``policy_minus_base``) lies
    below 0.

    Args:
        entropy: Rows of table `entropy` at one position kind.
        sites: The sites in order.

    Returns:
        First and last index of each run, along `sites`.
    """
    change = (
        entropy[entropy["matrix"] == "policy_minus_base"].set_index("site")["ci_high"].to_dict()
    )
    lower = [site in change and float(change[site]) < 0 for site in sites]
    runs: list[tuple[int, int]] = []
    for index, below in enumerate(lower):
        if not below:
            continue
        if runs and runs[-1][1] == index - 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def entropy(entropy: pd.DataFrame, position_kind: str = "last_prompt") -> go.Figure:
    """Figure 4a: entropy of the normalised σ² spectrum of H_base, H_policy and ΔH per site.

    The shaded region is where the paired difference policy − base lies below 0 with its whole
    interval (claim 9); "random weight change" is the control, a perturbation of the weights of
    equal norm.

    Args:
        entropy: Table `entropy`, in nats, with bootstrap 95 % intervals.
        position_kind: Which positions to draw.

    Raises:
        ShapeError: The table lacks columns, rows or the position kind, or has an unknown site.
    """
    check_table(entropy, "entropy", ENTROPY_COLUMNS)
    rows = select_rows(entropy, "entropy", position_kind=position_kind)
    sites = ordered_sites(rows, "entropy")
    figure = panel_grid(1, 1, top=48)
    for matrix in MATRICES:
        line = along_sites(rows[rows["matrix"] == matrix], sites)
        if not len(line):
            continue
        add_line(
            figure,
            floats(line, "place"),
            floats(line, "entropy"),
            series_style(matrix),
            low=floats(line, "ci_low"),
            high=floats(line, "ci_high"),
            clip=(0.0, float("inf")),
        )
    regions = collapse_regions(rows, sites)
    for first, last in regions:
        figure.add_vrect(
            first - 0.5,
            last + 0.5,
            fillcolor=translucent(POLICY_COLOUR, 0.09),
            line_width=0,
            layer="below",
        )
    if regions:
        figure.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="markers",
                marker={
                    "symbol": "square",
                    "size": 11,
                    "color": translucent(POLICY_COLOUR, 0.18),
                },
                name="fall from base, CI below 0",
                legendgroup="collapse",
            )
        )
    figure.update_xaxes(**site_axis(sites, panel_width(1), SITE_TITLE))
    figure.update_yaxes(
        title_text=f"spectral entropy at {position_label(position_kind)}  (nats)",
        rangemode="tozero",
    )
    return finish(figure)
