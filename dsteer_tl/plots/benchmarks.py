"""Measured ratios beside their targets, from the entries of `figures/benchmarks.json` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.labels import escape_text
from dsteer_tl.plots.panels import finish, panel_grid
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.theme import GREEN, INK, VERMILLION
from dsteer_tl.plots.toxicity_axes import forest_axis

Entries = Mapping[str, Mapping[str, Any]]

NOT_RUN = "NOT RUN"
#: Ceilings below this are of errors, not of costs, and have an axis of their own.
_ERROR = 0.02
#: Beginnings of names, in the order of the rows; anything else follows.
_ORDER = (
    "capture_overhead",
    "peak_memory",
    "capture_against",
    "sweep",
    "spectra",
    "growth",
    "startup",
    "gpu",
)
_WIDTH, _LEFT, _RIGHT = 760, 286, 104
_LINE, _GAP = 17, 62
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One benchmark as it is shown.

    Attributes:
        name: Its key in the file.
        ratio: Median, or None where it was not run.
        target: Bound on the ratio.
        at_least: Whether the target is a floor and not a ceiling.
        repetitions: The single ratios.
        reason: Why it was not run, or "".
    """

    name: str
    ratio: float | None
    target: float
    at_least: bool
    repetitions: tuple[float, ...] = ()
    reason: str = ""

    @property
    def label(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None where nothing was run."""
        if self.ratio is None:
            return None
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target

    @property
    def bound(self) -> str:
        """The target as text, as in "≤ 1.1"."""
        return f"{'≥' if self.at_least else '≤'} {short(self.target)}"


def short(value: float) -> str:
    """A number in three significant digits or so, and in powers of ten where it is small."""
    size = abs(value)
    if value == 0 or 0.001 <= size < 10_000:
        digits = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
        text = f"{value:.{digits}f}"
        return (text.rstrip("0").rstrip(".") if size < 1 else text).replace("-", "−")
    mantissa, _, power = f"{value:.1e}".partition("e")
    raised = f"10{str(int(power)).translate(_RAISED)}"
    return raised if mantissa == "1.0" else f"{mantissa}·{raised}".replace("-", "−")


def read_entries(entries: Entries) -> list[Measured]:
    """Benchmarks in the order of their rows.

    Raises:
        ShapeError: An entry has neither a ratio with its target nor a reason for having none.
    """
    found = []
    for name, entry in entries.items():
        wanted = {"target", "direction"} if entry.get("status") == NOT_RUN else {"ratio", "target"}
        missing = {*wanted, "direction"} - set(entry)
        if entry.get("status") == NOT_RUN:
            missing = {"reason"} - set(entry)
        if missing or entry.get("direction", "<=") not in ("<=", ">="):
            raise ShapeError(
                f"benchmark {name!r} has {', '.join(sorted(entry))}; expected ratio, target and "
                "direction '<=' or '>=', or status 'NOT RUN' with its reason: run `make bench`"
            )
        ratio = entry.get("ratio")
        found.append(
            Measured(
                name=name,
                ratio=None if ratio is None else float(ratio),
                target=float(entry.get("target", math.nan)),
                at_least=entry.get("direction") == ">=",
                repetitions=tuple(float(value) for value in entry.get("ratios", ())),
                reason=str(entry.get("reason", "")),
            )
        )
    return sorted(found, key=lambda one: (_rank(one.name), one.name))


def _rank(name: str) -> int:
    starts = [place for place, start in enumerate(_ORDER) if name.startswith(start)]
    return starts[0] if starts else len(_ORDER)


def benchmarks(entries: Entries) -> go.Figure:
    """Every benchmark as a row: its median, its single repetitions (faint), and its target.

    Costs with a ceiling, gains with a floor, and errors have panels of their own, with a
    logarithmic axis where a panel spans more than a decade. What was not run is listed below.

    Args:
        entries: By name: ``ratio``, ``target``, ``direction`` ("<=" or ">="), and, where there are
            single repetitions, ``ratios``; or ``status`` "NOT RUN" with its ``reason``.

    Raises:
        ShapeError: There is no entry with a ratio, or an entry lacks what is drawn.
    """
    rows = read_entries(entries)
    measured = [row for row in rows if row.ratio is not None]
    if not measured:
        raise ShapeError(
            f"found {len(rows)} benchmarks and no measured ratio among them, expected one or more: "
            "run `make bench`"
        )
    panels = [
        (title, group)
        for title, group in (
            ("cost: ratio, no more than the target", [r for r in measured if _is_cost(r)]),
            ("gain: ratio, no less than the target", [r for r in measured if r.at_least]),
            ("error, no more than the target", [r for r in measured if _is_error(r)]),
        )
        if group
    ]
    sizes = [_LINE * len(group) + 10 for _, group in panels]
    figure = panel_grid(
        len(panels),
        1,
        titles=[title for title, _ in panels],
        height=sum(sizes) + _GAP * (len(panels) - 1) + 98,
        left=_LEFT,
        right=_RIGHT,
        gap_y=_GAP,
        row_heights=sizes,
    )
    figure.update_layout(width=_WIDTH)
    for place, (_, group) in enumerate(panels, start=1):
        _add_panel(figure, group, place)
    finish(figure)
    footnotes(figure, _notes(rows), below=34)
    return figure


def _is_error(row: Measured) -> bool:
    return not row.at_least and row.target <= _ERROR


def _is_cost(row: Measured) -> bool:
    return not row.at_least and row.target > _ERROR


def _add_panel(figure: go.Figure, rows: Sequence[Measured], place: int) -> None:
    looks = ((True, "target met", GREEN, "circle"), (False, "target missed", VERMILLION, "x"))
    for met, name, colour, symbol in looks:
        here = [(line, row) for line, row in enumerate(rows) if row.met is met]
        single = [(value, line) for line, row in here for value in row.repetitions]
        _add_marks(figure, single, place, name="", color=colour, symbol="circle", size=4.5, faint=1)
        medians = [(row.ratio or 0.0, line) for line, row in here]
        _add_marks(figure, medians, place, name=name, color=colour, symbol=symbol, size=8)
    targets = [(row.target, line) for line, row in enumerate(rows)]
    _add_marks(figure, targets, place, name="target", color=INK, symbol="line-ns-open", size=13)
    for line, row in enumerate(rows):
        figure.add_annotation(
            text=f"<b>{short(row.ratio or 0.0)}</b>  ({row.bound})",
            x=1.015,
            xref="x domain",
            xanchor="left",
            y=line,
            yref="y",
            font_size=10,
            showarrow=False,
            row=place,
            col=1,
        )
    labels = [escape_text(row.label) for row in rows]
    figure.update_yaxes(**forest_axis(labels), row=place, col=1)
    values = [v for row in rows for v in (row.ratio or 0.0, row.target, *row.repetitions)]
    figure.update_xaxes(**_ratio_axis(values), row=place, col=1)


def _add_marks(
    figure: go.Figure,
    points: Sequence[tuple[float, int]],
    place: int,
    *,
    name: str,
    color: str,
    symbol: str,
    size: float,
    faint: bool | int = False,
) -> None:
    if not points:
        return
    figure.add_trace(
        go.Scatter(
            x=[value for value, _ in points],
            y=[line for _, line in points],
            mode="markers",
            name=name,
            legendgroup=name or None,
            legendrank=1100 if name == "target" else 1000,
            showlegend=bool(name),
            hoverinfo="skip" if faint else None,
            marker={
                "color": color,
                "symbol": symbol,
                "size": size,
                "opacity": 0.28 if faint else 1,
                "line": {"width": 1.6 if symbol.endswith("-open") else 0, "color": color},
            },
        ),
        row=place,
        col=1,
    )


def _ratio_axis(values: Sequence[float]) -> dict[str, Any]:
    """From 0, or logarithmic where the values span more than a decade."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) <= 10 * min(positive):
        return {"range": [0, 1.06 * max(values)], "nticks": 9}
    low, high = math.log10(min(positive)), math.log10(max(positive))
    pad = 0.05 * (high - low)
    heads = (1, 2, 5) if high - low < 2.2 else (1,)
    powers = range(math.floor(low - pad), math.ceil(high + pad) + 1)
    ticks = [head * 10.0**power for power in powers for head in heads]
    return {
        "type": "log",
        "range": [low - pad, high + pad],
        "tickvals": ticks,
        "ticktext": [short(tick).removesuffix(".00").removesuffix(".0") for tick in ticks],
    }


def _notes(rows: Sequence[Measured]) -> list[str]:
    least = min(len(row.repetitions) for row in rows if row.ratio is not None)
    notes = [
        "Medians of ratios within one run"
        + (f", of {least} repetitions or more (faint). " if least else ". ")
        + "Right: median and target."
    ]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.ratio is None:
            reasons.setdefault(row.reason, []).append(row.label)
    notes += [f"{NOT_RUN}: {', '.join(names)} ({reason})." for reason, names in reasons.items()]
    return notes
