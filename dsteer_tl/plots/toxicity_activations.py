"""Activations of the attribute's value vectors before and after (Lee et al. 2024, Fig. 2)."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.panels import finish, padded_range, panel_grid
from dsteer_tl.plots.tables import check_table, floats, ordered_names
from dsteer_tl.plots.theme import DOT, INK
from dsteer_tl.plots.toxicity_axes import forest_axis
from dsteer_tl.plots.toxicity_parts import add_marks, counted, group_style, words

ACTIVATION_COLUMNS = ("group", "texts", "mean_base", "change")
ACTIVATION_CHANGE_COLUMNS = (
    "group",
    "texts",
    "change",
    "low",
    "high",
    "share_falling",
    "prompts",
)

_TEXTS = {"off_policy": "the same texts", "on_policy": "each its own texts"}
_GROUPS = ("attribute", "matched")


def toxicity_activations(activations: pd.DataFrame, activation_changes: pd.DataFrame) -> go.Figure:
    """Change of each neuron's mean activation against its mean in the base, and mean changes.

    Activations are oriented, so that a positive one writes the attribute. The control is random
    neurons of the same mean activation: large activations have more to lose (claim 25). On texts
    that both models read a change is the weights'; on texts that each wrote itself it is the
    texts', too.

    Args:
        activations: Table `toxicity_activations`, a row per neuron.
        activation_changes: Table `toxicity_activation_changes`: means of paired changes with
            95 % intervals over neurons.

    Raises:
        ShapeError: A table lacks columns or rows.
    """
    check_table(activations, "toxicity_activations", ACTIVATION_COLUMNS)
    check_table(activation_changes, "toxicity_activation_changes", ACTIVATION_CHANGE_COLUMNS)
    texts = ordered_names(activations, "texts", tuple(_TEXTS))
    groups = ordered_names(activations, "group", _GROUPS)
    neurons = counted(activations.groupby(["group", "texts"]).size().tolist(), "neurons")
    lines = [
        (kind, group)
        for kind in ordered_names(activation_changes, "texts", tuple(_TEXTS))
        for group in ordered_names(activation_changes, "group", _GROUPS)
        if len(_of(activation_changes, kind, group))
    ]
    forest = 26 * len(lines)
    clouds = 170
    specs: list[list[dict[str, int] | None]] = [
        [{} for _ in texts],
        [{"colspan": len(texts)}, *[None] * (len(texts) - 1)],
    ]
    figure = panel_grid(
        2,
        len(texts),
        titles=[
            *(f"{_TEXTS.get(kind, words(kind))}<br>{neurons}" for kind in texts),
            "mean change of the neurons",
        ],
        height=52 + 46 + clouds + forest + 66,
        left=74,
        right=14,
        gap_x=18,
        gap_y=66,
        share_y=False,
        specs=specs,
        row_heights=[clouds, forest],
    )
    values = padded_range(floats(activations, "mean_base"))
    changes = padded_range(floats(activations, "change"), include=(0.0,))
    for col, kind in enumerate(texts, start=1):
        for group in reversed(groups):
            _add_neurons(figure, _of(activations, kind, group), group, len(activations), col)
        figure.add_hline(0, line={"color": INK, "width": 1, "dash": DOT}, row=1, col=col)
        figure.update_xaxes(
            range=values, title_text="mean activation in the base", nticks=6, row=1, col=col
        )
        figure.update_yaxes(range=changes, showticklabels=col == 1, row=1, col=col)
    figure.update_yaxes(title_text="policy − base", row=1, col=1)
    _add_forest(figure, activation_changes, lines)
    return finish(figure)


def _of(table: pd.DataFrame, texts: str, group: str) -> pd.DataFrame:
    return table[(table["texts"] == texts) & (table["group"] == group)]


def _add_neurons(figure: go.Figure, rows: pd.DataFrame, group: str, count: int, col: int) -> None:
    style = group_style(group)
    rows = rows.sort_values(["mean_base", "change"])
    figure.add_trace(
        go.Scatter(
            x=floats(rows, "mean_base"),
            y=floats(rows, "change"),
            mode="markers",
            name=style.label,
            legendgroup=style.label,
            legendrank=1000 if style.dash == "solid" else 1100,
            marker={
                "symbol": style.symbol,
                "color": style.colour,
                "size": 7 if count < 100 else 5,
                "opacity": 0.75,
                "line": {"width": 0},
            },
        ),
        row=1,
        col=col,
    )


def _add_forest(figure: go.Figure, changes: pd.DataFrame, lines: list[tuple[str, str]]) -> None:
    """Mean changes with intervals, and at the right how many neurons fall."""
    ends: list[float] = []
    for place, (texts, group) in enumerate(lines):
        row = _of(changes, texts, group).iloc[:1]
        low, high = floats(row, "low"), floats(row, "high")
        ends += [*low, *high]
        style = group_style(group)
        add_marks(figure, floats(row, "change"), [place], style, low=low, high=high, row=2, col=1)
        figure.add_annotation(
            text=f"{100 * float(row['share_falling'].iloc[0]):.0f} % fall",
            x=1,
            xref="x domain",
            y=place,
            xanchor="right",
            xshift=-2,
            bgcolor="#FFFFFF",
            row=2,
            col=1,
        )
    kinds = list(dict.fromkeys(texts for texts, _ in lines))
    places = [[p for p, (texts, _) in enumerate(lines) if texts == kind] for kind in kinds]
    axis = forest_axis([""] * len(lines)) | {
        "tickvals": [sum(group) / len(group) for group in places],
        "ticktext": [
            _TEXTS.get(kind, words(kind)).replace(" texts", "<br>texts") for kind in kinds
        ],
    }
    figure.update_yaxes(**axis, row=2, col=1)
    figure.add_vline(0, line={"color": INK, "width": 1, "dash": DOT}, row=2, col=1)
    left, right = padded_range(ends, include=(0.0,))
    prompts = counted(floats(changes, "prompts"), "prompts")
    figure.update_xaxes(
        range=[left, right + 0.16 * (right - left)],
        title_text=f"policy − base, 95 % CI over neurons, {prompts}",
        row=2,
        col=1,
    )
