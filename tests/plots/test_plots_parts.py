"""Parts that figures share: labels, ticks, cameras, arrows, legends."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import synthetic_tables as make
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.plots.labels import count_label, escape_text, number, signed, token_label
from dsteer_tl.plots.panels import legend_rows, outline, padded_range, plain_length, site_ticks
from dsteer_tl.plots.space import arrow, cone_mesh, place_labels, view_across
from dsteer_tl.plots.theme import OKABE_ITO, series_style, translucent


def test_importing_the_library_does_not_import_plotly() -> None:
    code = "import sys, dsteer_tl; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" the", "␣the"),
        ("\n", "⏎"),
        ("\t", "⇥"),
        ("", "(empty)"),
        ("<b>", "&lt;b&gt;"),
        ("&lt;", "&amp;lt;"),
        ("$x$", "&#36;x&#36;"),
        ("\u200b", "\\u200b"),
        ("\u202e", "\\u202e"),
        ("\u00a0", "␣"),
        ("x" * 30, "x" * 17 + "…"),
    ],
)
def test_token_labels(token: str, label: str) -> None:
    assert token_label(token) == label


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=40))
def test_no_label_holds_markup_or_a_formula(token: str) -> None:
    label = token_label(token)
    assert not set("<>$\n") & set(label)
    assert not set("<>$") & set(escape_text(token))


def test_numbers_have_a_true_minus_and_no_negative_zero() -> None:
    assert number(-1.234) == "−1.23"
    assert number(-0.001) == "0.00"
    assert number(float("nan")) == "n/a"
    assert signed(0.5) == "+0.50"
    assert signed(-0.5) == "−0.50"
    assert count_label([4812, 200]) == "n = 200–4,812"


@pytest.mark.parametrize("layers", [1, 2, 8, 12, 24, 32, 80, 126])
@pytest.mark.parametrize("width", [90.0, 140.0, 200.0, 460.0])
def test_site_ticks_fit_and_end_with_h(layers: int, width: float) -> None:
    places, labels = site_ticks(make.site_names(layers), width)
    assert labels[0] == "0" or layers == 1
    assert labels[-1] == "h"
    assert places[-1] == layers
    per_site = width / (layers + 1)
    gaps = np.diff(places) * per_site
    assert (gaps >= min(11.0, per_site)).all()
    assert all(int(label) == place for place, label in zip(places[:-1], labels[:-1], strict=True))


def test_site_ticks_of_the_models_in_use() -> None:
    assert site_ticks(make.site_names(8), 462)[1] == [*"01234567", "h"]
    assert site_ticks(make.site_names(32), 145)[1] == ["0", "5", "10", "15", "20", "25", "h"]


def test_outline_is_a_share_and_drops_nothing() -> None:
    edges = np.linspace(0, 1, 11)
    x, y = outline(np.array([-3.0, 0.45, 0.46, 7.0]), edges)
    assert y[0] == y[-1] == 0
    assert sum(y[1:-1:2]) == pytest.approx(1)
    assert (x[0], x[-1]) == (0.0, 1.0)
    x, _ = outline(np.array([0.45]), edges)
    assert (min(x), max(x)) == pytest.approx((0.4, 0.5))


def test_ranges_ignore_what_is_not_finite() -> None:
    assert padded_range([0.0, 1.0, np.nan, np.inf], pad=0.1) == [-0.1, 1.1]
    assert padded_range([]) == [0.0, 1.0]


def test_legend_rows_grow_with_their_labels() -> None:
    assert legend_rows([]) == 0
    assert legend_rows(["base", "policy"]) == 1
    assert legend_rows(["a rather long label of a series"] * 4) == 2
    assert plain_length("e<sub>w</sub> &lt;") == 4


def test_styles_are_distinct_in_colour_dash_or_symbol() -> None:
    looks = {
        (s.colour, s.dash, s.symbol)
        for s in map(
            series_style, ("v_star", "random", "permuted", "logit_bias", "mean_preference")
        )
    }
    assert len(looks) == 5
    assert series_style("some_new null").label == "some new null"
    assert series_style("<i>").label == "&lt;i&gt;"
    assert translucent("#0072B2", 0.5) == "rgba(0,114,178,0.5)"
    assert len(set(OKABE_ITO)) == 8


vectors = st.lists(st.floats(-5, 5), min_size=3, max_size=3).map(np.array)


@settings(deadline=None, max_examples=30)
@given(vectors, st.integers(0, 1000))
def test_a_view_sees_its_direction_to_the_right_and_everything_inside(
    direction: np.ndarray, seed: int
) -> None:
    points = np.random.default_rng(seed).normal(size=(20, 3)) * [3, 2, 0.1]
    view = view_across(points, direction, width=260, height=200)
    frame = np.stack([view.right, view.up, view.toward])
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    assert (np.abs(view.pixels(points)) <= np.array([130, 100])).all()
    if np.linalg.norm(direction[:2]) > 1e-3:
        moved = view.pixels(np.stack([np.zeros(3), direction * [1, 1, 0]]))
        assert moved[1, 0] > moved[0, 0]


def test_cones_have_their_tip_first_and_closed_faces() -> None:
    vertices, faces = cone_mesh(np.array([1.0, 2, 3]), np.array([0.0, 0, 2]), 0.5, 0.1, sides=8)
    np.testing.assert_allclose(vertices[0], [1, 2, 3])
    np.testing.assert_allclose(vertices[1], [1, 2, 2.5])
    np.testing.assert_allclose(np.linalg.norm(vertices[2:] - vertices[1], axis=1), 0.1)
    edges = [tuple(sorted(e)) for f in faces for e in ((f[0], f[1]), (f[1], f[2]), (f[0], f[2]))]
    assert {edges.count(edge) for edge in edges} == {2}


def test_an_arrow_of_no_length_is_not_drawn() -> None:
    view = view_across(np.eye(3), np.array([1.0, 0, 0]), width=200, height=200)
    assert arrow(np.ones(3), np.ones(3), "#000000", "none", view) == []
    shaft, head = arrow(np.zeros(3), np.ones(3), "#000000", "one", view)
    assert (head.x[0], head.y[0], head.z[0]) == (1, 1, 1)
    assert shaft.x[0] == 0


def test_labels_do_not_overlap() -> None:
    points = np.array([[0, 0, 0], [0.05, 0, 0], [0, 0.05, 0.02], [1, 1, 1.0]])
    view = view_across(points, np.array([1.0, 0, 0]), width=250, height=220)
    labels = place_labels(
        ["one"] * 4, points, ["#000000"] * 4, view, obstacles=points, widths=[40.0] * 4
    )
    centres = view.pixels(points) + [[label["ax"], -label["ay"]] for label in labels]
    for a in range(4):
        for b in range(a):
            apart = np.abs(centres[a] - centres[b])
            assert apart[0] >= 40 or apart[1] >= 15
