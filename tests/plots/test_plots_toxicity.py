"""Figures of the toxicity study hold their tables' numbers, with the control beside each."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import toxicity_tables as make
from hypothesis import given
from hypothesis import strategies as st

from dsteer_tl import plots
from dsteer_tl.errors import ShapeError
from dsteer_tl.experiment.figures import _plots, draw_figures
from dsteer_tl.plots.theme import SERIES
from dsteer_tl.plots.toxicity_axes import (
    along_depth,
    layer_axis,
    log_axis,
    plain_power,
    power_label,
    spread,
)
from dsteer_tl.plots.toxicity_doses import compared_row
from dsteer_tl.plots.toxicity_parts import evenly, interval
from dsteer_tl.plots.toxicity_weights import PUBLISHED_NORM_DIFFERENCE

Tables = dict[str, pd.DataFrame]

TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "toxicity_probe": make.probe,
    "toxicity_probe_scores": make.probe_scores,
    "toxicity_value_vectors": make.value_vectors,
    "toxicity_svd": make.svd,
    "toxicity_tokens": make.tokens,
    "toxicity_interventions": make.interventions,
    "toxicity_weights": make.weights,
    "toxicity_activations": make.activations,
    "toxicity_activation_changes": make.activation_changes,
    "toxicity_offsets": make.offsets,
    "toxicity_residuals": make.residuals,
    "toxicity_value_changes": make.value_changes,
    "toxicity_decomposition": make.decomposition,
    "toxicity_lens": make.lens,
    "toxicity_unalign": make.unalign,
    "toxicity_patching": make.patching,
}
FIGURES = {name: found for name, found in _plots().items() if name.startswith("toxicity_")}
PAIRS = [(name, table) for name, (tables, _) in FIGURES.items() for table in tables]


@functools.cache
def plain(name: str) -> go.Figure:
    """The figure from synthetic tables, drawn once."""
    needed, function = FIGURES[name]
    return function(*(TABLES[table]() for table in needed))


def draw(name: str, **changed: pd.DataFrame) -> go.Figure:
    """The figure from synthetic tables, some of them replaced."""
    if not changed:
        return plain(name)
    needed, function = FIGURES[name]
    return function(*(changed[table] if table in changed else TABLES[table]() for table in needed))


def traces(figure: go.Figure, name: str, axis: str | None = None) -> list[go.Scatter]:
    return [t for t in figure.data if t.name == name and axis in (None, t.xaxis or "x")]


def texts(figure: go.Figure) -> str:
    return " | ".join(note.text for note in figure.layout.annotations)


def rows(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def drawn(figure: go.Figure) -> list[str]:
    """Every point of every trace, in no order."""
    return sorted(
        f"{t.name} {t.xaxis} {t.yaxis} {sorted(map(str, zip(t.x, t.y, strict=True)))}"
        for t in figure.data
    )


# All figures.


def test_every_figure_of_the_study_is_drawn_from_its_tables_and_exported() -> None:
    assert {table for tables, _ in FIGURES.values() for table in tables} == set(TABLES)
    assert set(FIGURES) <= set(plots.__all__)
    few = ("toxicity_lens", "toxicity_weights")
    assert set(draw_figures({name: TABLES[name]() for name in few})) == set(few)
    assert draw_figures({name: table().iloc[:0] for name, table in TABLES.items()}) == {}


@pytest.mark.parametrize("name", FIGURES)
def test_house_look_json_and_untouched_tables(name: str) -> None:
    needed, function = FIGURES[name]
    tables = [TABLES[table]() for table in needed]
    before = [table.copy() for table in tables]
    figure = function(*tables)
    assert figure == plain(name)
    for table, copy in zip(tables, before, strict=True):
        pd.testing.assert_frame_equal(table, copy)
    assert figure.layout.width == 528
    assert 250 < figure.layout.height < 760
    assert figure.layout.template.layout.font.family.startswith("Arial")
    text = figure.to_json()
    assert '"bdata"' not in text.split('"layout"')[0]
    assert json.loads(go.Figure(json.loads(text)).to_json()) == json.loads(text)


@pytest.mark.parametrize("name", FIGURES)
def test_rows_in_another_order_draw_the_same_figure(name: str) -> None:
    mixed = {
        table: TABLES[table]().sample(frac=1, random_state=3).reset_index(drop=True)
        for table in FIGURES[name][0]
    }
    assert drawn(draw(name, **mixed)) == drawn(draw(name))


@pytest.mark.parametrize(("name", "table"), PAIRS)
def test_a_table_without_columns_or_rows_is_refused(name: str, table: str) -> None:
    found = TABLES[table]()
    with pytest.raises(ShapeError, match=f"table '{table}' has columns tensor; expected"):
        draw(name, **{table: pd.DataFrame({"tensor": ["W"]})})
    with pytest.raises(ShapeError, match=f"table '{table}' has 0 rows"):
        draw(name, **{table: found.iloc[:0]})


@pytest.mark.parametrize("name", FIGURES)
def test_every_series_is_named_once_in_the_legend(name: str) -> None:
    figure = draw(name)
    named = [t.name for t in figure.data if t.showlegend is not False and t.legendgroup]
    assert len(named) == len(set(named)) > 1


@pytest.mark.parametrize("layers", [1, 2, 48])
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("toxicity_offsets", "toxicity_offsets"),
        ("toxicity_decomposition", "toxicity_decomposition"),
        ("toxicity_lens", "toxicity_lens"),
        ("toxicity_value_vectors", "toxicity_value_vectors"),
        ("toxicity_weights", "toxicity_weights"),
    ],
)
def test_few_and_many_layers_fit(name: str, table: str, layers: int) -> None:
    maker: Callable[..., pd.DataFrame] = TABLES[table]
    figure = draw(name, **{table: maker(layers=layers)})
    for axis in figure.select_xaxes():
        assert axis.ticktext is None or len(axis.ticktext) < 16


# Probe.


def test_probe_histograms_are_shares_and_marks_the_rows() -> None:
    figure = draw("toxicity_probe")
    for label in ("unkind", "not unkind"):
        solid, dashed = traces(figure, label)
        assert sum(solid.y[1:-1:2]) == pytest.approx(1)
        assert sum(dashed.y[1:-1:2]) == pytest.approx(1)
        assert (solid.line.dash, dashed.line.dash != "solid") == ("solid", True)
    table = make.probe().set_index("control")
    order = ["probe", "words", "shuffled_labels", "majority"]
    (marks,) = traces(figure, "AUROC")
    assert list(marks.x) == table.loc[order, "auroc"].tolist()
    np.testing.assert_allclose(
        np.asarray(marks.x) + np.asarray(marks.error_x.array), table.loc[order, "auroc_high"]
    )
    assert list(traces(figure, "chance")[0].x) == [0.5, 0.5]


def test_a_probe_without_controls_and_with_unusual_words_is_drawn() -> None:
    table = make.probe("<b>mean & $rude$</b>")
    figure = draw(
        "toxicity_probe",
        toxicity_probe=rows(table, control="probe"),
        toxicity_probe_scores=rows(make.probe_scores(), control="probe"),
    )
    assert traces(figure, "&lt;b&gt;mean &amp; &#36;rude&#36;&lt;/b&gt;")


# Value vectors and tokens.


def test_value_vectors_are_drawn_by_rank_with_the_running_mean_of_listed_words() -> None:
    table = make.value_vectors(vectors=12)
    figure = draw("toxicity_value_vectors", toxicity_value_vectors=table)
    for group, label in (("attribute", "attribute"), ("random", "random")):
        own = rows(table, group=group).sort_values("rank")
        cosine, _, listed, singular = traces(figure, label)
        assert list(cosine.y) == sorted(own["cosine"], reverse=True)
        np.testing.assert_allclose(listed.y, own["listed_share"].expanding().mean())
        values = rows(make.svd(), group=group)["singular_value"]
        assert list(singular.y) == values.tolist()
    (_, layers, _) = traces(figure, "probe of shuffled labels")
    assert sum(layers.y[1:-1:2]) == pytest.approx(1)
    assert layers.line.dash != "solid"


def test_tokens_are_in_order_marked_where_listed_and_harmless() -> None:
    table = make.tokens()
    figure = draw("toxicity_tokens")
    assert "MLP.v[7,40]<br>cos 0.41" in texts(figure)
    assert "random direction<br>cos 0.01, listed 0 : 0" in texts(figure)
    shown = rows(table, effect="promoted")
    shown = shown[shown["rank"] <= 10]
    bars = traces(figure, "on the scorer’s list of words")
    written = [t for t in bars if t.type == "scatter" and t.mode == "text"]
    assert sum(len(t.y) for t in written) == shown["listed"].sum()
    assert all(text.startswith("<b>␣") for t in written for text in t.text)
    largest = shown["value"].max()
    lengths = sorted(x for t in figure.data if t.type == "bar" for x in t.x)
    np.testing.assert_allclose(lengths, sorted(shown["value"] / largest))
    plain = [
        text
        for t in traces(figure, "other tokens")
        if t.type == "scatter" and t.text
        for text in t.text
    ]
    assert "&lt;b&gt;x&lt;/b&gt;" in plain
    assert "&#36;x^2&#36;" in plain


def test_value_vectors_beyond_the_most_lists_are_left_out_and_no_other() -> None:
    figure = plots.toxicity_tokens(make.tokens(vectors=9), vectors=8)
    said = texts(figure)
    assert said.count("MLP.v") == 2
    assert all(name in said for name in ("probe<br>", "SVD.U[2]", "random value vector"))


# Weights.


def test_weights_lie_beside_a_random_change_and_unchanged_ones_are_counted() -> None:
    table = make.weights()
    figure = draw("toxicity_weights")
    moved = rows(table, trained=True).sort_values("tensor")
    values = moved[moved["kind"] == "mlp_value"]
    turned, lengthened = traces(figure, "MLP values")
    assert list(turned.x) == values["relative_change"].tolist()
    np.testing.assert_allclose(turned.y, 1 - values["cosine"])
    assert list(lengthened.y) == values["norm_difference"].tolist()
    (random,) = traces(figure, "random change, equal norm")
    nulls = moved.sort_values("relative_change")["cosine_random"]
    np.testing.assert_allclose(random.y, 1 - nulls)
    assert random.line.dash != "solid"
    levels = [t.y[0] for t in traces(figure, "published bounds")]
    assert levels == pytest.approx([0.01, PUBLISHED_NORM_DIFFERENCE])
    assert "72 tensors, 2 more did not move measurably" in texts(figure)
    assert "10⁻⁵" in texts(figure)


def test_weights_that_did_not_change_at_all_are_drawn_empty() -> None:
    table = make.weights()
    figure = draw("toxicity_weights", toxicity_weights=table[~table["trained"]])
    assert "0 tensors, 2 more did not move measurably" in texts(figure)


# Activations.


def test_activations_and_their_mean_changes() -> None:
    neurons, changes = make.activations(), make.activation_changes()
    figure = draw("toxicity_activations")
    own = rows(neurons, group="attribute", texts="on_policy").sort_values("mean_base")
    points = traces(figure, "attribute", "x2")[0]
    assert list(points.x) == own["mean_base"].tolist()
    assert list(points.y) == own["change"].tolist()
    marks = [t.x[0] for t in figure.data if t.xaxis == "x3"]
    assert sorted(marks) == sorted(changes["change"])
    share = float(rows(changes, group="matched", texts="off_policy")["share_falling"].iloc[0])
    assert f"{100 * share:.0f} % fall" in texts(figure)


def test_activations_off_policy_alone_have_one_cloud() -> None:
    neurons = rows(make.activations(), texts="off_policy")
    figure = draw(
        "toxicity_activations",
        toxicity_activations=neurons,
        toxicity_activation_changes=make.activation_changes(neurons),
    )
    assert {t.xaxis for t in figure.data} == {"x", "x2"}


# Offsets, residuals, value changes, decomposition, lens.


def test_offsets_run_through_both_places_of_each_layer() -> None:
    table = make.offsets(layers=3)
    figure = draw("toxicity_offsets", toxicity_offsets=table)
    line = traces(figure, "policy − base", "x")[0]
    assert list(line.x) == [0, 0.5, 1, 1.5, 2, 2.5]
    kind = rows(table, position_kind="last_prompt", control="policy")
    for place, part in (("resid_mid", line.y[::2]), ("resid_post", line.y[1::2])):
        assert list(part) == rows(kind, place=place)["cosine"].tolist()
    (band,) = traces(figure, "policy − base, 95 % CI", "x")
    assert max(band.y) == kind["high"].max()
    for control in ("random weight change", "signs flipped"):
        assert traces(figure, control)[0].line.dash != "solid"


def test_offsets_without_random_weights_and_with_one_kind_are_drawn() -> None:
    table = make.offsets(controls=("policy", "sign_flipped"))
    figure = draw("toxicity_offsets", toxicity_offsets=rows(table, position_kind="last_prompt"))
    assert not traces(figure, "random weight change")
    assert {t.xaxis for t in figure.data} == {"x", "x2"}
    table["place"] = "resid_pre"
    with pytest.raises(ShapeError, match="has place resid_pre; expected resid_mid or resid_post"):
        draw("toxicity_offsets", toxicity_offsets=table)


def test_residual_means_are_ringed_and_both_rows_share_axes() -> None:
    table = make.residuals(layers=tuple(range(6)))
    figure = draw("toxicity_residuals", toxicity_residuals=table)
    titles = [note.text for note in figure.layout.annotations if note.text.startswith("resid")]
    assert titles == ["resid_mid[0]", "resid_mid[2]", "resid_mid[3]", "resid_mid[5]"]
    rings = [t for t in figure.data if t.name == "policy" and len(t.x) == 1]
    means = rows(table, place="resid_mid", model="policy").groupby(["control", "layer"])["axis"]
    expected = [
        means.mean()[control, layer] for layer in (0, 2, 3, 5) for control in ("policy", "permuted")
    ]
    np.testing.assert_allclose([t.y[0] for t in rings], expected)
    assert figure.layout.yaxis.range == figure.layout.yaxis5.range
    joined = next(t for t in figure.data if t.mode == "lines")
    assert list(joined.x).count(None) == table["prompt"].nunique()


def test_residuals_at_one_place_or_of_one_model_are_drawn() -> None:
    table = rows(make.residuals(), place="resid_post", model="base")
    assert "resid_post[7]" in texts(draw("toxicity_residuals", toxicity_residuals=table))
    with pytest.raises(ShapeError, match="no rows with place = 'resid_mid'"):
        plots.toxicity_residuals(table, place="resid_mid")


def test_value_changes_are_thinned_the_same_way_and_keep_the_attribute() -> None:
    table = make.value_changes()
    figure = plots.toxicity_value_changes(table, points=500)
    points = [t for t in figure.data if t.mode == "markers"]
    assert sum(len(t.x) for t in points) == 500
    (chosen,) = (t for t in points if t.name == "attribute")
    assert len(chosen.x) == (table["group"] == "attribute").sum()
    assert drawn(figure) == drawn(plots.toxicity_value_changes(table, points=500))
    negative = traces(figure, "activation < 0")
    assert max(negative[0].x) < 0
    for outline in (negative[1], *traces(figure, "Δv permuted")):
        assert sum(outline.x[1:-1:2]) == pytest.approx(1)
    same = (np.sign(table["mean_activation"]) == np.sign(table["cosine"])).mean()
    assert f"the same sign in {100 * same:.1f} %" in " ".join(texts(figure).split("<br>"))
    assert "500 of 4,096 neurons are points" in texts(figure)


def test_value_changes_of_one_sign_or_of_frozen_value_vectors_are_drawn() -> None:
    table = make.value_changes(layers=2, width=16, vectors=3)
    positive = table.assign(mean_activation=table["mean_activation"].abs() + 0.01)
    figure = draw("toxicity_value_changes", toxicity_value_changes=positive)
    assert [len(t.x) for t in traces(figure, "activation < 0")] == [0]
    frozen = table.assign(cosine=math.nan, cosine_permuted=math.nan)
    figure = draw("toxicity_value_changes", toxicity_value_changes=frozen)
    assert "0 of 0 neurons are points" in texts(figure)


def test_decomposition_has_a_line_per_term_and_the_permuted_one_dashed() -> None:
    table = make.decomposition()
    figure = draw("toxicity_decomposition")
    line = traces(figure, "value vectors: Σ m Δv", "x")[0]
    own = rows(table, position_kind="last_prompt", term="value_vectors", control="measured")
    assert sorted(line.y) == sorted(own["share"])
    (permuted,) = traces(figure, "value vectors, Δv permuted", "x")
    null = rows(table, position_kind="last_prompt", control="permuted_rows")
    assert sorted(permuted.y) == sorted(null["share"])
    assert permuted.line.dash != "solid"
    table.loc[table["term"] == "bias", ["share", "low", "high"]] = 0.0
    figure = draw("toxicity_decomposition", toxicity_decomposition=table)
    assert not traces(figure, "biases")
    assert "0 everywhere: biases. Terms add up to δ; the largest relative error is 10⁻⁶" in texts(
        figure
    )


def test_lens_has_probabilities_on_a_log_axis_and_the_paired_change() -> None:
    table = make.lens()
    figure = draw("toxicity_lens")
    own = along_depth(rows(table, group="attribute"), "toxicity_lens")
    (base,) = traces(figure, "base, attribute")
    assert list(base.y) == own["base"].tolist()
    assert figure.layout.yaxis.type == "log"
    (change,) = traces(figure, "attribute (41 tokens)")
    assert list(change.y) == own["log_ratio"].tolist()
    assert change.xaxis == "x2"
    for control in ("policy, neutral", "neutral (20 draws of 41 tokens)"):
        assert traces(figure, control)[0].line.dash != "solid"


# Interventions, un-align, patching.


def test_intervention_paths_start_at_the_base_and_rings_are_matched() -> None:
    table = make.interventions()
    figure = draw("toxicity_interventions")
    path = traces(figure, "probe", "x")[0]
    own = rows(table, vector="probe").sort_values("coefficient")
    assert list(path.y) == [0.42, *own["attribute_score"]]
    ring = traces(figure, "probe", "x")[1]
    assert ring.marker.symbol == "circle-open"
    assert list(ring.x) == own.loc[own["matched"], "perplexity"].tolist()
    marks = {t.name: t for t in figure.data if t.xaxis == "x2"}
    assert list(marks)[:4] == ["base", "policy", "random weight change", "shuffled pairs"]
    assert marks["policy"].x[0] == 0.21
    assert marks["probe"].x[0] == own.loc[own["matched"], "attribute_score"].item()
    for control in ("random vector", "random value vector", "constant logit bias"):
        assert traces(figure, control)[0].line.dash != "solid"
    # F1 was measured at one coefficient a vector, so it has marks and no paths.
    assert [t.title.text for t in figure.select_yaxes() if t.title.text] == ["attribute score"]
    table["f1"] = table["f1"].fillna(0.19)
    figure = draw("toxicity_interventions", toxicity_interventions=table)
    assert [t.title.text for t in figure.select_yaxes() if t.title.text] == [
        "attribute score",
        "F1",
    ]


def test_interventions_without_scorer_controls_or_match_say_so() -> None:
    figure = draw(
        "toxicity_interventions",
        toxicity_interventions=make.interventions(scored=False, controls=False),
    )
    assert "NOT RUN: attribute score." in texts(figure)
    assert "attribute score, 95 % CI" not in texts(figure)
    unmatched = make.interventions(matched=False)
    figure = draw("toxicity_interventions", toxicity_interventions=unmatched)
    assert "Open marks: at another perplexity" in texts(figure)
    (probe,) = traces(figure, "probe", "x2")
    assert probe.marker.symbol == "diamond-open"
    row = compared_row(unmatched, "random")
    assert np.isfinite(row["f1"]).all()
    assert row["perplexity"].item() == pytest.approx(9.8)


def test_a_broken_intervention_is_left_to_the_table() -> None:
    table = make.interventions()
    table.loc[(table["vector"] == "probe") & (table["coefficient"] > 3), "perplexity"] = 900.0
    figure = draw("toxicity_interventions", toxicity_interventions=table)
    assert "1 points of higher perplexity are not drawn" in texts(figure).replace("<br>", " ")
    assert max(max(t.x) for t in figure.data if t.xaxis == "x" and len(t.x)) < 20


@pytest.mark.parametrize("keys", [("in",), ("in", "gate", "both")])
def test_unalign_has_hosts_and_groups_for_all_keys(keys: tuple[str, ...]) -> None:
    table = make.unalign(keys)
    figure = draw("toxicity_unalign", toxicity_unalign=table)
    lines = [t for t in traces(figure, "attribute") if t.yaxis == "y"]
    by_dash = {t.line.dash == "solid": t for t in lines}
    for host, solid in (("policy", True), ("base", False)):
        own = rows(table, host=host, group="attribute", keys="in")
        assert list(by_dash[solid].y) == own["attribute_score"].tolist()
    assert len({t.yaxis for t in figure.data}) == 2 * len(keys)
    level = traces(figure, "unscaled base")[0]
    assert set(level.y) == {0.42}
    assert [t.name for t in figure.data if t.showlegend and t.name == "random"] == ["random"]


def test_unalign_without_a_scorer_is_the_perplexity_alone() -> None:
    figure = draw("toxicity_unalign", toxicity_unalign=make.unalign(scored=False))
    assert "NOT RUN: attribute score." in texts(figure)
    assert {axis.type for axis in figure.select_yaxes()} == {"log"}
    alone = rows(make.unalign(("in",)), host="policy", group="attribute")
    figure = draw("toxicity_unalign", toxicity_unalign=alone)
    assert not traces(figure, "in the base")


def test_patching_marks_every_group_beside_the_published_band() -> None:
    table = make.patching()
    figure = draw("toxicity_patching")
    own = rows(table, statistic="probe_projection", effect="direct")
    marks = [t for t in figure.data if t.xaxis == "x" and t.marker.symbol.endswith("-open")]
    shares = sorted(t.x[0] for t in marks if t.x[0] is not None)
    assert shares == sorted(own["share"])
    assert [(s.x0, s.x1) for s in figure.layout.shapes if s.type == "rect"] == [(0.025, 0.24)] * 2
    assert list(figure.layout.yaxis.ticktext)[-1] == "all 4,096"
    assert any(t.name == "published: 2.5–24 %" for t in figure.data)
    half = rows(table, statistic="kl", effect="total", group="attribute")
    assert draw("toxicity_patching", toxicity_patching=half).layout.width == 528


# Axes and marks.


@given(low=st.floats(1e-12, 1e6), ratio=st.floats(1.0, 1e12), most=st.integers(2, 10))
def test_log_ticks_lie_inside_and_are_few(low: float, ratio: float, most: int) -> None:
    axis = log_axis([low, low * ratio], most=most)
    start, end = axis["range"]
    ticks = axis["tickvals"]
    assert len(ticks) <= most
    assert all(start <= math.log10(tick) <= end for tick in ticks)
    assert start < math.log10(low) <= math.log10(low * ratio) < end + 1e-9
    if most >= 4:
        assert ticks


def test_log_axes_of_nothing_and_labels_of_powers() -> None:
    assert log_axis([0.0, math.nan, -1.0])["tickvals"]
    assert log_axis([9.1, 11.4], most=8)["ticktext"] == ["9", "9.5", "10", "10.5", "11", "11.5"]
    assert power_label(0.003) == "0.003"
    assert power_label(3e-7) == "3·10<sup>−7</sup>"
    assert power_label(1e6) == "10<sup>6</sup>"
    assert plain_power(1e-5) == "10⁻⁵"
    assert plain_power(2.4e-3) == "2·10⁻³"
    assert (plain_power(0.0), plain_power(math.inf)) == ("0", "inf")


@given(layers=st.integers(1, 100), width=st.floats(60, 500))
def test_layer_ticks_have_room(layers: int, width: float) -> None:
    axis = layer_axis(pd.DataFrame({"layer": range(layers)}), width)
    ticks = axis["tickvals"]
    assert isinstance(ticks, list)
    assert ticks[0] == 0
    assert len(ticks) == 1 or len(ticks) * 19 <= width + 38
    assert len(set(np.diff(ticks))) <= 1


def test_spread_keeps_both_ends_and_samples_are_the_same_each_time() -> None:
    assert spread([1, 3, 5], 4) == [1, 3, 5]
    assert spread(range(48), 4) == [0, 16, 31, 47]
    table = pd.DataFrame({"value": range(100)})
    sample = evenly(table, 10, 0)
    assert len(sample) == 10
    assert sample["value"].is_monotonic_increasing
    pd.testing.assert_frame_equal(sample, evenly(table, 10, 0))


def test_intervals_without_ends_have_no_bar() -> None:
    bar = interval([1.0, 2.0], [0.5, math.nan], [1.5, math.nan], SERIES["base"])
    assert bar["array"] == [0.5, 0.0]
    assert bar["arrayminus"] == [0.5, 0.0]
