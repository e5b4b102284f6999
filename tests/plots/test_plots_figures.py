"""Every figure holds the numbers of its tables, and refuses tables it cannot draw."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import synthetic_tables as make

from dsteer_tl import plots
from dsteer_tl.errors import ShapeError

Tables = dict[str, pd.DataFrame]

FIGURES: dict[str, tuple[Callable[..., go.Figure], Callable[[], Tables]]] = {
    "logit_geometry": (
        plots.logit_geometry,
        lambda: {"geometry": make.geometry(), "projections": make.projections()},
    ),
    "logit_lens_by_layer": (
        plots.logit_lens_by_layer,
        lambda: {"logit_lens": make.logit_lens()},
    ),
    "gradient_field": (
        plots.gradient_field,
        lambda: {"gradient_field": make.gradient_field(points=3), "gradients": make.gradients()},
    ),
    "clouds": (plots.clouds, lambda: {"clouds": make.clouds(prompts=40)}),
    "cosine_histogram": (
        plots.cosine_histogram,
        lambda: {"cosines": make.cosines(), "cosine_nulls": make.cosine_nulls()},
    ),
    "entropy": (plots.entropy, lambda: {"entropy": make.entropy()}),
    "singular_values": (plots.singular_values, lambda: {"spectra": make.spectra()}),
    "sigma_ratio": (
        plots.sigma_ratio,
        lambda: {"shifts": make.shifts(), "nulls": make.nulls()},
    ),
    "mass": (plots.mass, lambda: {"mass": make.mass()}),
    "kl_recovery": (plots.kl_recovery, lambda: {"kl_recovery": make.kl_recovery()}),
    "rank_recovery": (plots.rank_recovery, lambda: {"rank_recovery": make.rank_recovery()}),
    "localisation": (
        plots.localisation,
        lambda: {"shifts": make.shifts(), "patching": make.patching()},
    ),
    "formation": (plots.formation, lambda: {"formation": make.formation()}),
    "training_curve": (plots.training_curve, lambda: {"training": make.training()}),
    "tokens": (plots.tokens, lambda: {"tokens": make.tokens()}),
}
TABLES = [(name, table) for name, (_, tables) in FIGURES.items() for table in tables()]


def draw(name: str, **changed: pd.DataFrame) -> go.Figure:
    function, tables = FIGURES[name]
    return function(**{**tables(), **changed})


def traces(figure: go.Figure, name: str, axis: str | None = None) -> list[go.Figure]:
    return [
        trace
        for trace in figure.data
        if trace.name == name and (axis is None or (trace.xaxis or "x") == axis)
    ]


def texts(figure: go.Figure) -> str:
    return " | ".join(note.text for note in figure.layout.annotations)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_the_house_look_and_survives_json(name: str) -> None:
    figure = draw(name)
    assert figure.layout.width == 528
    assert 200 < figure.layout.height < 520
    assert figure.layout.template.layout.font.family.startswith("Arial")
    assert figure.layout.template.layout.scene.aspectratio.to_plotly_json() == {}
    text = figure.to_json()
    assert '"bdata"' not in text.split('"layout"')[0]
    assert json.loads(go.Figure(json.loads(text)).to_json()) == json.loads(text)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_do_not_change_their_tables(name: str) -> None:
    tables = FIGURES[name][1]()
    before = {key: table.copy() for key, table in tables.items()}
    FIGURES[name][0](**tables)
    for key, table in tables.items():
        pd.testing.assert_frame_equal(table, before[key])


@pytest.mark.parametrize("name", FIGURES)
def test_rows_in_another_order_draw_the_same_figure(name: str) -> None:
    if name in {"logit_geometry", "gradient_field", "clouds", "training_curve"}:
        pytest.skip("points, pairs and steps are drawn as they come")
    tables = {
        key: table.sample(frac=1, random_state=3) for key, table in FIGURES[name][1]().items()
    }

    def lines(figure: go.Figure) -> list[str]:
        return sorted(
            f"{t.name} {t.xaxis} {t.yaxis} {np.round(np.asarray(t.y, dtype=float), 9)}"
            for t in figure.data
            if t.type in {"scatter", "bar"}
        )

    assert lines(FIGURES[name][0](**tables)) == lines(draw(name))


@pytest.mark.parametrize(("name", "table"), TABLES)
def test_a_table_without_a_column_is_refused(name: str, table: str) -> None:
    found = FIGURES[name][1]()[table]
    column = found.columns[-1] if table not in {"shifts"} else "n"
    if table == "training":
        column = "value"
    with pytest.raises(ShapeError) as caught:
        draw(name, **{table: found.drop(columns=column)})
    message = str(caught.value)
    assert f"table '{table}'" in message
    assert f"missing {column}" in message
    assert "expected" in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "table"), TABLES)
def test_a_table_without_rows_is_refused(name: str, table: str) -> None:
    if table == "nulls":
        pytest.skip("σ₂/σ₁ may be drawn before its nulls are there")
    with pytest.raises(ShapeError, match=f"table '{table}' has 0 rows with columns"):
        draw(name, **{table: FIGURES[name][1]()[table].iloc[:0]})


def test_an_unknown_site_or_kind_names_what_there_is() -> None:
    with pytest.raises(
        ShapeError, match=r"site = 'resid_post.99'; found site in \{h, resid_post.7"
    ):
        plots.cosine_histogram(make.cosines(), make.cosine_nulls(), site="resid_post.99")
    with pytest.raises(ShapeError, match="no rows with position_kind = 'first'"):
        plots.entropy(make.entropy(), position_kind="first")
    table = make.entropy().replace({"site": {"h": "attn.3"}})
    with pytest.raises(ShapeError, match=r"site 'attn.3'; expected 'resid_post.<layer>' or 'h'"):
        plots.entropy(table)


def test_geometry_draws_every_vector_at_its_coordinates() -> None:
    table = make.geometry(state_norm=1.0)
    figure = draw("logit_geometry", geometry=table)
    rows = table.set_index("name")
    sign = -1.0 if rows.loc["h_base", "z"] < 0 else 1.0
    for name in ("h_base", "h_policy", "e_chosen", "e_rejected", "v"):
        head = next(t for t in figure.data if t.type == "mesh3d" and t.name == name)
        tip = [head.x[0], head.y[0], head.z[0]]
        expected = rows.loc[name, ["x", "y", "z"]].to_numpy(float) * [1, 1, sign]
        np.testing.assert_allclose(tip, expected, rtol=1e-12)
    for name in ("projection_base", "projection_policy"):
        mark = next(t for t in traces(figure, name) if t.mode == "markers")
        np.testing.assert_allclose([mark.x[0], mark.y[0]], rows.loc[name, ["x", "y"]].astype(float))
    assert figure.layout.scene.camera.projection.type == "orthographic"


def test_geometry_says_by_how_much_e_is_lengthened_and_keeps_h() -> None:
    table = make.geometry(state_norm=16.0)
    figure = draw("logit_geometry", geometry=table)
    rows = table.set_index("name")
    assert "e and v drawn ×5" in texts(figure)
    head = next(t for t in figure.data if t.type == "mesh3d" and t.name == "e_chosen")
    np.testing.assert_allclose(head.x[0], 5 * rows.loc["e_chosen", "x"])
    head = next(t for t in figure.data if t.type == "mesh3d" and t.name == "h_base")
    np.testing.assert_allclose(head.x[0], rows.loc["h_base", "x"])


def test_geometry_without_a_vector_is_refused() -> None:
    table = make.geometry()
    with pytest.raises(ShapeError, match="missing v:"):
        draw("logit_geometry", geometry=table[table["name"] != "v"])


def test_projections_are_shares_and_the_title_states_the_rise() -> None:
    table = make.projections()
    figure = draw("logit_geometry", projections=table)
    for name in ("base", "policy", "random v, base", "random v, policy"):
        (outline,) = traces(figure, name)
        assert sum(outline.y[1:-1:2]) == pytest.approx(1)
    real = table[table["vector"] == "preference"]
    rise = real["policy"] - real["base"]
    assert f"mean Δ +{rise.mean():.2f}, rises in {100 * (rise > 0).mean():.0f} %" in texts(figure)
    assert "n = 180" in texts(figure)


def test_the_geometry_label_texts_are_the_tokens_escaped() -> None:
    figure = draw("logit_geometry", geometry=make.geometry(chosen="<b>$x$</b>", rejected=" a\n"))
    assert "“&lt;b&gt;&#36;x&#36;&lt;/b&gt;” over “␣a⏎”" in texts(figure)


def test_logit_lens_lines_equal_the_table() -> None:
    table = make.logit_lens()
    figure = draw("logit_lens_by_layer")
    for model in ("base", "policy"):
        rows = table[(table["vector"] == "preference") & (table["model"] == model)]
        (line,) = traces(figure, model)
        np.testing.assert_allclose(line.y, rows["projection"])
        (band,) = traces(figure, f"{model}, 95 % CI")
        np.testing.assert_allclose(band.y[:9], rows["ci_low"])
        np.testing.assert_allclose(band.y[9:][::-1], rows["ci_high"])
    (share,) = traces(figure, "share, v")
    expected = table[(table["vector"] == "preference") & (table["model"] == "base")]
    np.testing.assert_allclose(share.y, expected["share_rising"])
    assert list(figure.layout.xaxis.ticktext) == [*"01234567", "h"]


def test_cones_point_along_the_gradient_with_the_colour_of_their_cosine() -> None:
    table = make.gradient_field(points=3)
    figure = draw("gradient_field", gradient_field=table)
    fields = [t for t in figure.data if t.name == "∇L"]
    assert len(fields) == 2
    for trace, panel in zip(fields, ("divergence", "later"), strict=True):
        rows = table[table["panel"] == panel]
        corners = np.stack([trace.x, trace.y, trace.z], axis=1).reshape(len(rows), -1, 3)
        pointing = corners[:, 0] - corners[:, 1]
        descent = rows[["u", "v", "w"]].to_numpy(float)
        cosines = (pointing * descent).sum(1) / (
            np.linalg.norm(pointing, axis=1) * np.linalg.norm(descent, axis=1)
        )
        np.testing.assert_allclose(cosines, -1)
        np.testing.assert_allclose(
            (corners[:, 0] + corners[:, 1]) / 2, rows[["x", "y", "z"]], atol=1e-12
        )
        colours = np.asarray(trace.intensity).reshape(len(rows), -1)
        np.testing.assert_allclose(colours[:, 0], rows["cos"])
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-1, 1)


def test_the_gradient_titles_state_mean_and_spread_beside_the_control() -> None:
    table = make.gradients()
    figure = draw("gradient_field", gradients=table)
    rows = table[(table["site"] == "h") & (table["position_kind"] == "later")]
    assert f"cos to −v: {rows['cos'].mean():.2f} ± {rows['cos'].std(ddof=0):.2f}, n = 120" in texts(
        figure
    )
    assert f"−v of another pair: {rows['cos_shuffled'].mean():.2f}" in texts(figure)


def test_a_field_of_gradients_in_place_of_descent_directions_is_refused() -> None:
    table = make.gradient_field(points=3)
    turned = table["panel"] != "axis"
    table.loc[turned, ["u", "v", "w"]] *= -1
    with pytest.raises(ShapeError, match="expected the descent direction"):
        draw("gradient_field", gradient_field=table)


def test_clouds_show_all_points_their_means_and_equal_units() -> None:
    table = make.clouds(prompts=40)
    figure = draw("clouds", clouds=table)
    points = [t for t in figure.data if t.type == "scatter3d" and len(t.x) == 40]
    assert [t.name for t in points] == ["base", "policy", "base + λv*", "policy − λv*"]
    np.testing.assert_allclose(points[1].x, table.loc[table["state"] == "policy", "pc1"])
    means = {t.name: t.customdata[0] for t in figure.data if t.customdata is not None}
    np.testing.assert_allclose(
        means["base"], table.loc[table["state"] == "base", ["pc1", "pc2", "pc3"]].mean()
    )
    scene = figure.layout.scene
    units = [
        scene.aspectratio[axis] / (scene[f"{axis}axis"].range[1] - scene[f"{axis}axis"].range[0])
        for axis in "xyz"
    ]
    np.testing.assert_allclose(units, units[0])
    assert "n = 40" in texts(figure)


def test_cosine_bars_count_every_prompt_and_the_band_is_the_published_one() -> None:
    table = make.cosines()
    figure = draw("cosine_histogram", cosines=table)
    bars = [t for t in figure.data if t.type == "bar"]
    assert len(bars) == 3
    rows = table[(table["site"] == "h") & (table["position_kind"] == "last_prompt")]
    for trace in bars:
        assert sum(trace.y) == pytest.approx(1)
    inside = np.isclose(np.asarray(bars[0].x)[:, None], [0.93, 0.95]).any(1)
    share = ((rows["cos_loo"] >= 0.92) & (rows["cos_loo"] < 0.96)).mean()
    assert np.asarray(bars[0].y)[inside].sum() == pytest.approx(share)
    bands = [s for s in figure.layout.shapes if s.type == "rect"]
    assert [(band.x0, band.x1) for band in bands] == [(0.92, 0.96)] * 3
    assert {t.name for t in figure.data if t.type == "scatter"} == {
        "null: signs flipped",
        "null: random weight change",
        "null: centred pairs",
    }


def test_the_collapse_region_is_where_the_paired_difference_is_below_zero() -> None:
    from dsteer_tl.plots.entropy import collapse_regions

    sites = make.site_names(4)
    parts = []
    for matrix, level in (
        ("base", [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("policy", [1.7, 1.95, 1.7, 1.7, 2.3]),
        ("policy_minus_base", [-0.3, -0.05, -0.3, -0.3, 0.3]),
    ):
        value = np.array(level)
        parts.append(
            pd.DataFrame(
                {
                    "site": sites,
                    "position_kind": "last_prompt",
                    "matrix": matrix,
                    "entropy": value,
                    "ci_low": value - 0.1,
                    "ci_high": value + 0.1,
                }
            )
        )
    table = pd.concat(parts)
    assert collapse_regions(table, sites) == [(0, 0), (2, 3)]
    figure = plots.entropy(table)
    shaded = [(s.x0, s.x1) for s in figure.layout.shapes if s.type == "rect"]
    assert shaded == [(-0.5, 0.5), (1.5, 3.5)]
    (line,) = traces(figure, "policy")
    assert list(line.y) == [1.7, 1.95, 1.7, 1.7, 2.3]
    assert not [t for t in figure.data if "minus" in (t.name or "")]


def test_no_region_is_shaded_where_nothing_falls() -> None:
    table = make.entropy()
    assert traces(plots.entropy(table), "fall from base, CI below 0")
    same = table[table["matrix"] != "policy_minus_base"]
    figure = plots.entropy(same)
    assert not [s for s in figure.layout.shapes if s.type == "rect"]
    assert not traces(figure, "fall from base, CI below 0")


def test_heat_maps_hold_the_top_five_on_one_colour_axis() -> None:
    table = make.spectra()
    figure = draw("singular_values", spectra=table)
    assert [t.name for t in figure.data] == ["base", "policy", "shift"]
    rows = table[(table["position_kind"] == "last_prompt") & (table["index"] <= 5)]
    for trace in figure.data:
        assert trace.coloraxis == "coloraxis"
        here = rows[rows["matrix"] == trace.name]
        grid = here.pivot(index="index", columns="site", values="singular_value")
        np.testing.assert_allclose(np.asarray(trace.customdata), grid[make.site_names()])
        np.testing.assert_allclose(np.asarray(trace.z, float), np.log10(grid[make.site_names()]))
    shown = rows[rows["matrix"].isin(["base", "policy", "shift"])]["singular_value"]
    assert figure.layout.coloraxis.cmin == pytest.approx(np.log10(shown.min()))
    assert figure.layout.coloraxis.cmax == pytest.approx(np.log10(shown.max()))


def test_a_zero_singular_value_is_a_gap() -> None:
    table = make.spectra()
    table.loc[(table["site"] == "h") & (table["index"] == 5), "singular_value"] = 0.0
    figure = draw("singular_values", spectra=table)
    assert figure.data[0].z[4][8] is None
    assert np.isfinite(figure.layout.coloraxis.cmin)


def test_sigma_ratio_lines_and_nulls_equal_the_tables() -> None:
    shifts, nulls = make.shifts(), make.nulls()
    figure = draw("sigma_ratio", shifts=shifts, nulls=nulls)
    rows = shifts[shifts["position_kind"] == "divergence"]
    (line,) = traces(figure, "uncentred", "x2")
    np.testing.assert_allclose(line.y, rows["sigma_ratio"])
    (line,) = traces(figure, "centred", "x2")
    np.testing.assert_allclose(line.y, rows["sigma_ratio_centred"])
    here = nulls[
        (nulls["statistic"] == "sigma_ratio")
        & (nulls["position_kind"] == "divergence")
        & (nulls["null"] == "permutation")
    ]
    (null,) = traces(figure, "uncentred, null: pairs permuted", "x2")
    np.testing.assert_allclose(null.y, here["value"])
    # One draw has no interval, so no band.
    assert not traces(figure, "uncentred, null: random weight change, 95 % CI")
    assert {s.y0 for s in figure.layout.shapes} == {0.1}


def test_sigma_ratio_without_nulls_is_drawn() -> None:
    figure = draw("sigma_ratio", nulls=make.nulls().iloc[:0])
    assert traces(figure, "centred")
    assert not [t for t in figure.data if "null" in t.name]


def test_mass_bars_carry_their_interval_and_null() -> None:
    table = make.mass()
    figure = plots.mass(table, site="resid_post.7", top=6)
    rows = table[
        (table["site"] == "resid_post.7")
        & (table["position_kind"] == "last_prompt")
        & (~table["centred"])
        & (table["component"] <= 6)
    ]
    bar = traces(figure, "shifts, uncentred")[0]
    np.testing.assert_allclose(bar.y, rows["mass"])
    np.testing.assert_allclose(np.asarray(bar.y) + bar.error_y.array, rows["ci_high"])
    np.testing.assert_allclose(np.asarray(bar.y) - bar.error_y.arrayminus, rows["ci_low"])
    np.testing.assert_allclose(traces(figure, "null: Gaussian, matched mean")[0].y, rows["null"])
    assert len([t for t in figure.data if t.type == "bar"]) == 6


def test_interpolation_and_inversion_are_never_one_curve() -> None:
    table = make.kl_recovery()
    figure = draw("kl_recovery", kl_recovery=table)
    assert len(traces(figure, "v*")) == 6
    for axis, direction in (("x", "interpolate"), ("x4", "invert")):
        rows = table[
            (table["vector"] == "v_star")
            & (table["direction"] == direction)
            & (table["position_kind"] == "last_prompt")
        ]
        (line,) = traces(figure, "v*", axis)
        np.testing.assert_allclose(line.x, rows["coefficient"])
        np.testing.assert_allclose(line.y, rows["recovered"])
    assert {t.name for t in figure.data if t.name.endswith("CI")} == {"v*, 95 % CI"}
    solid = {t.name for t in figure.data if t.mode == "lines+markers" and t.line.dash == "solid"}
    assert solid == {"v*"}


def test_recovery_below_the_floor_is_cut_and_said() -> None:
    figure = draw("kl_recovery")
    assert figure.layout.yaxis.range[0] == -1
    assert "values below −1 are not shown" in texts(figure)
    mild = make.kl_recovery()
    mild["recovered"] = mild["recovered"].clip(lower=-0.5)
    assert "not shown" not in texts(draw("kl_recovery", kl_recovery=mild))


def test_rank_recovery_places_ranks_evenly_and_keeps_values() -> None:
    table = make.rank_recovery()
    figure = draw("rank_recovery", rank_recovery=table)
    rows = table[(table["basis"] == "svd") & (table["position_kind"] == "response")]
    (line,) = traces(figure, "SVD of ΔH", "x3")
    np.testing.assert_allclose(line.y, rows["recovered"])
    assert list(line.x) == list(range(8))
    assert list(figure.layout.xaxis3.ticktext) == ["0", "1", "2", "4", "8", "16", "32", "64"]


def test_localisation_pairs_norm_and_patching_of_common_positions() -> None:
    shifts, patching = make.shifts(), make.patching()
    figure = draw("localisation", shifts=shifts, patching=patching)
    norm = traces(figure, "‖δ‖ / ‖h‖")
    assert len(norm) == 2
    np.testing.assert_allclose(
        norm[1].y, shifts.loc[shifts["position_kind"] == "divergence", "relative_norm"]
    )
    rows = patching[(patching["source"] == "policy") & (patching["position_kind"] == "divergence")]
    np.testing.assert_allclose(traces(figure, "policy’s state patched in")[1].y, rows["recovered"])
    assert len(traces(figure, "random change, equal norm")) == 2
    with pytest.raises(ShapeError, match="at least one in common"):
        draw("localisation", shifts=make.shifts(kinds=("response",)))


def test_formation_draws_spread_sites_and_one_set_of_log_probabilities() -> None:
    table = make.formation(layers=32)
    figure = draw("formation", formation=table)
    assert [t.name for t in figure.data if t.xaxis == "x3"] == [
        "resid_post[0]",
        "resid_post[11]",
        "resid_post[21]",
        "h",
    ]
    last = table[table["site"] == "h"]
    (line,) = traces(figure, "rejected y<sub>l</sub>")
    np.testing.assert_allclose(line.y, last["rejected_logp"])
    assert len(traces(plots.formation(table, sites=["h"]), "h")) == 3


def test_formation_at_step_zero_has_a_gap_and_no_error() -> None:
    table = make.formation()
    table.loc[table["step"] == 8, ["cos_to_final", "cos_sd", "sigma_ratio"]] = np.nan
    figure = draw("formation", formation=table)
    (line,) = [t for t in traces(figure, "h") if t.xaxis == "x"]
    assert np.isnan(line.y[0])
    assert json.loads(figure.to_json())["data"]


def test_training_draws_known_names_and_any_others_where_there_are_none() -> None:
    table = make.training()
    figure = draw("training_curve", training=table)
    assert [t.name for t in figure.data] == [
        "training",
        "held out",
        "chosen",
        "rejected",
        "margin",
        "training",
    ]
    loss = table[table["name"] == "loss"]
    np.testing.assert_allclose(figure.data[0].y, loss["value"])
    other = plots.training_curve(table[table["name"] == "grad_norm"])
    assert [t.name for t in other.data] == ["grad_norm"]


def test_tokens_are_escaped_bars_of_both_vectors() -> None:
    table = make.tokens()
    figure = draw("tokens", tokens=table)
    assert len(figure.data) == 4
    rows = table[(table["vector"] == "v_star") & (table["effect"] == "promoted")]
    np.testing.assert_allclose(figure.data[0].x, rows["value"])
    labels = figure.layout.yaxis.ticktext
    assert labels[0] == "␣happy"
    assert labels[3] == "!⏎"
    assert labels[9] == "&lt;b&gt;bold&lt;/b&gt;"
    assert "&lt;/script&gt;" in figure.layout.yaxis3.ticktext
    assert "&#36;x^2&#36;" in figure.layout.yaxis3.ticktext
    assert "\\u200b" in figure.layout.yaxis2.ticktext
    assert "<script" not in figure.to_json()
