"""Stress test on multi-turn dialogues."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import count_label
from dsteer_tl.plots.panels import add_line, finish, padded_range, panel_grid
from dsteer_tl.plots.stress_encodings import STRESS_COLUMNS
from dsteer_tl.plots.tables import check_table, floats, select_rows
from dsteer_tl.plots.theme import DASH, DOT, NULL_COLOUR, PURPLE, SeriesStyle, series_style
from dsteer_tl.sites import FINAL

_STYLES = {
    "dialogue": SeriesStyle("dialogue", series_style("v_star").colour, symbol="diamond"),
    "shuffled": SeriesStyle("later turns of other dialogues", PURPLE, DASH, "triangle-up"),
    "random_prefix": SeriesStyle("first turn behind random tokens", NULL_COLOUR, DOT, "x"),
}
_PANELS = (
    ("projection", FINAL, "⟨δ, v̂*⟩ at h"),
    ("cosine", FINAL, "cos(δ, v*) at h"),
    ("kl", "", "KL(policy‖base), nats"),
    ("score_gap", "", "policy’s gain in score"),
)


def stress_turns(table: pd.DataFrame) -> go.Figure:
    """What the policy does at each turn of the same dialogues, beside both controls (row 35).

    Args:
        table: Table `stress_turns`. Scores are of dialogues alone.

    Raises:
        ShapeError: The table lacks columns or the rows that are drawn.
    """
    check_table(table, "stress_turns", STRESS_COLUMNS)
    parts = table["condition"].str.partition(".")
    turns = table.assign(series=parts[0], turn=parts[2])
    turns = turns[turns["turn"].str.isdigit().astype(bool)]
    turns = turns.assign(turn=turns["turn"].astype(int)).sort_values("turn", kind="stable")
    panels = [panel for panel in _PANELS if panel[0] in set(turns["statistic"])]
    columns = 2
    figure = panel_grid(
        -(-len(panels) // columns),
        columns,
        titles=[title for _, _, title in panels],
        height=400 if len(panels) > columns else 250,
        gap_x=52,
        gap_y=56,
    )
    for index, (statistic, site, _) in enumerate(panels):
        row, col = index // columns + 1, index % columns + 1
        rows = select_rows(turns, "stress_turns", statistic=statistic, site=site)
        drawn: list[float] = []
        for name, style in _STYLES.items():
            line = rows[rows["series"] == name]
            if line.empty:
                continue
            low, high = floats(line, "low"), floats(line, "high")
            drawn += [*low, *high]
            x, y = floats(line, "turn"), floats(line, "value")
            add_line(figure, x, y, style, low=low, high=high, row=row, col=col)
        figure.update_yaxes(range=padded_range(drawn), row=row, col=col)
        figure.update_xaxes(
            tickvals=sorted(set(rows["turn"].tolist())),
            title_text="turn" if row == -(-len(panels) // columns) else None,
            row=row,
            col=col,
        )
    figure.layout.annotations[0].text += f"<br>{count_label([int(n) for n in turns['n']])}"
    return finish(figure)
