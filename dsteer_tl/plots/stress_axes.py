"""Planted preference axes: whether the rank of the shifts follows their number (row 32)."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.labels import count_label, escape_text, number, position_label, site_label
from dsteer_tl.plots.panels import add_line, finish, padded_range, panel_grid
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.tables import check_table, floats, ordered_kinds
from dsteer_tl.plots.theme import DOT, INK, OKABE_ITO, SeriesStyle, series_style
from dsteer_tl.stress.columns import VARIANT_COLUMNS

_RANKS = {
    "effective_rank": (series_style("uncentred"), -0.04),
    "effective_rank_centred": (series_style("centred"), 0.04),
}


def stress_axes(table: pd.DataFrame, site: str = "h") -> go.Figure:
    """Effective rank against the number of planted axes, and what each policy learnt of each axis.

    Above, the rank over that of the fewest axes, with paired 95 % intervals; the dotted line is a
    rank that grows as the number of axes, crosses are the control with shuffled preferences. Below,
    the share of held-out pairs on which a policy moved towards what an axis prefers.

    Args:
        table: Table `stress_heterogeneous`.
        site: Where shifts are read.

    Raises:
        ShapeError: The table lacks columns or rows, or conditions that name their number of axes.
    """
    check_table(table, "stress_heterogeneous", VARIANT_COLUMNS)
    counted = _with_counts(table)
    ratios = counted[
        (counted["site"] == site) & counted["statistic"].isin([f"ratio:{name}" for name in _RANKS])
    ]
    if ratios.empty:
        raise ShapeError(
            f"table 'stress_heterogeneous' has no ratios of ranks at {site!r}; expected "
            "ratio:effective_rank for two numbers of axes or more: add numbers to stress.axes"
        )
    kinds = ordered_kinds(ratios)
    accuracy = counted[counted["statistic"].str.startswith("accuracy:")]
    titles = [
        f"{position_label(kind)}<br>"
        + count_label([int(n) for n in ratios.loc[ratios["position_kind"] == kind, "n"]])
        for kind in kinds
    ]
    specs: list[list[dict[str, int] | None]] = [
        [{} for _ in kinds],
        [{"colspan": len(kinds)}, *[None] * (len(kinds) - 1)],
    ]
    figure = panel_grid(
        2,
        len(kinds),
        titles=[*titles, f"held-out pairs, {count_label([int(n) for n in accuracy['n']])}"],
        height=460,
        left=60,
        top=72,
        gap_x=18,
        gap_y=78,
        specs=specs,
    )
    counts = sorted(set(counted["count"].astype(int)))
    for column, kind in enumerate(kinds, start=1):
        _add_ranks(figure, ratios[ratios["position_kind"] == kind], counts, column)
        # The line of k leaves the panel where nothing measured is near it.
        ends = [*floats(ratios, "low"), *floats(ratios, "high")]
        figure.update_yaxes(
            range=padded_range(ends, include=(1.0,), pad=0.1),
            showticklabels=column == 1,
            row=1,
            col=column,
        )
    _add_accuracy(figure, accuracy)
    for row in (1, 2):
        figure.update_xaxes(**_count_axis(counts), title_text="planted axes k", row=row)
    figure.update_yaxes(title_text=f"rank over that at k = {counts[0]}", row=1, col=1)
    figure.update_yaxes(title_text="accuracy by axis", row=2, col=1)
    finish(figure)
    footnotes(figure, _notes(table, site))
    return figure


def _with_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Conditions ``axes_<k>`` and their shuffled controls, with k in the column ``count``."""
    found = table["condition"].str.extract(r"^axes_(\d+)(_shuffled)?$")
    named = found[0].notna()
    if not named.any():
        raise ShapeError(
            "table 'stress_heterogeneous' has no condition axes_<k>; expected one for each number "
            "of planted axes: run the stress test heterogeneous again"
        )
    return table[named].assign(
        count=found.loc[named, 0].astype(int), shuffled=found.loc[named, 1].notna()
    )


def _count_axis(counts: list[int]) -> dict[str, object]:
    logs = [math.log2(count) for count in counts]
    low, high = padded_range(logs, pad=0.12)
    step = math.log10(2)
    return {
        "type": "log",
        "range": [low * step, high * step],
        "tickvals": counts,
        "ticktext": [str(count) for count in counts],
    }


def _add_ranks(figure: go.Figure, rows: pd.DataFrame, counts: list[int], column: int) -> None:
    first = counts[0]
    for name, (style, shift) in _RANKS.items():
        here = rows[rows["statistic"] == f"ratio:{name}"].sort_values("count", kind="stable")
        measured, control = here[~here["shuffled"]], here[here["shuffled"]]
        add_line(
            figure,
            [float(first), *floats(measured, "count")],
            [1.0, *floats(measured, "value")],
            style,
            low=[1.0, *floats(measured, "low")],
            high=[1.0, *floats(measured, "high")],
            row=1,
            col=column,
        )
        values = floats(control, "value")
        figure.add_trace(
            go.Scatter(
                x=[count * 2 ** (shift + 0.05) for count in floats(control, "count")],
                y=values,
                mode="markers",
                name=f"{style.label}, shuffled",
                legendgroup=f"{style.label}, shuffled",
                legendrank=1100,
                marker={"symbol": "x", "size": 8, "color": style.colour},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [h - v for h, v in zip(floats(control, "high"), values, strict=True)],
                    "arrayminus": [
                        v - low for low, v in zip(floats(control, "low"), values, strict=True)
                    ],
                    "color": style.colour,
                    "thickness": 1.2,
                    "width": 0,
                },
            ),
            row=1,
            col=column,
        )
    figure.add_trace(
        go.Scatter(
            x=counts,
            y=[count / first for count in counts],
            mode="lines",
            name="rank grows as k",
            legendgroup="rank grows as k",
            legendrank=1200,
            line={"color": INK, "width": 1.2, "dash": DOT},
            hoverinfo="skip",
        ),
        row=1,
        col=column,
    )


def _add_accuracy(figure: go.Figure, accuracy: pd.DataFrame) -> None:
    drawn: list[float] = []
    symbols = ("circle", "square", "diamond", "cross", "triangle-up", "star")
    for index, name in enumerate(dict.fromkeys(accuracy["statistic"])):
        rows = accuracy[(accuracy["statistic"] == name) & ~accuracy["shuffled"]]
        rows = rows.sort_values("count", kind="stable")
        axis = escape_text(str(name).partition(":")[2].replace("_", " "))
        colour = OKABE_ITO[(0, 1, 3, 5, 6, 7)[index % 6]]
        style = SeriesStyle(axis, colour, symbol=symbols[index % 6])
        add_line(figure, floats(rows, "count"), floats(rows, "value"), style, row=2, col=1)
        drawn += floats(rows, "value")
    figure.add_hline(0.5, line={"color": INK, "width": 1, "dash": DOT}, row=2, col=1)
    figure.update_yaxes(range=padded_range(drawn, include=(0.5,), pad=0.12), row=2, col=1)


def _notes(table: pd.DataFrame, site: str) -> list[str]:
    facts = table[table["statistic"].str.startswith("agreement:")]
    least = facts.sort_values("value", kind="stable").head(1)
    notes = [f"Shifts at {site_label(site)}. Bands: paired 95 % intervals over prompts."]
    for row in least.to_dict("records"):
        first, second = (name.replace("_", " ") for name in str(row["statistic"]).split(":")[1:])
        share, count = number(100 * row["value"], 0), int(row["n"])
        notes.append(
            f"The axes that agree least are {first} and {second}: they prefer the same text of "
            f"{share} % of {count} training pairs."
        )
    return notes
