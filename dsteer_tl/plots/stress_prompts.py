"""Stress test on benign and harmful prompts."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import count_label
from dsteer_tl.plots.panels import finish, panel_grid
from dsteer_tl.plots.stress_encodings import STRESS_COLUMNS, add_dots, name_places, spread
from dsteer_tl.plots.tables import check_table, select_rows
from dsteer_tl.plots.theme import DASH, INK, NULL_COLOUR, SeriesStyle, series_style
from dsteer_tl.sites import FINAL

_SETS = {"benign": "benign", "harmful": "harmful", "random_tokens": "random tokens"}
_CONTRASTS = {
    "harmful_to_benign": "harmful / benign",
    "harmful_to_benign.random_weights": "same, random weights",
    "random_tokens_to_benign": "random tokens / benign",
    "benign_halves": "two benign halves",
}
_OVERLAPS = {
    "harmful_to_benign": "harmful, benign",
    "random_tokens_to_benign": "random tokens, benign",
    "benign_halves": "two benign halves",
    "random_subspaces": "random subspaces",
}
_OUTSIDE = {**_SETS, "isotropic": "isotropic shifts"}
_PANELS = (
    ("relative_norm", _SETS, "shift ‖δ‖ / ‖h‖"),
    ("relative_norm_ratio", _CONTRASTS, "its ratio between sets"),
    ("null_space_share", _OUTSIDE, "‖δ‖² outside benign activations"),
    ("subspace_overlap_centred", _OVERLAPS, "overlap of centred components"),
)
_MEASURED = SeriesStyle("prompts", series_style("policy").colour, symbol="square")
_CONTROL = SeriesStyle("controls", NULL_COLOUR, DASH, "x")


def stress_prompts(table: pd.DataFrame) -> go.Figure:
    """Size and place of the shifts on benign and harmful prompts, at h (row 36).

    Above, mean ‖δ‖/‖h_base‖ of each set and its ratio between sets (1: alike). Below, the share of
    ‖δ‖² outside the subspace of benign activations, and the overlap of the leading components of
    the centred shifts of two sets, where two halves of the benign prompts say what can be reached.

    Args:
        table: Table `stress_prompts`.

    Raises:
        ShapeError: The table lacks columns or the rows that are drawn.
    """
    check_table(table, "stress_prompts", STRESS_COLUMNS)
    there = set(table["statistic"])
    panels = [panel for panel in _PANELS if panel[0] in there]
    counts = table.loc[table["condition"].isin(["benign", "harmful"]), "n"]
    titles = [title for *_, title in panels]
    titles[0] += f"<br>{count_label([int(n) for n in counts])} prompts"
    figure = panel_grid(
        -(-len(panels) // 2), 2, titles=titles, height=400, left=98, gap_x=140, gap_y=60
    )
    for index, (statistic, labels, _) in enumerate(panels):
        row, col = index // 2 + 1, index % 2 + 1
        rows = select_rows(table, "stress_prompts", statistic=statistic, site=FINAL)
        if statistic == "subspace_overlap_centred":
            # Of random subspaces the closed form holds with and without centring.
            known = table[table["condition"] == "random_subspaces"]
            rows = pd.concat([rows, known[known["site"] == FINAL]])
        shown = {name: label for name, label in labels.items() if name in set(rows["condition"])}
        rows = rows[rows["condition"].isin(list(shown))]
        for role, style in (("measured", _MEASURED), ("control", _CONTROL)):
            add_dots(figure, rows[rows["role"] == role], shown, style, row=row, col=col)
        name_places(figure, list(shown.values()), row=row, col=col)
        anchor = 1.0 if statistic.endswith("_ratio") else 0.0
        figure.update_xaxes(range=spread(rows, anchor), row=row, col=col)
        if anchor:
            figure.add_vline(1, line={"color": INK, "width": 1}, row=row, col=col)
    return finish(figure)
