"""Figure 4b and its kin: top singular values, σ₂/σ₁, and the mass on each component."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import count_label, position_label, site_label
from dsteer_tl.plots.panels import (
    SHORT_SITE_TITLE,
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
    ordered_kinds,
    ordered_names,
    ordered_sites,
    select_rows,
)
from dsteer_tl.plots.theme import (
    BAND_INK,
    DASH,
    DASH_DOT,
    DOT,
    INK,
    LONG_DASH,
    SEQUENTIAL_COLOURS,
    SeriesStyle,
    series_style,
)

SPECTRA_COLUMNS = ("site", "position_kind", "matrix", "index", "singular_value", "share")
RATIO_COLUMNS = ("site", "position_kind", "n", "sigma_ratio", "sigma_ratio_centred")
NULL_COLUMNS = ("statistic", "site", "position_kind", "null", "value", "ci_low", "ci_high", "draws")
MASS_COLUMNS = (
    "site",
    "position_kind",
    "component",
    "centred",
    "mass",
    "ci_low",
    "ci_high",
    "null",
)

#: σ₂/σ₁ that the paper reports as an upper bound (D-STEER, text; claim 7).
PUBLISHED_RATIO = 0.1

NULLS = ("gaussian_matched", "permutation", "random_weights")
_MATRICES = ("base", "policy", "shift")
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def _log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Ticks at 1, 2, 5 × 10ᵏ (or 10ᵏ over many decades) on an axis of log₁₀ values."""
    steps = (1, 2, 5) if high - low < 2.2 else (1, 3) if high - low < 3.5 else (1,)
    ticks = [
        step * 10.0**power
        for power in range(int(np.floor(low)), int(np.ceil(high)) + 1)
        for step in steps
    ]
    ticks = [tick for tick in ticks if low <= np.log10(tick) <= high]
    return [float(np.log10(tick)) for tick in ticks], [f"{tick:g}" for tick in ticks]


def singular_values(
    spectra: pd.DataFrame, position_kind: str = "last_prompt", top: int = 5
) -> go.Figure:
    """Figure 4b: the largest singular values per site of H_base, H_policy and ΔH.

    One logarithmic colour axis for the three panels, because σ₁ of hidden states is many times
    that of the shift; the values are those of rows/√n, in units of the hidden states.

    Args:
        spectra: Table `spectra`.
        position_kind: Which positions to draw.
        top: How many singular values, from the largest.

    Raises:
        ShapeError: The table lacks columns, rows or the position kind, or has an unknown site.
    """
    check_table(spectra, "spectra", SPECTRA_COLUMNS)
    rows = select_rows(spectra, "spectra", position_kind=position_kind)
    rows = rows[rows["matrix"].isin(_MATRICES) & (rows["index"] <= top)]
    check_table(rows, "spectra (base, policy, shift)", SPECTRA_COLUMNS)
    sites = ordered_sites(rows, "spectra")
    matrices = ordered_names(rows, "matrix", _MATRICES)
    titles = {"base": "H base", "policy": "H policy", "shift": "shift ΔH"}
    left, right, gap = 46, 66, 12
    figure = panel_grid(
        1,
        len(matrices),
        titles=[titles[matrix] for matrix in matrices],
        height=250,
        left=left,
        right=right,
        top=28,
        gap_x=gap,
        share_y=True,
    )
    logs: list[float] = []
    indices = list(range(1, int(rows["index"].max()) + 1))
    for column, matrix in enumerate(matrices, start=1):
        grid = (
            rows[rows["matrix"] == matrix]
            .pivot_table(index="index", columns="site", values="singular_value")
            .reindex(index=indices, columns=sites)
            .to_numpy(np.float64)
        )
        with np.errstate(divide="ignore"):
            log = np.where(grid > 0, np.log10(grid), np.nan)
        logs.extend(log[np.isfinite(log)].tolist())
        figure.add_trace(
            go.Heatmap(
                x=list(range(len(sites))),
                y=indices,
                z=[[None if np.isnan(v) else float(v) for v in line] for line in log],
                customdata=[[float(v) for v in line] for line in grid],
                hovertemplate="σ %{customdata:.4g}<extra></extra>",
                coloraxis="coloraxis",
                ygap=1.5,
                xgap=0,
                name=matrix,
            ),
            row=1,
            col=column,
        )
    low, high = (min(logs), max(logs)) if logs else (0.0, 1.0)
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    ticks, texts = _log_ticks(low, high)
    width = panel_width(len(matrices), left=left, right=right, gap_x=gap)
    figure.update_xaxes(**site_axis(sites, width, SHORT_SITE_TITLE), showgrid=False, showline=False)
    figure.update_xaxes(range=[-0.5, len(sites) - 0.5])
    figure.update_yaxes(
        autorange="reversed",
        tickvals=indices,
        ticktext=[f"σ{str(index).translate(_SUBSCRIPTS)}" for index in indices],
        showgrid=False,
        showline=False,
    )
    figure.update_yaxes(ticks="", row=1)
    figure.update_layout(
        coloraxis={
            "colorscale": SEQUENTIAL_COLOURS,
            "cmin": low,
            "cmax": high,
            "colorbar": {
                "title": {"text": "σ, log scale", "side": "right", "font": {"size": 11}},
                "tickvals": ticks,
                "ticktext": texts,
                "tickfont": {"size": 10},
                "thickness": 10,
                "len": 1,
                "outlinewidth": 0,
                "xpad": 6,
            },
        }
    )
    return figure


def sigma_ratio(shifts: pd.DataFrame, nulls: pd.DataFrame) -> go.Figure:
    """σ₂/σ₁ of the shifts per site, uncentred and centred, one panel per position kind.

    Args:
        shifts: Table `shifts`.
        nulls: Table `nulls`; its statistics `sigma_ratio` and `sigma_ratio_centred` are drawn as
            thin dashes in the colour of what they are the null of. May have no rows.

    Raises:
        ShapeError: A table lacks columns, `shifts` lacks rows, or a site is unknown.
    """
    check_table(shifts, "shifts", RATIO_COLUMNS)
    if not nulls.empty:
        check_table(nulls, "nulls", NULL_COLUMNS)
    sites = ordered_sites(shifts, "shifts")
    kinds = ordered_kinds(shifts)
    titles = [
        f"{position_label(kind)}<br>"
        + count_label([int(n) for n in shifts.loc[shifts["position_kind"] == kind, "n"]])
        for kind in kinds
    ]
    gap = 14
    figure = panel_grid(1, len(kinds), titles=titles, top=86, gap_x=gap, share_y=True)
    for column, kind in enumerate(kinds, start=1):
        for statistic, name in (("sigma_ratio", "uncentred"), ("sigma_ratio_centred", "centred")):
            style = series_style(name)
            if not nulls.empty:
                here = nulls[(nulls["statistic"] == statistic) & (nulls["position_kind"] == kind)]
                _add_nulls(figure, here, sites, style, column)
            rows = along_sites(shifts[shifts["position_kind"] == kind], sites)
            add_line(
                figure,
                floats(rows, "place"),
                floats(rows, statistic),
                style,
                row=1,
                col=column,
            )
        figure.add_hline(
            PUBLISHED_RATIO,
            line={"color": BAND_INK, "width": 1.2, "dash": DOT},
            row=1,
            col=column,
        )
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={"color": BAND_INK, "width": 1.2, "dash": DOT},
            name="published: below 0.1",
            legendgroup="published",
        )
    )
    width = panel_width(len(kinds), gap_x=gap)
    figure.update_xaxes(**site_axis(sites, width, SHORT_SITE_TITLE))
    figure.update_yaxes(range=[0, 1.03])
    figure.update_yaxes(title_text="σ<sub>2</sub> / σ<sub>1</sub>", row=1, col=1)
    return finish(figure)


_NULL_DASHES = (DASH, DOT, DASH_DOT, LONG_DASH)
_NULL_SYMBOLS = ("x", "triangle-up", "star", "cross")


def _add_nulls(
    figure: go.Figure, rows: pd.DataFrame, sites: list[str], style: SeriesStyle, column: int
) -> None:
    """Null lines in the colour of what they are the null of; the dash says which null."""
    for index, null in enumerate(ordered_names(rows, "null", NULLS)):
        line = along_sites(rows[rows["null"] == null], sites)
        dash, symbol = _NULL_DASHES[index % 4], _NULL_SYMBOLS[index % 4]
        label = f"null: {series_style(null).label}"
        add_line(
            figure,
            floats(line, "place"),
            floats(line, "value"),
            SeriesStyle(f"{style.label}, {label}", style.colour, dash, symbol),
            low=floats(line, "ci_low"),
            high=floats(line, "ci_high"),
            clip=(0.0, 1.0),
            width=1.2,
            row=1,
            col=column,
        )
        figure.data[-1].showlegend = False
        # One key per null for both colours.
        figure.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="lines+markers",
                line={"color": INK, "width": 1.2, "dash": dash},
                marker={"symbol": symbol, "size": 5},
                name=label,
                legendgroup=label,
                legendrank=1100,
            ),
            row=1,
            col=column,
        )


def mass(mass: pd.DataFrame, site: str = "h", top: int = 8) -> go.Figure:
    """Share of ‖δ⁽ⁱ⁾‖² on each singular direction u_j, uncentred above, centred below.

    The paper says all of it lies on u_1 and none on u_j for j ≥ 3 (claim 18). The null is a
    Gaussian sample with matched mean.

    Args:
        mass: Table `mass`.
        site: Which site to draw.
        top: How many components.

    Raises:
        ShapeError: The table lacks columns or rows, or the site is not there.
    """
    check_table(mass, "mass", MASS_COLUMNS)
    rows = select_rows(mass, "mass", site=site)
    rows = rows[rows["component"] <= top]
    kinds = ordered_kinds(rows)
    variants = [flag for flag in (False, True) if (rows["centred"] == flag).any()]
    names = {False: "uncentred", True: "centred"}
    figure = panel_grid(
        len(variants),
        len(kinds),
        titles=[f"{position_label(kind)}<br>{names[flag]}" for flag in variants for kind in kinds],
        height=96 + 146 * len(variants),
        top=56,
        gap_x=14,
        gap_y=46,
        share_x=True,
        share_y=True,
    )
    null = series_style("random")
    for line, flag in enumerate(variants, start=1):
        for column, kind in enumerate(kinds, start=1):
            here = rows[(rows["centred"] == flag) & (rows["position_kind"] == kind)]
            here = here.sort_values("component")
            value = here["mass"].to_numpy(np.float64)
            places = [int(component) for component in here["component"]]
            figure.add_trace(
                go.Bar(
                    x=places,
                    y=value.tolist(),
                    error_y={
                        "type": "data",
                        "symmetric": False,
                        "array": np.maximum(here["ci_high"].to_numpy(float) - value, 0).tolist(),
                        "arrayminus": np.maximum(
                            value - here["ci_low"].to_numpy(float), 0
                        ).tolist(),
                        "thickness": 1,
                        "width": 2,
                    },
                    marker={"color": series_style(names[flag]).colour},
                    name=f"shifts, {names[flag]}",
                    legendgroup=names[flag],
                ),
                row=line,
                col=column,
            )
            figure.add_trace(
                go.Scatter(
                    x=places,
                    y=floats(here, "null"),
                    mode="markers+lines",
                    marker={"symbol": "x", "size": 5, "color": "#444950"},
                    line={"color": "#444950", "width": 1, "dash": null.dash},
                    name="null: Gaussian, matched mean",
                    legendgroup="null",
                    legendrank=1100,
                ),
                row=line,
                col=column,
            )
        shown = rows.loc[rows["centred"] == flag, ["mass", "ci_high", "null"]].to_numpy(float)
        figure.update_yaxes(range=[0, 1.06 * float(np.nanmax(shown))], row=line)
        figure.update_yaxes(title_text="share of ‖δ‖²", row=line, col=1)
    figure.update_xaxes(dtick=1, range=[0.4, min(top, int(rows["component"].max())) + 0.6])
    figure.update_xaxes(title_text=f"component j at {site_label(site)}", row=len(variants))
    return finish(figure)
