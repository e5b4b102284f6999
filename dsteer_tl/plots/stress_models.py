"""Several finished runs side by side: main statistics, and every verdict of the ledger."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import escape_text
from dsteer_tl.plots.panels import finish, panel_grid
from dsteer_tl.plots.stress_encodings import STRESS_COLUMNS, add_dots, name_places, spread
from dsteer_tl.plots.tables import check_table, ordered_names
from dsteer_tl.plots.theme import (
    DASH,
    GREEN,
    GRID,
    NULL_COLOUR,
    ORANGE,
    SKY_BLUE,
    VERMILLION,
    YELLOW,
    SeriesStyle,
    series_style,
)
from dsteer_tl.sites import FINAL

VERDICT_COLUMNS = ("run", "id", "verdict")

_PANELS = (
    ("cos_loo_mean", "cosine to v*"),
    ("sigma_ratio", "σ₂/σ₁"),
    ("recovered", "KL recovered by v*"),
)
#: Colour and letter, so that print in grey still tells verdicts apart.
_VERDICTS = {
    "REPLICATED": (GREEN, "R"),
    "PARTIAL": (SKY_BLUE, "P"),
    "FAILED": (VERMILLION, "F"),
    "TRIVIAL": (ORANGE, "T"),
    "UNTESTABLE": (YELLOW, "U"),
    "NOT RUN": (GRID, "–"),
}
_LONGEST = 16


def stress_models(table: pd.DataFrame, verdicts: pd.DataFrame) -> go.Figure:
    """Statistics at h of several runs above, their verdicts on every row of the ledger below.

    Args:
        table: Table `stress_models`; grey crosses are each run's own control.
        verdicts: Table `stress_model_verdicts`.

    Raises:
        ShapeError: A table lacks columns or rows.
    """
    check_table(table, "stress_models", STRESS_COLUMNS)
    check_table(verdicts, "stress_model_verdicts", VERDICT_COLUMNS)
    runs = list(dict.fromkeys(str(name) for name in table["condition"]))
    labels = {name: _short(name) for name in runs}
    high = 30 * len(runs) + 12
    figure = panel_grid(
        2,
        3,
        titles=[title for _, title in _PANELS] + ["verdicts by row of the ledger", "", ""],
        height=2 * high + 170,
        left=100,
        gap_x=18,
        gap_y=60,
        specs=[[{}, {}, {}], [{"colspan": 3}, None, None]],
    )
    measured = SeriesStyle("measured at h, last prompt token", series_style("v_star").colour)
    control = SeriesStyle("its control", NULL_COLOUR, DASH, "x")
    for column, (statistic, _) in enumerate(_PANELS, start=1):
        rows = table[(table["statistic"] == statistic) & (table["site"] == FINAL)]
        for role, style in (("measured", measured), ("control", control)):
            add_dots(figure, rows[rows["role"] == role], labels, style, col=column)
        name_places(figure, list(labels.values()), col=column, show=column == 1)
        figure.update_xaxes(range=spread(rows, 0.0, 1.0), row=1, col=column)
    numbers = sorted({int(number) for number in verdicts["id"]})
    place = {number: index for index, number in enumerate(numbers)}
    for verdict in ordered_names(verdicts, "verdict", list(_VERDICTS)):
        colour, letter = _VERDICTS.get(verdict, (NULL_COLOUR, "?"))
        rows = verdicts[verdicts["verdict"] == verdict]
        name = f"{letter} {verdict.lower()}"
        figure.add_trace(
            go.Scatter(
                x=[place[int(number)] for number in rows["id"]],
                y=[-float(runs.index(str(run))) for run in rows["run"]],
                mode="markers+text",
                marker={"symbol": "square", "size": 13, "color": colour},
                text=[letter] * len(rows),
                textfont={"size": 9},
                name=name,
                legendgroup=name,
            ),
            row=2,
            col=1,
        )
    name_places(figure, list(labels.values()), row=2)
    step = max(1, -(-len(numbers) // 20))
    figure.update_xaxes(
        tickvals=list(range(0, len(numbers), step)),
        ticktext=[str(number) for number in numbers[::step]],
        range=[-0.7, len(numbers) - 0.3],
        title_text="row of the ledger",
        showgrid=False,
        row=2,
        col=1,
    )
    return finish(figure)


def _short(name: str) -> str:
    return escape_text(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…")
