"""Stress test on encoded prompts, and the dots with intervals that all prompt tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import count_label, escape_text
from dsteer_tl.plots.panels import finish, padded_range, panel_grid
from dsteer_tl.plots.tables import check_table, select_rows
from dsteer_tl.plots.theme import DASH, DOT, INK, NULL_COLOUR, SeriesStyle, series_style
from dsteer_tl.sites import FINAL

STRESS_COLUMNS = ("condition", "role", "site", "statistic", "value", "low", "high", "n")

_LABELS = {
    "all": "all encodings",
    "base64": "Base64",
    "cipher": "letter cipher",
    "leetspeak": "leetspeak",
    "plain": "plain",
    "other_half": "plain, other half",
    "rot13": "ROT13",
    "spaced": "spaced letters",
}
_ENCODED = SeriesStyle("encoded prompts", series_style("v_star").colour, symbol="diamond")
_RANDOM = SeriesStyle("random tokens", NULL_COLOUR, DASH, "x")


def add_dots(
    figure: go.Figure,
    rows: pd.DataFrame,
    labels: Mapping[str, str],
    style: SeriesStyle,
    *,
    row: int = 1,
    col: int = 1,
    offset: float = 0.0,
    places: Sequence[str] = (),
) -> None:
    """One dot with its 95 % interval for each row, on a vertical axis of conditions.

    Args:
        figure: Drawn into.
        rows: Rows of a stress table, one a condition.
        labels: Label by condition; conditions without one are left out.
        style: Of the series.
        row: Panel, counted from 1.
        col: Panel, counted from 1.
        offset: How far above its place a dot stands, to keep series apart.
        places: Conditions from the top down; by default those of `labels`.
    """
    order = {name: -float(index) for index, name in enumerate(places or list(labels))}
    kept = rows[rows["condition"].isin(list(order))]
    values = kept["value"].to_numpy(dtype=float)
    ends = kept[["low", "high"]].to_numpy(dtype=float)
    figure.add_trace(
        go.Scatter(
            x=values.tolist(),
            y=[order[str(name)] + offset for name in kept["condition"]],
            mode="markers",
            marker={"symbol": style.symbol, "size": 7, "color": style.colour},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": np.nan_to_num(ends[:, 1] - values).tolist(),
                "arrayminus": np.nan_to_num(values - ends[:, 0]).tolist(),
                "color": style.colour,
                "thickness": 1.4,
                "width": 3,
            },
            name=style.label,
            legendgroup=style.label,
            legendrank=1000 if style.dash == "solid" else 1100,
        ),
        row=row,
        col=col,
    )


def name_places(
    figure: go.Figure, labels: Sequence[str], *, row: int = 1, col: int = 1, show: bool = True
) -> None:
    """Write the conditions along the vertical axis of a panel, from the top down."""
    figure.update_yaxes(
        tickvals=[-float(index) for index in range(len(labels))],
        ticktext=list(labels),
        showticklabels=show,
        range=[-len(labels) + 0.4, 0.6],
        showgrid=False,
        row=row,
        col=col,
    )


def spread(rows: pd.DataFrame, *include: float) -> list[float]:
    """A range of an axis that holds all values and their intervals."""
    numbers = rows[["value", "low", "high"]].to_numpy(dtype=float).ravel().tolist()
    return padded_range(numbers, include=include)


def stress_encodings(table: pd.DataFrame) -> go.Figure:
    """Projection on v* and the policy's gain in score, encoded against plain prompts (row 34).

    On the left mean ⟨δ, v̂*⟩ at h over that of the plain prompts, for each encoding and for random
    tokens as many as the encoded prompt has; the line at 1 is no change, the dotted one at ½ the
    ledger's target. On the right the score of the policy's continuations less the base's.

    Args:
        table: Table `stress_encodings`.

    Raises:
        ShapeError: The table lacks columns or the rows that are drawn.
    """
    check_table(table, "stress_encodings", STRESS_COLUMNS)
    ratios = select_rows(table, "stress_encodings", statistic="projection_ratio", site=FINAL)
    gaps = select_rows(table, "stress_encodings", statistic="score_gap")
    counts = [int(n) for n in ratios["n"]]
    measured = [str(c) for c in ratios.loc[ratios["role"] == "measured", "condition"]]
    names = ["plain", *(name for name in measured if name != "all"), "all", "other_half"]
    figure = panel_grid(
        1,
        2,
        titles=[
            f"projection on v*, over plain<br>h, last prompt token, {count_label(counts)}",
            "policy’s gain in score<br>continuations, policy − base",
        ],
        height=60 + 28 * len(names) + 60,
        left=108,
        gap_x=18,
    )
    for column, rows in ((1, ratios), (2, gaps)):
        random = rows[rows["condition"].str.startswith("random_tokens")].assign(
            condition=lambda found: found["condition"].map(_of_encoding)
        )
        apart = SeriesStyle("other prompts", INK, DOT, "circle-open")
        for kept, style, offset in (
            (rows[rows["role"] == "measured"], _ENCODED, 0.12),
            (random, _RANDOM, -0.16),
            (rows[rows["condition"] == "other_half"], apart, 0.0),
        ):
            if len(kept):
                add_dots(figure, kept, _LABELS, style, col=column, offset=offset, places=names)
        name_places(
            figure,
            [_LABELS.get(name, escape_text(name)) for name in names],
            col=column,
            show=column == 1,
        )
    figure.add_vline(1, line={"color": INK, "width": 1}, row=1, col=1)
    figure.add_vline(0.5, line={"color": INK, "width": 1, "dash": DOT}, row=1, col=1)
    figure.add_vline(0, line={"color": INK, "width": 1}, row=1, col=2)
    figure.update_xaxes(title_text="share of the plain prompts’", range=spread(ratios, 0, 1), col=1)
    figure.update_xaxes(title_text="score", range=spread(gaps, 0), col=2)
    return finish(figure)


def _of_encoding(condition: str) -> str:
    """The encoding whose length random tokens have; `all` where they stand for all."""
    return condition.partition(".")[2] or "all"
