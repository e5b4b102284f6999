"""Figures of the stress tests on prompts: what they draw is what the tables say."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.stress_encodings import stress_encodings
from dsteer_tl.plots.stress_models import stress_models
from dsteer_tl.plots.stress_prompts import stress_prompts
from dsteer_tl.plots.stress_turns import stress_turns
from dsteer_tl.plots.theme import WIDTH
from tests.stress_tables import encodings, models, prompts, turns


def traces(figure: go.Figure, name: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.name == name]


def test_encodings_stand_beside_as_many_random_tokens() -> None:
    figure = stress_encodings(encodings())
    measured, gains = traces(figure, "encoded prompts")
    assert measured.x == pytest.approx((0.3, 0.4, 0.5))
    assert measured.error_x.array == pytest.approx((0.2,) * 3)
    assert measured.error_x.arrayminus == pytest.approx((0.1,) * 3)
    assert len(gains.x) == 4
    random = traces(figure, "random tokens")[0]
    assert random.x == pytest.approx((0.6, 0.7, 0.8))
    # Both stand on the same line of the axis, a little apart.
    assert np.round(measured.y).tolist() == np.round(random.y).tolist()
    names = figure.layout.yaxis.ticktext
    assert names == ("plain", "ROT13", "morse&lt;b&gt;", "all encodings", "plain, other half")


def test_turns_are_lines_of_the_same_dialogues_and_their_controls() -> None:
    figure = stress_turns(turns())
    line = next(t for t in traces(figure, "dialogue") if t.mode == "lines+markers")
    assert (line.x, line.y) == ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0))
    control = next(
        t for t in traces(figure, "first turn behind random tokens") if t.mode == "lines+markers"
    )
    assert control.y == (3.0, 4.0, 5.0)
    assert "n = 12" in figure.layout.annotations[0].text
    scores = [t for t in figure.data if t.yaxis == "y4" and t.mode == "lines+markers"]
    assert [t.name for t in scores] == ["dialogue"], "scores are of dialogues alone"


def test_prompts_are_told_from_their_controls() -> None:
    figure = stress_prompts(prompts())
    sizes = traces(figure, "prompts")[0]
    assert sizes.x == pytest.approx((0.1, 0.2))
    controls = traces(figure, "controls")
    assert controls[0].x == pytest.approx((0.3,)), "random weights are another model"
    assert controls[-1].x == pytest.approx((0.5, 0.5, 0.05))
    assert figure.layout.yaxis.ticktext == ("benign", "harmful", "random tokens")


def test_prompts_without_subspaces_have_fewer_panels() -> None:
    table = prompts()
    kept = table[~table["statistic"].str.startswith("subspace")]
    assert len(stress_prompts(kept).layout.annotations) == 3


def test_models_show_every_verdict() -> None:
    figure = stress_models(*models())
    (replicated,) = traces(figure, "R replicated")
    assert (replicated.x, replicated.y) == ((0, 0), (0.0, -1.0))
    (partial,) = traces(figure, "P partial")
    assert (partial.x, partial.y, partial.text) == ((1,), (0.0,), ("P",))
    assert figure.layout.yaxis.ticktext == ("tales", "a run with quit…")


@pytest.mark.parametrize(
    ("build", "table"),
    [(stress_encodings, encodings), (stress_turns, turns), (stress_prompts, prompts)],
)
def test_figures_are_as_wide_as_all_and_refuse_other_tables(build, table) -> None:  # type: ignore[no-untyped-def]
    assert build(table()).layout.width == WIDTH
    with pytest.raises(ShapeError, match="missing"):
        build(table().drop(columns="low"))
    with pytest.raises(ShapeError):
        build(table().iloc[:0])


def test_models_refuse_other_tables() -> None:
    table, verdicts = models()
    assert stress_models(table, verdicts).layout.width == WIDTH
    with pytest.raises(ShapeError, match="missing"):
        stress_models(table, verdicts.drop(columns="verdict"))
