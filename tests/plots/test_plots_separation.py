"""The figure of row 19 holds its table's numbers, with the null beside them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from dsteer_tl.errors import ShapeError
from dsteer_tl.measurements.separation_table import separation_rows
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.plots.separation import separation

SITES = ("resid_post.1", "resid_post.3", "h")


def table(*models: str) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 20, size=40).astype(float)
    settings = MeasurementConfiguration(draws=20)
    rows = []
    for site in SITES:
        states = {name: rng.standard_normal((40, 6)) for name in models}
        rows += separation_rows(site, states, lengths, np.arange(20), settings)
    return pd.DataFrame(rows)


def trace(figure: go.Figure, name: str, axis: str) -> go.Scatter:
    return next(t for t in figure.data if t.name == name and (t.xaxis or "x") == axis)


def test_marks_are_the_rows_of_the_table():
    rows = table("base", "policy", "random_weights")
    figure = separation(rows)
    for name, model in (("policy", "policy"), ("random weight change", "random_weights")):
        kept = rows[(rows["model"] == model) & rows["index"].isin(["chi", "chi_without_length"])]
        drawn = trace(figure, name, "x")
        assert sorted(drawn.x) == sorted(kept["value"])
        ends = np.array(drawn.x) + np.array(drawn.error_x.array)
        assert np.allclose(sorted(ends), sorted(kept["high"]))
    ratios = rows[rows["index"].isin(["chi_ratio", "chi_ratio_without_length"])]
    changes = {"policy": "change", "random weight change": "random_weights_change"}
    for name, model in changes.items():
        kept = ratios[ratios["model"] == model]["value"]
        assert sorted(trace(figure, name, "x2").x) == sorted(kept)
    null = trace(figure, "labels exchanged, 95 %", "x")
    base = rows[(rows["model"] == "base") & rows["index"].isin(["chi", "chi_without_length"])]
    assert sorted(null.x) == sorted(base["null_high"])


def test_sites_stand_in_order_of_depth_with_h_on_top():
    figure = separation(table("base", "policy"))
    labels = figure.layout.yaxis.ticktext
    assert labels[0] == "h, as measured" and labels[-1] == "resid_post[1], without length"
    top, bottom = figure.layout.yaxis.range
    assert bottom < top  # the first line is at 0, and the axis points down
    assert "n = 40 responses" in figure.layout.annotations[-1].text


def test_a_figure_without_a_control_model():
    figure = separation(table("base", "policy"))
    assert {t.name for t in figure.data} == {
        "base",
        "policy",
        "labels exchanged, 95 %",
        "no change",
    }


def test_refused_tables():
    rows = table("base", "policy")
    with pytest.raises(ShapeError, match="missing null_high"):
        separation(rows.drop(columns="null_high"))
    with pytest.raises(ShapeError, match="0 rows"):
        separation(rows.iloc[:0])
    with pytest.raises(ShapeError, match="site 'mlp'"):
        separation(rows.replace({"site": {"h": "mlp"}}))
