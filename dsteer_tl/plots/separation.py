"""How far apart the states of chosen and rejected responses lie, in the base and the policy."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import count_label, site_label
from dsteer_tl.plots.panels import finish, padded_range, panel_grid
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.tables import check_table, floats, ordered_names, ordered_sites, select_rows
from dsteer_tl.plots.theme import INK, SeriesStyle, series_style
from dsteer_tl.plots.toxicity_parts import add_level, add_marks

SEPARATION_COLUMNS = (
    "model",
    "site",
    "index",
    "value",
    "low",
    "high",
    "null_mean",
    "null_high",
    "p",
    "n",
)

_CHANGE = "_change"
_INDICES = {"chi": "as measured", "chi_without_length": "without length"}
_NULL = SeriesStyle("labels exchanged, 95 %", INK, "dot", "line-ns")


def _style(model: str) -> SeriesStyle:
    """The look of a model, or of the change that it makes."""
    return series_style("policy" if model == "change" else model.removesuffix(_CHANGE))


def separation(table: pd.DataFrame) -> go.Figure:
    """Calinski–Harabasz index of chosen against rejected responses, and its change (claim 19).

    On the left the index of each model by site, as measured and without the linear effect of the
    responses' length; a mark shows what exchanged labels reach in 5 % of draws. On the right the
    index over that of the base: the claim is an interval right of 1. The Xie–Beni index is the
    same by an identity and is not drawn.

    Args:
        table: Table `separation`.

    Raises:
        ShapeError: The table lacks columns or rows, or has an unknown site.
    """
    check_table(table, "separation", SEPARATION_COLUMNS)
    sites = ordered_sites(table, "separation")[::-1]
    lines = [(site, index) for site in sites for index in _INDICES]
    # A wider gap between sites than between the two lines of one site.
    place = {line: 2.4 * (k // 2) + (k % 2) for k, line in enumerate(lines)}
    figure = panel_grid(
        1,
        2,
        titles=["separation", "change over the base"],
        height=96 + 58 * len(sites),
        left=156,
        gap_x=22,
    )
    models = [
        name
        for name in ordered_names(table, "model", ("base", "policy"))
        if name != "change" and not name.endswith(_CHANGE)
    ]
    changes = [name for name in dict.fromkeys(table["model"]) if name not in models]
    measured = select_rows(table, "separation", model="base")
    drawn: dict[int, list[float]] = {1: [0.0], 2: [1.0]}
    for col, names, of in ((1, models, "chi"), (2, changes, "chi_ratio")):
        offsets = _offsets(len(names), 0.56)
        for name, offset in zip(names, offsets, strict=True):
            rows = table[table["model"] == name]
            rows = _placed(rows, {index: index.replace("chi", of, 1) for index in _INDICES}, place)
            low, high = floats(rows, "low"), floats(rows, "high")
            add_marks(
                figure,
                floats(rows, "value"),
                [at + offset for at in floats(rows, "place")],
                _style(str(name)),
                low=low,
                high=high,
                size=6.5,
                row=1,
                col=col,
            )
            drawn[col] += [*floats(rows, "value"), *low, *high]
    nulls = _placed(measured, {index: index for index in _INDICES}, place)
    edge = floats(nulls, "null_high")
    figure.add_trace(
        go.Scatter(
            x=edge,
            y=floats(nulls, "place"),
            mode="markers",
            name=_NULL.label,
            legendgroup=_NULL.label,
            legendrank=1200,
            marker={"symbol": "line-ns", "size": 14, "line": {"width": 1.6, "color": INK}},
        ),
        row=1,
        col=1,
    )
    span = (-0.7, max(place.values()) + 0.7)
    add_level(figure, 1.0, span, INK, "no change", upright=True, row=1, col=2)
    figure.update_yaxes(
        range=[span[1], span[0]],
        tickvals=list(place.values()),
        showgrid=False,
        showticklabels=False,
    )
    figure.update_yaxes(
        showticklabels=True,
        ticktext=[f"{site_label(site)}, {_INDICES[index]}" for site, index in lines],
        col=1,
    )
    figure.update_xaxes(range=padded_range([*drawn[1], *edge]), title_text="CHI", col=1)
    figure.update_xaxes(range=padded_range(drawn[2]), title_text="CHI / CHI of the base", col=2)
    finish(figure)
    responses = count_label([int(n) for n in measured["n"]])
    footnotes(
        figure,
        [
            f"{responses} responses, half of them chosen; bars are 95 % intervals over prompts. "
            "CHI: Calinski–Harabasz index of mean states, chosen against rejected."
        ],
    )
    return figure


def _offsets(count: int, width: float) -> list[float]:
    """Places of the marks of one line, around 0."""
    if count < 2:
        return [0.0] * count
    return [width * (k / (count - 1) - 0.5) for k in range(count)]


def _placed(
    rows: pd.DataFrame, indices: dict[str, str], place: dict[tuple[str, str], float]
) -> pd.DataFrame:
    """The rows of these indices with their line on the y axis."""
    names = {stored: index for index, stored in indices.items()}
    kept = rows[rows["index"].isin(list(names))]
    lines = [
        place[str(site), names[str(index)]]
        for site, index in zip(kept["site"], kept["index"], strict=True)
    ]
    return kept.assign(place=lines).sort_values("place", kind="stable")
