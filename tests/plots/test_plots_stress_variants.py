"""Figures of the stress tests that train variants, on synthetic tables."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.stress_axes import stress_axes
from dsteer_tl.plots.stress_variants import stress_variants
from dsteer_tl.plots.theme import WIDTH
from tests import stress_tables as make


@pytest.fixture
def variants() -> pd.DataFrame:
    return make.variants()


@pytest.fixture
def axes() -> pd.DataFrame:
    return make.axes()


def names(figure: go.Figure) -> list[str]:
    return [trace.name for trace in figure.data if trace.showlegend is not False]


def test_one_line_a_condition(variants: pd.DataFrame) -> None:
    figure = stress_variants(variants)
    assert figure.layout.width == WIDTH
    labels = list(figure.layout.yaxis.ticktext)
    assert labels == ["as run", "loss &lt;b&gt;", "data hh, on hh", "<i>random vector</i>"]
    marks = [trace for trace in figure.data if trace.xaxis == "x5"]
    open_marks = [trace for trace in marks if trace.marker.symbol.endswith("-open")]
    assert [round(place) for trace in open_marks for place in trace.y] == [3, 3]
    assert names(figure) == ["last prompt token", "response tokens", "whole responses"]
    shown = json.dumps(figure.to_dict(), default=str)
    assert "n = 64" in shown and "n = 1,000" in shown


def test_intervals_are_drawn(variants: pd.DataFrame) -> None:
    figure = stress_variants(variants)
    mark = next(trace for trace in figure.data if trace.xaxis == "x")
    assert np.allclose(mark.error_x.array, 0.1) and np.allclose(mark.error_x.arrayminus, 0.05)


def test_ranks_against_the_number_of_axes(axes: pd.DataFrame) -> None:
    figure = stress_axes(axes)
    assert set(names(figure)) == {
        *("uncentred", "centred", "uncentred, shuffled", "centred, shuffled"),
        *("rank grows as k", "a", "b c"),
    }
    line = next(t for t in figure.data if t.name == "uncentred" and t.mode == "lines+markers")
    assert list(line.x) == [1.0, 2.0, 4.0] and list(line.y) == [1.0, 0.2, 0.2]
    control = next(t for t in figure.data if t.name == "uncentred, shuffled")
    assert len(control.x) == 1 and control.marker.symbol == "x"
    grows = next(t for t in figure.data if t.name == "rank grows as k")
    assert list(grows.y) == [1.0, 2.0, 4.0]
    assert "40 %" in json.dumps(figure.to_dict(), default=str, ensure_ascii=False)


def test_tables_that_cannot_be_drawn(variants: pd.DataFrame, axes: pd.DataFrame) -> None:
    with pytest.raises(ShapeError, match="missing low"):
        stress_variants(variants.drop(columns="low"))
    with pytest.raises(ShapeError, match="no rows with site"):
        stress_variants(variants, site="resid_post.7")
    with pytest.raises(ShapeError, match="no condition axes_<k>"):
        stress_axes(variants)
    with pytest.raises(ShapeError, match="no ratios of ranks"):
        stress_axes(axes[axes["condition"] == "axes_1"])
