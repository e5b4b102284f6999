"""The figure of the multiverse holds the verdicts of its table."""

from __future__ import annotations

import pandas as pd
import pytest

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.multiverse import multiverse


def table() -> pd.DataFrame:
    rows = [
        (6, "default", "default", "PARTIAL"),
        (6, "position", "response", "REPLICATED"),
        (6, "site", "last resid_post", "PARTIAL"),
        (6, "all", "h · response", "PARTIAL"),
        (6, "all", "h · last_prompt", "TRIVIAL"),
        (7, "default", "default", "FAILED"),
        (7, "site", "last resid_post", "NOT RUN"),
        (14, "default", "default", "NOT RUN"),
        (20, "default", "default", "NOT RUN"),
        (21, "default", "default", "NOT RUN"),
        (22, "default", "default", "NOT RUN"),
    ]
    found = pd.DataFrame(rows, columns=["id", "dimension", "choice", "verdict"])
    return found.assign(
        default=found["dimension"] == "default",
        applies=found["verdict"] != "NOT RUN",
        flips=[False, True, *[False] * 9],
    )


def cells(figure: object) -> dict[tuple[float, float], tuple[str, float]]:
    """Letter and border of each cell by place."""
    return {
        (x, y): (text, border)
        for trace in figure.data  # type: ignore[attr-defined]
        if trace.type == "scatter"
        for x, y, text, border in zip(
            trace.x, trace.y, trace.text, trace.marker.line.width, strict=True
        )
    }


def test_a_cell_for_each_verdict_and_a_border_for_each_flip() -> None:
    figure = multiverse(table())
    found = cells(figure)
    columns = list(figure.layout.xaxis.ticktext)
    # Dimensions in the order of the claims, the default first.
    assert columns == ["default", "site: last resid_post", "position: response"]
    places = list(figure.layout.xaxis.tickvals)
    letters = {(columns[places.index(x)], y): text for (x, y), (text, _) in found.items()}
    assert letters == {
        ("default", 0): "P",
        ("site: last resid_post", 0): "P",
        ("position: response", 0): "R",
        ("default", 1): "F",
        ("site: last resid_post", 1): "–",
    }
    thick = {place for place, (_, border) in found.items() if border > 1}
    assert thick == {(places[2], 0)}


def test_verdicts_differ_in_colour_and_letter() -> None:
    figure = multiverse(table())
    looks = [(t.marker.color, t.text[0]) for t in figure.data if t.type == "scatter"]
    assert len({colour for colour, _ in looks}) == len({letter for _, letter in looks}) == 4


def test_shares_of_all_combinations_add_up() -> None:
    bars = [trace for trace in multiverse(table()).data if trace.type == "bar"]
    assert [list(bar.x) for bar in bars] == [[0.5], [0.5]]
    assert [list(bar.y) for bar in bars] == [[0], [0]]
    assert "share of 2" in multiverse(table()).layout.xaxis2.ticktext[0]


def test_claims_without_a_verdict_are_named() -> None:
    notes = [note.text for note in multiverse(table()).layout.annotations]
    assert any("rows 14, 20–22" in note for note in notes)


def test_some_claims_at_a_time() -> None:
    figure = multiverse(table(), ids=[7])
    assert set(cells(figure)) == {(0, 0), (1.45, 0)}
    assert not [trace for trace in figure.data if trace.type == "bar"]


def test_many_choices_fit_the_width() -> None:
    wide = pd.concat(
        [
            table(),
            pd.DataFrame(
                [
                    (6, "suite", f"suite {index}", "FAILED", False, True, False)
                    for index in range(30)
                ],
                columns=["id", "dimension", "choice", "verdict", "default", "applies", "flips"],
            ),
        ]
    )
    figure = multiverse(wide)
    assert figure.layout.width == 528
    assert figure.layout.xaxis.domain[1] < figure.layout.xaxis2.domain[0]
    assert figure.layout.xaxis2.domain[1] <= 1
    room = (528 - figure.layout.margin.l - figure.layout.margin.r) * figure.layout.xaxis.domain[1]
    assert figure.data[0].marker.size <= room / 34


@pytest.mark.parametrize(
    "changed",
    [
        table().drop(columns="flips"),
        table().iloc[:0],
        table().assign(verdict="NOT RUN"),
        table().assign(default=False),
    ],
)
def test_tables_that_cannot_be_drawn(changed: pd.DataFrame) -> None:
    with pytest.raises(ShapeError, match="multiverse"):
        multiverse(changed)
