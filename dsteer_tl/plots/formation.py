"""How training goes, and how the steering vector forms during it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import escape_text, site_label
from dsteer_tl.plots.panels import add_line, finish, panel_grid
from dsteer_tl.plots.tables import check_table, floats, ordered_names, ordered_sites
from dsteer_tl.plots.theme import (
    BLUE,
    DASH_DOT,
    GREEN,
    INK,
    LONG_DASH,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    SeriesStyle,
    series_style,
)

FORMATION_COLUMNS = (
    "step",
    "site",
    "cos_to_final",
    "cos_sd",
    "sigma_ratio",
    "v_norm",
    "chosen_logp",
    "rejected_logp",
    "margin",
)
TRAINING_COLUMNS = ("step", "epoch", "name", "value")

_SITE_LOOKS = (
    (SKY_BLUE, "circle", "solid"),
    (ORANGE, "square", DASH_DOT),
    (INK, "triangle-up", LONG_DASH),
    (GREEN, "diamond", "solid"),
)
_TRAINING_PANELS: tuple[tuple[str, tuple[tuple[str, SeriesStyle], ...]], ...] = (
    (
        "DPO loss",
        (
            ("loss", SeriesStyle("training", BLUE)),
            ("eval_loss", SeriesStyle("held out", VERMILLION, symbol="square")),
        ),
    ),
    (
        "reward β log π/π<sub>ref</sub>",
        (
            ("rewards/chosen", SeriesStyle("chosen", BLUE)),
            ("rewards/rejected", SeriesStyle("rejected", PURPLE, symbol="square")),
            ("rewards/margins", SeriesStyle("margin", INK, symbol="diamond")),
        ),
    ),
    (
        "pairs ranked right",
        (
            ("rewards/accuracies", SeriesStyle("training", BLUE)),
            ("eval_rewards/accuracies", SeriesStyle("held out", VERMILLION, symbol="square")),
        ),
    ),
)


def _spread(sites: list[str], most: int = 4) -> list[str]:
    """At most `most` sites, evenly spaced, the last always among them."""
    if len(sites) <= most:
        return sites
    places = np.unique(np.linspace(0, len(sites) - 1, most).round().astype(int))
    return [sites[place] for place in places.tolist()]


def formation(formation: pd.DataFrame, sites: Sequence[str] | None = None) -> go.Figure:
    """How the steering vector forms: direction, rank, length and log-probabilities over steps.

    Args:
        formation: Table `formation`. `cos_to_final` is the mean over probe pairs of the cosine of
            the shift so far with the final v*, `cos_sd` its spread; log-probabilities are means
            over the probe pairs in nats, the same at every site.
        sites: Which sites to draw; four evenly spaced ones by default, the last among them.

    Raises:
        ShapeError: The table lacks columns or rows, or none of the sites is there.
    """
    check_table(formation, "formation", FORMATION_COLUMNS)
    there = ordered_sites(formation, "formation")
    wanted = [site for site in there if site in sites] if sites is not None else _spread(there)
    rows = formation[formation["site"].isin(wanted)]
    check_table(rows, "formation (chosen sites)", FORMATION_COLUMNS)
    figure = panel_grid(
        2,
        2,
        titles=[
            "cosine of shifts with the final v*",
            "σ<sub>2</sub>/σ<sub>1</sub> of the shifts so far",
            "length ‖v‖",
            "log-probability of the responses",
        ],
        height=430,
        top=70,
        gap_x=54,
        gap_y=44,
    )
    looks = _SITE_LOOKS[-len(wanted) :] if len(wanted) <= 4 else _SITE_LOOKS
    for index, site in enumerate(wanted):
        line = rows[rows["site"] == site].sort_values("step")
        colour, symbol, dash = looks[index % len(looks)]
        style = SeriesStyle(site_label(site), colour, dash, symbol)
        steps = floats(line, "step")
        cosine = line["cos_to_final"].to_numpy(np.float64)
        spread = line["cos_sd"].to_numpy(np.float64)
        for (row, col), column in {(1, 1): "cos_to_final", (1, 2): "sigma_ratio"}.items():
            banded = column == "cos_to_final"
            add_line(
                figure,
                steps,
                floats(line, column),
                style,
                low=(cosine - spread).tolist() if banded else None,
                high=(cosine + spread).tolist() if banded else None,
                clip=(-1.0, 1.0),
                row=row,
                col=col,
            )
        add_line(figure, steps, floats(line, "v_norm"), style, row=2, col=1)
    last = rows[rows["site"] == wanted[-1]].sort_values("step")
    for column, name in (("chosen_logp", "chosen"), ("rejected_logp", "rejected")):
        add_line(
            figure, floats(last, "step"), floats(last, column), series_style(name), row=2, col=2
        )
    # Sites in their own order, dashed or not: none of them is a control.
    figure.update_traces(legendrank=1000)
    figure.update_xaxes(title_text="training step", row=2)
    figure.update_yaxes(title_text="cosine (band: ±1 sd)", row=1, col=1)
    figure.update_yaxes(
        title_text="σ<sub>2</sub> / σ<sub>1</sub>", rangemode="tozero", row=1, col=2
    )
    figure.update_yaxes(title_text="‖v‖", rangemode="tozero", row=2, col=1)
    figure.update_yaxes(title_text="log-probability (nats)", row=2, col=2)
    return finish(figure)


def training_curve(training: pd.DataFrame) -> go.Figure:
    """The trainer's log over steps: loss, implicit rewards, share of pairs ranked right.

    Args:
        training: Table `training`, the log in long form. Names other than the usual ones of TRL's
            `DPOTrainer` are drawn, one panel each, only where none of the usual ones is there.

    Raises:
        ShapeError: The table lacks columns or rows.
    """
    check_table(training, "training", TRAINING_COLUMNS)
    there = {str(name) for name in training["name"]}
    panels = [
        (title, [(name, style) for name, style in series if name in there])
        for title, series in _TRAINING_PANELS
    ]
    panels = [(title, series) for title, series in panels if series]
    if not panels:
        panels = [
            (escape_text(name), [(name, SeriesStyle(escape_text(name), BLUE))])
            for name in ordered_names(training, "name", ())[:3]
        ]
    figure = panel_grid(1, len(panels), titles=[title for title, _ in panels], top=66, gap_x=38)
    for column, (_, series) in enumerate(panels, start=1):
        for name, style in series:
            rows = training[training["name"] == name].sort_values("step")
            add_line(
                figure,
                floats(rows, "step"),
                floats(rows, "value"),
                style,
                width=1.6,
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="training step", nticks=5)
    return finish(figure)
