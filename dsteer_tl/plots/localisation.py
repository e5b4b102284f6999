"""Where in the network the change sits: size of the shift, and what patching it does."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.labels import count_label, position_label
from dsteer_tl.plots.panels import (
    SHORT_SITE_TITLE,
    add_line,
    finish,
    padded_range,
    panel_grid,
    panel_width,
    site_axis,
)
from dsteer_tl.plots.tables import (
    along_sites,
    check_table,
    floats,
    ordered_kinds,
    ordered_names,
    ordered_sites,
)
from dsteer_tl.plots.theme import DOT, INK, SeriesStyle, series_style

NORM_COLUMNS = ("site", "position_kind", "n", "relative_norm")
PATCHING_COLUMNS = (
    "site",
    "position_kind",
    "source",
    "kl",
    "recovered",
    "ci_low",
    "ci_high",
    "n",
)


def localisation(shifts: pd.DataFrame, patching: pd.DataFrame) -> go.Figure:
    """Relative shift norm per site above, causal patching per site below (claim 10).

    A large shift is not yet a cause, as norms grow with depth: the lower panels write the policy's
    state into the base at one site and measure the share of KL(policy‖base) that this recovers,
    beside a random change of equal norm.

    Args:
        shifts: Table `shifts`; `relative_norm` is mean ‖δ‖/‖h_base‖.
        patching: Table `patching`, with 95 % intervals.

    Raises:
        ShapeError: A table lacks columns or rows, the two share no position kind, or a site is
            unknown.
    """
    check_table(shifts, "shifts", NORM_COLUMNS)
    check_table(patching, "patching", PATCHING_COLUMNS)
    patched = ordered_kinds(patching)
    kinds = [kind for kind in ordered_kinds(shifts) if kind in patched]
    if not kinds:
        raise ShapeError(
            f"table 'shifts' has position kinds {', '.join(ordered_kinds(shifts))} and table "
            f"'patching' has {', '.join(patched)}; expected at least one in common: run both "
            "analyses on the same positions"
        )
    sites = ordered_sites(pd.concat([shifts[["site"]], patching[["site"]]]), "shifts, patching")
    gap = 14
    titles = [
        f"{position_label(kind)}<br>"
        + count_label([int(n) for n in shifts.loc[shifts["position_kind"] == kind, "n"]])
        for kind in kinds
    ]
    titles += [
        count_label([int(n) for n in patching.loc[patching["position_kind"] == kind, "n"]])
        for kind in kinds
    ]
    figure = panel_grid(
        2,
        len(kinds),
        titles=titles,
        height=420,
        left=60,
        top=72,
        gap_x=gap,
        gap_y=34,
        share_x=True,
        share_y=True,
    )
    drawn: list[float] = []
    norms: list[float] = []
    for column, kind in enumerate(kinds, start=1):
        rows = along_sites(shifts[shifts["position_kind"] == kind], sites)
        size = floats(rows, "relative_norm")
        norms.extend(size)
        style = SeriesStyle("‖δ‖ / ‖h‖", series_style("shift").colour, symbol="diamond")
        add_line(figure, floats(rows, "place"), size, style, row=1, col=column)
        here = patching[patching["position_kind"] == kind]
        for source in ordered_names(here, "source", ("random", "policy")):
            line = along_sites(here[here["source"] == source], sites)
            recovered = floats(line, "recovered")
            drawn.extend(recovered)
            known = {"policy": "policy’s state patched in", "random": "random change, equal norm"}
            add_line(
                figure,
                floats(line, "place"),
                recovered,
                series_style(source),
                low=floats(line, "ci_low"),
                high=floats(line, "ci_high"),
                clip=(-math.inf, 1.0),
                label=known.get(source),
                row=2,
                col=column,
            )
        figure.add_hline(0, line={"color": INK, "width": 1, "dash": DOT}, row=2, col=column)
    width = panel_width(len(kinds), left=60, gap_x=gap)
    figure.update_xaxes(**site_axis(sites, width))
    figure.update_xaxes(title_text=SHORT_SITE_TITLE, row=2)
    figure.update_yaxes(range=[0, 1.08 * max([*norms, 1e-12])], row=1)
    low, high = padded_range(drawn, include=(0.0, 1.0))
    figure.update_yaxes(range=[max(low, -1.0), high], row=2)
    figure.update_yaxes(title_text="relative shift norm", row=1, col=1)
    figure.update_yaxes(title_text="recovered share of KL", row=2, col=1)
    return finish(figure)
