"""Where in a response the shift is along v*: by the offset of the token that is predicted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.controls import Interval, bootstrap_mean
from dsteer_tl.plots.labels import count_label
from dsteer_tl.plots.panels import add_line, finish, padded_range, panel_grid
from dsteer_tl.plots.tables import check_table, floats
from dsteer_tl.plots.theme import DOT, INK, ORANGE, SHIFT_COLOUR, SeriesStyle, series_style

TOKEN_SHIFT_COLUMNS = ("pair", "prompt", "offset", "along", "off", "cos", "cos_random")

_STYLES = {
    "cos": SeriesStyle("cos(δ, v*)", SHIFT_COLOUR, symbol="diamond"),
    "along": SeriesStyle("⟨δ, v*⟩: along v*", SHIFT_COLOUR, symbol="diamond"),
    "off": SeriesStyle("length off v*", ORANGE, symbol="square"),
}
#: An offset is shown while at least this share of responses reaches it.
_REACHED = 0.25
_DRAWS, _SEED = 400, 0


def token_shifts(token_shifts: pd.DataFrame) -> go.Figure:
    """Cosine of the shift at h with v* above, its parts along and off v* below, by offset.

    Means over responses with 95 % bootstrap intervals over prompts. The null is the mean size of
    the same quantity for random directions.

    Args:
        token_shifts: Table `token_shifts`.

    Raises:
        ShapeError: The table lacks columns or rows, or has one prompt alone.
    """
    check_table(token_shifts, "token_shifts", TOKEN_SHIFT_COLUMNS)
    length = np.hypot(token_shifts["along"], token_shifts["off"])
    rows = token_shifts.assign(along_random=token_shifts["cos_random"] * length)
    counts = rows.groupby("offset")["pair"].nunique()
    offsets = [int(o) for o in counts.index[counts >= _REACHED * counts.max()]]
    shown = counts.loc[offsets].tolist()
    figure = panel_grid(
        2,
        1,
        titles=[f"{count_label([int(n) for n in shown])} responses, chosen", ""],
        height=420,
        gap_y=26,
        share_x=True,
    )
    drawn = _add(figure, rows, offsets, ("cos",), "cos_random", 1)
    figure.update_yaxes(range=padded_range(drawn, include=(0.0, 1.0)), row=1)
    drawn = _add(figure, rows, offsets, ("along", "off"), "along_random", 2)
    figure.update_yaxes(range=padded_range(drawn, include=(0.0,)), row=2)
    for row in (1, 2):
        figure.add_hline(0, line={"color": INK, "width": 1, "dash": DOT}, row=row, col=1)
    figure.update_yaxes(title_text="cosine at h", row=1)
    figure.update_yaxes(title_text="length, units of h", row=2)
    figure.update_xaxes(title_text="offset of the predicted token in the response", row=2)
    return finish(figure)


def _add(
    figure: go.Figure,
    rows: pd.DataFrame,
    offsets: list[int],
    names: tuple[str, ...],
    null: str,
    row: int,
) -> list[float]:
    x = [float(offset) for offset in offsets]
    drawn: list[float] = []
    for name in names:
        found = [_mean(rows[rows["offset"] == offset], name) for offset in offsets]
        low, high = [each.low for each in found], [each.high for each in found]
        drawn += low + high
        add_line(
            figure,
            x,
            [each.value for each in found],
            _STYLES[name],
            low=low,
            high=high,
            row=row,
            col=1,
        )
    means = rows.groupby("offset")[[null]].mean().loc[offsets]
    style = series_style("random")
    add_line(
        figure, x, floats(means, null), style, label="null: random direction, |·|", row=row, col=1
    )
    return drawn + floats(means, null)


def _mean(rows: pd.DataFrame, name: str) -> Interval:
    return bootstrap_mean(
        rows[name].to_numpy(np.float64), rows["prompt"].to_numpy(), draws=_DRAWS, seed=_SEED
    )
