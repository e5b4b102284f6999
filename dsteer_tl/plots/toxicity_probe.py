"""The attribute's probe: how far it parts held-out texts, beside what needs no hidden state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import escape_text
from dsteer_tl.plots.panels import add_outline, finish, panel_grid
from dsteer_tl.plots.tables import check_table, floats, ordered_names
from dsteer_tl.plots.theme import (
    BAND_INK,
    DASH,
    DOT,
    GREEN,
    INK,
    PURPLE,
    SKY_BLUE,
    SeriesStyle,
)
from dsteer_tl.plots.toxicity_axes import forest_axis
from dsteer_tl.plots.toxicity_parts import add_level, add_marks, words

PROBE_COLUMNS = (
    "control",
    "balanced_accuracy",
    "low",
    "high",
    "auroc",
    "auroc_low",
    "auroc_high",
    "n_held_out",
    "positive_share",
    "attribute",
)
PROBE_SCORE_COLUMNS = ("control", "label", "score")

#: Accuracy of the probe on held-out comments (Lee et al. 2024, sec. 3.1; claim 20).
PUBLISHED_ACCURACY = 0.94

_CONTROLS = {
    "probe": "probe",
    "words": "bag of words",
    "shuffled_labels": "shuffled labels",
    "majority": "majority class",
}
_STATISTICS = (
    ("balanced_accuracy", "low", "high", SeriesStyle("balanced accuracy", INK, symbol="square")),
    ("auroc", "auroc_low", "auroc_high", SeriesStyle("AUROC", GREEN, symbol="diamond")),
)


def _edges(scores: pd.Series, bins: int) -> np.ndarray:
    """Edges of bins that hold all but the outermost hundredth on either side, and zero."""
    values = scores.to_numpy(np.float64)
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.005, 0.995]) if len(values) else (-1.0, 1.0)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    # A bin ends at 0, where the decision changes.
    step = max(high - low, 1e-9) / bins
    return step * np.arange(np.floor(low / step), np.ceil(high / step) + 1)


def toxicity_probe(probe: pd.DataFrame, probe_scores: pd.DataFrame) -> go.Figure:
    """Held-out decision values of both labels, and balanced accuracy and AUROC with controls.

    The lower panel is a probe of the same hidden states with shuffled labels. A bag of words is
    what a probe could read off single words, and the majority class what it could guess: on
    unbalanced labels neither is at 0.5 by plain accuracy, hence the balanced one (claim 20).

    Args:
        probe: Table `toxicity_probe`, a row per control with 95 % intervals.
        probe_scores: Table `toxicity_probe_scores`: logits of held-out texts.

    Raises:
        ShapeError: A table lacks columns or rows.
    """
    check_table(probe, "toxicity_probe", PROBE_COLUMNS)
    check_table(probe_scores, "toxicity_probe_scores", PROBE_SCORE_COLUMNS)
    shown = ordered_names(probe_scores, "control", tuple(_CONTROLS))
    attribute = escape_text(str(probe["attribute"].iloc[0])) or "attribute"
    looks = {
        1: SeriesStyle(attribute, PURPLE),
        0: SeriesStyle(f"not {attribute}", SKY_BLUE),
    }
    specs: list[list[dict[str, int] | None]] = [[{}, None] for _ in shown]
    specs[0][1] = {"rowspan": len(shown)}
    held_out = int(probe["n_held_out"].max())
    figure = panel_grid(
        len(shown),
        2,
        titles=[
            _CONTROLS.get(shown[0], words(shown[0])),
            "held-out texts, n = " + f"{held_out:,}",
            *(_CONTROLS.get(name, words(name)) for name in shown[1:]),
        ],
        height=340,
        left=50,
        gap_x=124,
        gap_y=44,
        specs=specs,
        column_widths=[0.5, 0.5],
    )
    edges = _edges(probe_scores["score"], 24)
    for row, control in enumerate(shown, start=1):
        scores = probe_scores[probe_scores["control"] == control]
        for label, style in looks.items():
            sample = scores.loc[scores["label"].astype(int) == label, "score"].to_numpy(np.float64)
            sample = sample[np.isfinite(sample)]
            main = control == "probe"
            if len(sample):
                add_outline(
                    figure,
                    sample,
                    edges,
                    style if main else replace(style, dash=DASH),
                    opacity=0.32 if main else 0.12,
                    row=row,
                    col=1,
                )
        figure.add_vline(0, line={"color": INK, "width": 1, "dash": DOT}, row=row, col=1)
    figure.update_xaxes(range=[float(edges[0]), float(edges[-1])], col=1)
    figure.update_xaxes(showticklabels=False, row=1, col=1)
    figure.update_xaxes(
        title_text="decision value (logits)", showticklabels=True, row=len(shown), col=1
    )
    figure.update_yaxes(rangemode="tozero", nticks=4, title_text="share of texts", col=1)
    _forest(figure, probe)
    return finish(figure)


def _forest(figure: go.Figure, probe: pd.DataFrame) -> None:
    controls = ordered_names(probe, "control", tuple(_CONTROLS))
    table = probe.drop_duplicates("control").set_index("control").loc[controls].reset_index()
    offset = 0.17
    for order, (column, low, high, style) in enumerate(_STATISTICS):
        add_marks(
            figure,
            floats(table, column),
            [line + (2 * order - 1) * offset for line in range(len(controls))],
            style,
            low=floats(table, low),
            high=floats(table, high),
            row=1,
            col=2,
        )
    axis = forest_axis([_CONTROLS.get(control, words(control)) for control in controls])
    bottom, top = axis["range"]
    for level, colour, label in (
        (0.5, INK, "chance"),
        (PUBLISHED_ACCURACY, BAND_INK, f"published accuracy: {PUBLISHED_ACCURACY:.2f}"),
    ):
        add_level(figure, level, (bottom, top), colour, label, upright=True, row=1, col=2)
    figure.update_yaxes(**axis, row=1, col=2)
    lowest = min([0.5, *[v for v in floats(table, "low") + floats(table, "auroc_low") if v == v]])
    figure.update_xaxes(
        range=[max(0.0, lowest - 0.06), 1.02],
        title_text="balanced accuracy, AUROC",
        dtick=0.1,
        row=1,
        col=2,
    )
