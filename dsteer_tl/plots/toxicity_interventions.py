"""Vectors subtracted at the last layer: attribute score and F1 against perplexity (Table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.panels import add_note, finish, padded_range, panel_grid
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.tables import check_table, floats
from dsteer_tl.plots.theme import WIDTH, SeriesStyle
from dsteer_tl.plots.toxicity_axes import forest_axis, log_axis
from dsteer_tl.plots.toxicity_doses import compared_row, farthest
from dsteer_tl.plots.toxicity_parts import add_marks, counted
from dsteer_tl.plots.toxicity_vector_looks import ANCHORS, vector_styles

INTERVENTION_COLUMNS = (
    "vector",
    "role",
    "coefficient",
    "matched",
    "perplexity",
    "attribute_score",
    "low",
    "high",
    "f1",
    "f1_low",
    "f1_high",
    "prompts",
    "windows",
)

_LINE = 17
_GAP = 68
_LEFT = 62
_LABELS = 78


@dataclass(frozen=True, slots=True)
class _Panel:
    """A statistic: its columns in the table, its name, and the height of its paths in pixels."""

    column: str
    low: str
    high: str
    title: str
    height: int


_PANELS = (
    _Panel("attribute_score", "low", "high", "attribute score", 200),
    _Panel("f1", "f1_low", "f1_high", "F1", 110),
)


def toxicity_interventions(interventions: pd.DataFrame) -> go.Figure:
    """Attribute score and F1 against perplexity, for every vector subtracted from the base.

    Each path starts at the base and grows with the coefficient; rings mark where its perplexity is
    the policy's, as any vector that is large enough lowers the score (claim 22). Below are the
    ringed points with their intervals, beside the base, the policy, a random change of its weights
    and a policy of shuffled pairs (claim 23): Table 2 of Lee et al. 2024.

    Args:
        interventions: Table `toxicity_interventions`, with 95 % intervals. Scores may be missing
            where the scorer could not run, and F1 where windows were not continued; a statistic
            that was measured at one coefficient a vector has no paths.

    Raises:
        ShapeError: The table lacks columns or rows.
    """
    check_table(interventions, "toxicity_interventions", INTERVENTION_COLUMNS)
    table = interventions.reset_index(drop=True)
    panels = [p for p in _PANELS if np.isfinite(table[p.column]).any()] or [_PANELS[1]]
    paths = [panel for panel in panels if _measured_along(table, panel)] or panels[:1]
    anchors = {name: look for name, look in ANCHORS.items() if (table["vector"] == name).any()}
    styles = vector_styles(table)
    lines = anchors | styles
    figure = _grid(paths, panels, len(lines))
    shown = table[table["perplexity"] <= farthest(table)]
    for row, panel in enumerate(paths, start=1):
        heights: list[float] = []
        # Models over the paths and rings over the models, as all of them meet.
        for name, style in styles.items():
            heights += _add_path(figure, shown, name, style, panel, row)
        for name, style in anchors.items():
            heights += _add_anchor(figure, shown, name, style, panel, row)
        for name, style in styles.items():
            _add_ring(figure, shown, name, style, panel, row)
        figure.update_yaxes(
            title_text=panel.title, range=padded_range(heights, pad=0.1), nticks=6, row=row, col=1
        )
        figure.update_xaxes(
            **log_axis(floats(shown, "perplexity"), most=8),
            showticklabels=row == len(paths),
            title_text="perplexity of running text" if row == len(paths) else None,
            row=row,
            col=1,
        )
    for col, panel in enumerate(panels, start=1):
        _add_forest(figure, table, lines, panel, len(paths) + 1, col)
    finish(figure)
    footnotes(figure, _notes(table, shown, panels), below=30)
    return figure


def _measured_along(table: pd.DataFrame, panel: _Panel) -> bool:
    """Whether the vectors have two values and more each, as a rule."""
    rows = table[table["role"] != "anchor"]
    count = np.isfinite(rows[panel.column]).groupby(rows["vector"]).sum()
    return bool(len(count)) and float(count.median()) > 1


def _grid(paths: Sequence[_Panel], panels: Sequence[_Panel], lines: int) -> go.Figure:
    """Panels of paths over each other, and below them one forest a statistic, side by side."""
    count = len(panels)
    pixels = [panel.height for panel in paths] + [_LINE * lines + 6]
    gaps = [14] * (len(paths) - 1) + [_GAP]
    high = sum(pixels) + sum(gaps)
    wide = WIDTH - _LEFT - 12
    specs: list[list[dict[str, float] | None]] = [
        [{"colspan": count}, *[None] * (count - 1)] for _ in paths
    ]
    specs.append([{} for _ in panels])
    figure = panel_grid(
        len(pixels), count, height=high + 52 + 46, left=_LEFT, gap_x=20, specs=specs
    )
    top = float(high)
    for row, (height, gap) in enumerate(zip(pixels, [*gaps, 0], strict=True), start=1):
        figure.update_yaxes(domain=[max(top - height, 0) / high, top / high], row=row)
        top -= height + gap
    # Labels of the forest need more room than the ticks of the paths.
    each = (wide - _LABELS - 20 * (count - 1)) / count
    for col, panel in enumerate(panels, start=1):
        start = _LABELS + (col - 1) * (each + 20)
        domain = [start / wide, min((start + each) / wide, 1.0)]
        figure.update_xaxes(domain=domain, row=len(pixels), col=col)
        add_note(
            figure,
            f"{panel.title}, 95 % CI",
            x=sum(domain) / 2,
            y=pixels[-1] / high,
            xanchor="center",
            yanchor="bottom",
            yshift=2,
        )
    return figure


def _notes(table: pd.DataFrame, shown: pd.DataFrame, panels: Sequence[_Panel]) -> list[str]:
    prompts = counted(floats(table, "prompts"), "prompts")
    windows = counted(floats(table, "windows"), "windows")
    text = (
        "Paths: base − αv for growing α. Rings, and vectors below: the α whose perplexity is the "
        f"policy’s. {prompts}; perplexity and F1: {windows} of text."
    )
    vectors = dict.fromkeys(table.loc[table["role"] != "anchor", "vector"])
    if not all(compared_row(table, vector)["matched"].astype(bool).all() for vector in vectors):
        text += " Open marks: at another perplexity."
    if len(shown) < len(table):
        text += f" {len(table) - len(shown)} points of higher perplexity are not drawn."
    missing = [panel.title for panel in _PANELS if panel not in panels]
    return [text, *(f"NOT RUN: {title}." for title in missing)]


def _add_path(
    figure: go.Figure,
    table: pd.DataFrame,
    vector: str,
    style: SeriesStyle,
    panel: _Panel,
    row: int,
) -> list[float]:
    """The path of one vector from the base on; the heights drawn."""
    table = table[np.isfinite(table[panel.column])]
    rows = table[table["vector"] == vector]
    start = table[table["vector"] == "base"].assign(coefficient=0.0).iloc[:1]
    path = pd.concat([start, rows]).sort_values("coefficient", kind="stable")
    control = style.dash != "solid"
    figure.add_trace(
        go.Scatter(
            x=floats(path, "perplexity"),
            y=floats(path, panel.column),
            mode="lines+markers",
            name=style.label,
            legendgroup=style.label,
            legendrank=1100 if control else 1000,
            line={"color": style.colour, "dash": style.dash, "width": 1.4 if control else 2},
            marker={"symbol": style.symbol, "size": 5},
            customdata=floats(path, "coefficient"),
            hovertemplate=f"{style.label}, α = %{{customdata:.3g}}<extra></extra>",
        ),
        row=row,
        col=1,
    )
    return floats(rows, panel.column)


def _add_ring(
    figure: go.Figure,
    table: pd.DataFrame,
    vector: str,
    style: SeriesStyle,
    panel: _Panel,
    row: int,
) -> None:
    """A ring around the point of one vector that is matched in perplexity."""
    rings = table[(table["vector"] == vector) & table["matched"].astype(bool)]
    figure.add_trace(
        go.Scatter(
            x=floats(rings, "perplexity"),
            y=floats(rings, panel.column),
            mode="markers",
            name=style.label,
            legendgroup=style.label,
            showlegend=False,
            marker={
                "symbol": "circle-open",
                "size": 12,
                "color": style.colour,
                "line": {"width": 1.6, "color": style.colour},
            },
            hoverinfo="skip",
        ),
        row=row,
        col=1,
    )


def _add_anchor(
    figure: go.Figure,
    table: pd.DataFrame,
    name: str,
    style: SeriesStyle,
    panel: _Panel,
    row: int,
) -> list[float]:
    """A model of its own as a large mark; the heights drawn."""
    rows = table[(table["vector"] == name) & np.isfinite(table[panel.column])].iloc[:1]
    figure.add_trace(
        go.Scatter(
            x=floats(rows, "perplexity"),
            y=floats(rows, panel.column),
            mode="markers",
            name=style.label,
            legendgroup=style.label,
            legendrank={"base": 890, "policy": 900}.get(name, 1050),
            marker={
                "symbol": style.symbol,
                # A random change of the weights may leave the base where it is.
                "size": 14 if name == "base" else 10,
                "color": style.colour,
                "line": {"width": 1 if style.dash == "solid" else 0, "color": "#FFFFFF"},
            },
        ),
        row=row,
        col=1,
    )
    return floats(rows, panel.column)


def _add_forest(
    figure: go.Figure,
    table: pd.DataFrame,
    lines: dict[str, SeriesStyle],
    panel: _Panel,
    row: int,
    col: int,
) -> None:
    """Models and matched vectors, one a line, with their intervals."""
    ends: list[float] = []
    for place, (name, style) in enumerate(lines.items()):
        rows = compared_row(table, name)
        matched = rows["matched"].astype(bool) | (rows["role"] == "anchor")
        values, low, high = (floats(rows, c) for c in (panel.column, panel.low, panel.high))
        ends += [*values, *low, *high]
        add_marks(
            figure,
            values,
            [place],
            style,
            low=low,
            high=high,
            open_symbol=not matched.all(),
            showlegend=False,
            row=row,
            col=col,
        )
    axis = forest_axis([style.label for style in lines.values()])
    figure.update_yaxes(**axis, row=row, col=col)
    figure.update_yaxes(showticklabels=col == 1, row=row, col=col)
    figure.update_xaxes(range=padded_range(ends), nticks=6, row=row, col=col)
