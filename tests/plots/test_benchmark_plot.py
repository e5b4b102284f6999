"""The figure of the benchmarks holds the numbers of its entries and says what was not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.benchmarks import benchmarks, read_entries, short


def entry(ratio: float, target: float, direction: str, *ratios: float) -> dict[str, Any]:
    return {"ratio": ratio, "target": target, "direction": direction, "ratios": list(ratios)}


ENTRIES: dict[str, dict[str, Any]] = {
    "zeta_unknown": entry(0.9, 1.0, "<="),
    "capture_overhead_plain": entry(1.05, 1.1, "<=", 1.0, 1.05, 1.2),
    "capture_overhead_bridge": entry(1.4, 1.1, "<=", 1.3, 1.4, 1.5),
    "capture_against_loop": entry(6.0, 3.0, ">=", 5.0, 6.0, 7.0),
    "capture_against_near": entry(0.9, 1.0, ">=", 0.8, 0.9, 1.0),
    "spectra_error": entry(2e-7, 1e-4, "<="),
    "gpu_one": {"status": "NOT RUN", "reason": "no CUDA device"},
    "gpu_two": {"status": "NOT RUN", "reason": "no CUDA device"},
}


def marks(figure: go.Figure, name: str) -> set[tuple[float, str]]:
    """Value and row of every mark of one kind."""
    found = set()
    for trace in figure.data:
        if trace.name == name:
            axis = figure.layout["yaxis" + (trace.yaxis or "y")[1:]]
            found |= {(x, axis.ticktext[int(y)]) for x, y in zip(trace.x, trace.y, strict=True)}
    return found


def test_medians_and_targets_stand_in_the_row_of_their_name() -> None:
    figure = benchmarks(ENTRIES)
    assert marks(figure, "target met") == {
        (0.9, "zeta unknown"),
        (1.05, "capture overhead plain"),
        (6.0, "capture against loop"),
        (2e-7, "spectra error"),
    }
    assert marks(figure, "target missed") == {
        (1.4, "capture overhead bridge"),
        (0.9, "capture against near"),
    }
    assert {name for _, name in marks(figure, "target")} == {
        name.replace("_", " ") for name, one in ENTRIES.items() if "ratio" in one
    }
    single = [trace for trace in figure.data if trace.marker.opacity == 0.28]
    assert sorted(x for trace in single for x in trace.x) == sorted(
        value for one in ENTRIES.values() for value in one.get("ratios", ())
    )


def test_met_and_missed_differ_in_colour_and_in_shape() -> None:
    figure = benchmarks(ENTRIES)
    looks = {
        trace.name: (trace.marker.color, trace.marker.symbol)
        for trace in figure.data
        if trace.name in ("target met", "target missed")
    }
    met, missed = looks.values()
    assert met[0] != missed[0] and met[1] != missed[1]


def test_what_was_not_run_is_listed_with_its_reason() -> None:
    note = benchmarks(ENTRIES).layout.annotations[-1].text
    assert "NOT RUN: gpu one, gpu two (no CUDA device)." in note.replace("<br>", " ")


def test_an_axis_is_logarithmic_where_it_spans_more_than_a_decade() -> None:
    wide = {**ENTRIES, "capture_against_far": entry(40.0, 3.0, ">=")}
    kinds = {
        figure.layout[axis].type
        for figure, axis in ((benchmarks(ENTRIES), "xaxis"), (benchmarks(wide), "xaxis"))
    }
    assert kinds == {None}  # the panel of costs
    assert benchmarks(ENTRIES).layout.xaxis2.type is None
    assert benchmarks(wide).layout.xaxis2.type == "log"
    assert benchmarks(wide).layout.xaxis3.type == "log"


def test_rows_are_grouped_by_what_they_measure() -> None:
    names = [row.name for row in read_entries(ENTRIES)]
    assert names[:2] == ["capture_overhead_bridge", "capture_overhead_plain"]
    assert names[-1] == "zeta_unknown"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.125, "0.125"),
        (0.5, "0.5"),
        (1.1, "1.10"),
        (31.46, "31.5"),
        (250.7, "251"),
        (2e-7, "2.0·10⁻⁷"),
        (1e-4, "10⁻⁴"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_entries_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ShapeError, match="found 1 benchmarks and no measured ratio"):
        benchmarks({"gpu_one": ENTRIES["gpu_one"]})
    with pytest.raises(ShapeError, match="'bad' has direction, ratio, target; expected"):
        benchmarks({"bad": {"ratio": 1.0, "target": 1.0, "direction": "<"}})


def test_the_published_results_can_be_drawn(repository: Path) -> None:
    path = repository / "figures" / "benchmarks.json"
    entries = json.loads(path.read_text("utf-8"))
    figure = benchmarks(entries)
    drawn = marks(figure, "target met") | marks(figure, "target missed")
    assert len(drawn) == sum("ratio" in one for one in entries.values())
