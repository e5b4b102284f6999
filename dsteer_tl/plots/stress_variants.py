"""Trained variants of the policy side by side: one line a condition, one panel a statistic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import count_label, escape_text, position_label, site_label
from dsteer_tl.plots.panels import finish, padded_range, panel_grid
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.tables import check_table, floats, ordered_kinds, select_rows
from dsteer_tl.plots.theme import BLUE, GREEN, INK, VERMILLION, SeriesStyle
from dsteer_tl.plots.toxicity_axes import forest_axis
from dsteer_tl.plots.toxicity_parts import add_marks
from dsteer_tl.stress.columns import VARIANT_COLUMNS

#: Statistics shown, with what their axis must include.
_PANELS: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    ("cos_loo_mean", "mean cosine with v*", (0.0, 1.0)),
    ("sigma_ratio", "σ₂/σ₁, uncentred", (0.0,)),
    ("effective_rank", "effective rank, uncentred", (1.0,)),
    ("recovered", "KL recovered by v*", (0.0, 1.0)),
    ("cos_to_reference", "cosine of v* with the first’s", (0.0, 1.0)),
    ("accuracy", "accuracy on held-out pairs", (0.5,)),
)
_OUTPUT, _PAIRS = "output", "pair"
_LOOKS = {
    "last_prompt": SeriesStyle("last prompt token", BLUE, symbol="circle"),
    "response": SeriesStyle("response tokens", VERMILLION, symbol="square"),
    _PAIRS: SeriesStyle("whole responses", GREEN, symbol="diamond"),
}
_COLUMNS, _LINE, _GAP_X = 3, 22, 14
_OWN_DATA = "run"


def stress_variants(table: pd.DataFrame, site: str = "h") -> go.Figure:
    """Direction, rank and recovery under every condition of one stress test, with 95 % intervals.

    The first condition is the one that the others are compared with; controls have open marks and
    their names in italics. What is undefined for a condition, as the cosines of a random vector,
    is left out.

    Args:
        table: Table `stress_embeddings`, `stress_causes`, `stress_losses` or `stress_sensitivity`.
        site: Where shifts are read.

    Raises:
        ShapeError: The table lacks columns or rows, or was not measured at the site.
    """
    check_table(table, "stress variants", VARIANT_COLUMNS)
    shown = pd.concat(
        [
            select_rows(table, "stress variants", site=site),
            table[(table["site"] == _OUTPUT) & (table["statistic"] == "accuracy")],
        ]
    )
    lines = shown[["data", "condition", "role"]].drop_duplicates().reset_index(drop=True)
    labels = [_label(*map(str, line)) for line in lines.to_numpy().tolist()]
    longest = max(len(label.replace("<i>", "").replace("</i>", "")) for label in labels)
    rows = math.ceil(len(_PANELS) / _COLUMNS)
    left = min(24 + 6 * longest, 190)
    figure = panel_grid(
        rows,
        _COLUMNS,
        titles=[title for _, title, _ in _PANELS],
        height=rows * (_LINE * len(labels) + 12) + (rows - 1) * 60 + 70,
        left=left,
        gap_x=_GAP_X,
        gap_y=60,
        share_y=True,
    )
    for index, (statistic, _, include) in enumerate(_PANELS):
        row, column = divmod(index, _COLUMNS)
        found = shown[shown["statistic"] == statistic]
        _add_panel(figure, found, lines, include, row + 1, column + 1)
        figure.update_yaxes(**forest_axis(labels), row=row + 1, col=column + 1)
    figure.update_annotations(font_size=10)
    finish(figure, narrow=True)
    footnotes(figure, _notes(shown, lines, site), below=30)
    return figure


def _label(data: str, condition: str, role: str) -> str:
    name = escape_text(condition.replace("_", " "))
    if data != _OWN_DATA:
        name += f", on {escape_text(data)}"
    return f"<i>{name}</i>" if role == "control" else name


def _add_panel(
    figure: go.Figure,
    rows: pd.DataFrame,
    lines: pd.DataFrame,
    include: Sequence[float],
    row: int,
    column: int,
) -> None:
    keys = [tuple(line) for line in lines[["data", "condition"]].to_numpy().tolist()]
    places = {key: place for place, key in enumerate(keys)}
    kinds = ordered_kinds(rows) if len(rows) else []
    drawn: list[float] = []
    for offset, kind in enumerate(kinds):
        here = rows[rows["position_kind"] == kind]
        shift = 0.22 * (offset - (len(kinds) - 1) / 2)
        for role in ("measured", "control"):
            group = here[here["role"] == role]
            if not len(group):
                continue
            style = _LOOKS.get(kind, SeriesStyle(position_label(kind), INK))
            values = floats(group, "value")
            drawn += [*values, *floats(group, "low"), *floats(group, "high")]
            spots = group[["data", "condition"]].to_numpy().tolist()
            add_marks(
                figure,
                values,
                [places[(data, name)] + shift for data, name in spots],
                style,
                low=floats(group, "low"),
                high=floats(group, "high"),
                open_symbol=role == "control",
                size=6.5,
                showlegend=role == "measured",
                row=row,
                col=column,
            )
    figure.update_xaxes(range=padded_range(drawn, include=include), nticks=5, row=row, col=column)


def _notes(shown: pd.DataFrame, lines: pd.DataFrame, site: str) -> list[str]:
    sizes = []
    for kind in ordered_kinds(shown):
        rows = shown[(shown["position_kind"] == kind) & (shown["statistic"] == "cos_loo_mean")]
        if len(rows):
            sizes.append(f"{position_label(kind)}, {count_label([int(n) for n in rows['n']])}")
    first = str(lines["condition"].iloc[0]).replace("_", " ")
    return [
        f"Shifts at {site_label(site)} ({'; '.join(sizes)}). “{first}” is the condition that the "
        "others are compared with. Open marks and italics: controls. Bars: 95 % intervals over "
        "prompts."
    ]
