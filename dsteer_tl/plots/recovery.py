"""How much of KL(policy‖base) the steering vector recovers: over λ and over rank."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import count_label, position_label, site_label
from dsteer_tl.plots.panels import add_line, add_note, finish, padded_range, panel_grid
from dsteer_tl.plots.tables import (
    check_table,
    floats,
    ordered_kinds,
    ordered_names,
    select_rows,
)
from dsteer_tl.plots.theme import DOT, INK, series_style

KL_RECOVERY_COLUMNS = (
    "site",
    "position_kind",
    "vector",
    "coefficient",
    "direction",
    "kl",
    "recovered",
    "ci_low",
    "ci_high",
    "n",
)
RANK_RECOVERY_COLUMNS = (
    "site",
    "position_kind",
    "rank",
    "basis",
    "recovered",
    "ci_low",
    "ci_high",
    "n",
)

VECTORS = (
    "random",
    "permuted",
    "mean_preference",
    "logit_bias_fitted",
    "v_star",
    "logit_bias",
)
BASES = ("random", "svd_centred", "svd")
DIRECTIONS = ("interpolate", "invert")

#: The lowest recovered share that is drawn: far wrong coefficients fall without bound.
FLOOR = -1.0


def _share_axis(figure: go.Figure, values: list[float]) -> None:
    """One range for all panels, from `FLOOR` at the lowest; lines at 0 (nothing) and 1 (all)."""
    low, high = padded_range(values, include=(0.0, 1.0), pad=0.05)
    cut = low < FLOOR
    figure.update_yaxes(range=[max(low, FLOOR), max(high, 1.05)])
    for level in (0.0, 1.0):
        figure.add_hline(level, line={"color": INK, "width": 1, "dash": DOT}, row="all", col="all")
    if cut:
        add_note(
            figure,
            f"values below −{abs(FLOOR):g} are not shown",
            x=1,
            y=0,
            xanchor="right",
            yanchor="top",
            yshift=-44,
            font_size=10,
        )


def kl_recovery(kl_recovery: pd.DataFrame, site: str = "h") -> go.Figure:
    """Recovered share of the KL divergence over the coefficient λ.

    Interpolation (base + λv, toward the policy) and inversion (policy − λv, toward the base) are
    two rows of panels and never one curve, as they start from different models. Columns are
    position kinds. v* has its 95 % band; every other vector is a control and dashed.

    Args:
        kl_recovery: Table `kl_recovery`; `recovered` = 1 − KL(steered)/KL(unsteered).
        site: Which site to draw.

    Raises:
        ShapeError: The table lacks columns or rows, or the site is not there.
    """
    check_table(kl_recovery, "kl_recovery", KL_RECOVERY_COLUMNS)
    rows = select_rows(kl_recovery, "kl_recovery", site=site)
    kinds = ordered_kinds(rows)
    directions = ordered_names(rows, "direction", DIRECTIONS)
    counts = {
        kind: count_label([int(n) for n in rows.loc[rows["position_kind"] == kind, "n"]])
        for kind in kinds
    }
    titles = [
        f"{position_label(kind)}<br>{counts[kind]}" if line == 0 else ""
        for line, _ in enumerate(directions)
        for kind in kinds
    ]
    figure = panel_grid(
        len(directions),
        len(kinds),
        titles=titles,
        height=130 + 150 * len(directions),
        left=64,
        top=70,
        bottom=62,
        gap_x=14,
        gap_y=46,
        share_y=True,
    )
    drawn: list[float] = []
    arithmetic = {"interpolate": "base + λv", "invert": "policy − λv"}
    for line, direction in enumerate(directions, start=1):
        for column, kind in enumerate(kinds, start=1):
            here = rows[(rows["direction"] == direction) & (rows["position_kind"] == kind)]
            for vector in ordered_names(here, "vector", VECTORS):
                curve = here[here["vector"] == vector].sort_values("coefficient")
                main = vector == "v_star"
                recovered = floats(curve, "recovered")
                drawn.extend(recovered)
                add_line(
                    figure,
                    floats(curve, "coefficient"),
                    recovered,
                    series_style(vector),
                    low=floats(curve, "ci_low") if main else None,
                    high=floats(curve, "ci_high") if main else None,
                    clip=(-math.inf, 1.0),
                    width=2.2 if main else 1.3,
                    row=line,
                    col=column,
                )
            figure.update_xaxes(
                title_text=f"λ in {arithmetic.get(direction, direction)}",
                nticks=5,
                row=line,
                col=column,
            )
        toward = {"interpolate": "policy", "invert": "base"}.get(direction, direction)
        figure.update_yaxes(
            title_text=f"recovered toward {toward}<br>(share of KL, {site_label(site)})",
            row=line,
            col=1,
        )
    _share_axis(figure, drawn)
    return finish(figure)


def rank_recovery(rank_recovery: pd.DataFrame, site: str = "h") -> go.Figure:
    """Recovered share of KL(policy‖base) when only the first k directions of ΔH are moved.

    Args:
        rank_recovery: Table `rank_recovery`; the random basis is the control.
        site: Which site to draw.

    Raises:
        ShapeError: The table lacks columns or rows, or the site is not there.
    """
    check_table(rank_recovery, "rank_recovery", RANK_RECOVERY_COLUMNS)
    rows = select_rows(rank_recovery, "rank_recovery", site=site)
    kinds = ordered_kinds(rows)
    titles = [
        f"{position_label(kind)}<br>"
        + count_label([int(n) for n in rows.loc[rows["position_kind"] == kind, "n"]])
        for kind in kinds
    ]
    figure = panel_grid(
        1, len(kinds), titles=titles, top=72, bottom=62, left=64, gap_x=14, share_y=True
    )
    # Ranks double: places are their order, and rank 0 has one too.
    ranks = sorted({int(rank) for rank in rows["rank"]})
    place = {rank: float(index) for index, rank in enumerate(ranks)}
    drawn: list[float] = []
    for column, kind in enumerate(kinds, start=1):
        here = rows[rows["position_kind"] == kind]
        for basis in ordered_names(here, "basis", BASES):
            curve = here[here["basis"] == basis].sort_values("rank")
            recovered = floats(curve, "recovered")
            drawn.extend(recovered)
            style = series_style(basis)
            label = "random directions" if basis == "random" else None
            add_line(
                figure,
                [place[int(rank)] for rank in curve["rank"]],
                recovered,
                style,
                low=floats(curve, "ci_low"),
                high=floats(curve, "ci_high"),
                clip=(-math.inf, 1.0),
                label=label,
                row=1,
                col=column,
            )
    stride = max(1, math.ceil(len(ranks) / 8))
    figure.update_xaxes(
        title_text="rank k",
        tickvals=[place[rank] for rank in ranks[::stride]],
        ticktext=[str(rank) for rank in ranks[::stride]],
        range=[-0.4, len(ranks) - 0.6],
    )
    figure.update_yaxes(title_text=f"recovered share of KL at {site_label(site)}", row=1, col=1)
    _share_axis(figure, drawn)
    return finish(figure)
