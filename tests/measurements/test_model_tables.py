"""Tables that need a model: planted shifts on a tiny pair, and a finished run on a real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from transformers import GraniteConfig

from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.errors import ShapeError
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.measurements import AUDIT_TABLES, PAIR_TABLES, TABLES, MeasurementConfiguration
from dsteer_tl.measurements.gradient_tables import diverging_pairs, gradient_table
from dsteer_tl.measurements.readout import (
    identity_table,
    logit_lens_table,
    projection_table,
)
from dsteer_tl.measurements.recovery_tables import kl_recovery_table, rank_recovery_table
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences import EncodedPair
from tests import runs
from tests.measurements.synthetic import QUICK, capture, constant, normal
from tests.models import (
    _GROUPED,
    ARCHITECTURES,
    policy_of,
    random_model,
    tiny_tokenizer,
)
from tests.tiny_pairs import encoded_pairs, probes, tiny_pair

COLUMNS = {
    "shifts": "site position_kind n cos_mean cos_sd cos_loo_mean sigma_ratio sigma_ratio_centred "
    "u1_v_cos u1_v_cos_centred v_norm relative_norm pc1_share_centred effective_rank "
    "entropy_shift entropy_base entropy_policy",
    "cosines": "site position_kind prompt cos cos_loo",
    "cosine_nulls": "site position_kind null cos",
    "nulls": "statistic site position_kind null value ci_low ci_high draws",
    "spectra": "site position_kind matrix index singular_value share",
    "entropy": "site position_kind matrix entropy ci_low ci_high",
    "mass": "site position_kind component centred mass ci_low ci_high null",
    "logit_lens": "site model vector projection ci_low ci_high share_rising n",
    "projections": "pair vector base policy",
    "geometry": "name x y z chosen_token rejected_token",
    "gradients": "pair site position_kind cos cos_shuffled norm",
    "gradient_field": "panel site x y z u v w cos",
    "clouds": "state prompt pc1 pc2 pc3",
    "kl_recovery": "site position_kind vector coefficient direction kl recovered ci_low ci_high n",
    "rank_recovery": "site position_kind rank basis recovered ci_low ci_high n",
    "tokens": "vector effect rank token_id token value",
    "patching": "site position_kind source kl recovered ci_low ci_high n",
    "identity": "pair model position_kind offset error difference",
    "directions": "family statistic value n",
}


@pytest.fixture(scope="module")
def tables(stories260k: Path) -> dict[str, pd.DataFrame]:
    return RunDirectory.open(runs.pair_run(stories260k)).tables()


def test_every_table_is_described_here() -> None:
    assert set(COLUMNS) == set(TABLES)
    assert {*TABLES, *AUDIT_TABLES} > PAIR_TABLES


@pytest.mark.parametrize("name", TABLES)
def test_columns(name: str, tables: dict[str, pd.DataFrame]) -> None:
    assert list(tables[name].columns) == COLUMNS[name].split()
    assert len(tables[name])


@pytest.mark.parametrize("name", ["shifts", "cosines", "nulls", "spectra", "entropy", "mass"])
def test_every_site_and_position_is_measured(name: str, tables: dict[str, pd.DataFrame]) -> None:
    sites = [*(f"resid_post.{layer}" for layer in range(5)), "h"]
    assert list(dict.fromkeys(tables[name]["site"])) == sites
    assert set(tables[name]["position_kind"]) == {"last_prompt", "divergence", "response"}


def test_intervals_contain_their_values(tables: dict[str, pd.DataFrame]) -> None:
    for name in ("mass", "logit_lens", "patching"):
        table = tables[name]
        value = table[{"logit_lens": "projection", "patching": "recovered"}.get(name, "mass")]
        assert (table["ci_low"] <= value + 1e-9).all(), name
        assert (value <= table["ci_high"] + 1e-9).all(), name


# Claim 1: the identity.


def test_the_identity_is_exact_at_the_divergence_alone(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["identity"]
    here = table[table["position_kind"] == "divergence"]
    later = table[table["position_kind"] == "later"]
    assert here["error"].max() < 1e-4
    assert later["error"].median() > 0.5
    assert set(table["model"]) == {"base", "policy"}
    assert (here["offset"] == 0).all()
    assert (later["offset"] > 0).all()


@pytest.mark.parametrize("architecture", ["gpt2", "phi", "gemma2"])
def test_the_identity_holds_with_a_bias_and_with_a_soft_cap(architecture: str) -> None:
    table = identity_table(tiny_pair(architecture), encoded_pairs()[:4])
    here = table[table["position_kind"] == "divergence"]
    assert here["error"].max() < 1e-3
    assert here["difference"].abs().max() > 0.1
    assert table[table["position_kind"] == "later"]["error"].median() > 0.1


def test_the_identity_holds_with_scaled_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {name: value for name, value in _GROUPED.items() if name != "pad_token_id"}
    monkeypatch.setitem(
        ARCHITECTURES, "granite", lambda: GraniteConfig(**settings, logits_scaling=4.0)
    )
    base = random_model("granite")
    policy = policy_of(base)  # before the base is hooked
    pair = ModelPair.load(base, policy, tokenizer=tiny_tokenizer())
    assert pair.base.readout.scale == 0.25
    table = identity_table(pair, encoded_pairs()[:2])
    assert table[table["position_kind"] == "divergence"]["error"].max() < 1e-4


def test_pairs_that_do_not_diverge_have_no_identity() -> None:
    assert identity_table(tiny_pair(), [EncodedPair((1, 2), (3, 4), (3, 4, 5))]).empty


# Claim 2: gradients.


def test_the_gradient_at_h_is_minus_v_for_every_pair(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["gradients"]
    at_h = table[table["site"] == "h"]
    here = at_h[at_h["position_kind"] == "divergence"]
    assert here["cos"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert table["pair"].nunique() == 4
    later = at_h[at_h["position_kind"] == "later"]
    assert later["cos"].abs().mean() < 0.9
    inside = table[(table["site"] == "resid_post.2") & (table["position_kind"] == "divergence")]
    assert inside["cos"].max() < 0.99
    assert (table["norm"] > 0).all()


def test_the_shuffled_control_uses_another_pair() -> None:
    table = gradient_table(tiny_pair(), encoded_pairs(), QUICK, beta=1.0, progress=False)
    here = table[(table["site"] == "h") & (table["position_kind"] == "divergence")]
    assert here["cos"].min() > 1 - 1e-5
    # Neighbours in `encoded_pairs` have other tokens on both sides.
    assert here["cos_shuffled"].max() < 0.9


def test_the_field_at_the_divergence_is_one_arrow(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["gradient_field"]
    axis = table[table["panel"] == "axis"]
    assert len(axis) == 1
    minus_v = axis[["u", "v", "w"]].to_numpy()[0]
    here = table[table["panel"] == "divergence"]
    arrows = here[["u", "v", "w"]].to_numpy()
    cosines = arrows @ minus_v / np.linalg.norm(arrows, axis=1) / np.linalg.norm(minus_v)
    # Arrows descend, which is along +v; the axis row is −v.
    assert cosines == pytest.approx(-1, abs=1e-6)
    assert here["cos"].to_numpy() == pytest.approx(1, abs=1e-6)
    later = table[table["panel"] == "later"]
    assert len(later) == len(here) == 4**3
    assert later["cos"].std() > 1e-3
    assert later["cos"].max() < 0.99


def test_a_field_needs_a_pair_that_goes_on_after_the_divergence() -> None:
    with pytest.raises(ShapeError, match="no pair diverges and goes on"):
        diverging_pairs([EncodedPair((1,), (2,), (3,)), EncodedPair((1,), (2, 3), (2, 3))], 5)


# Claims 4 and 5: projections.


def test_the_logit_lens_at_h_is_the_projection(tables: dict[str, pd.DataFrame]) -> None:
    lens = tables["logit_lens"].set_index(["site", "model", "vector"])
    projections = tables["projections"]
    for vector, rows in projections.groupby("vector"):
        for model in ("base", "policy"):
            found = lens.loc["h", model, vector]
            assert found["projection"] == pytest.approx(rows[model].mean(), rel=1e-9)
            assert found["share_rising"] == (rows["policy"] > rows["base"]).mean()
            # The norm of the last residual is h.
            last = lens.loc["resid_post.4", model, vector]["projection"]
            assert last == pytest.approx(found["projection"], rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def tiny_capture() -> ShiftSet:
    return capture_shifts(tiny_pair(), probes(), configuration=CaptureConfiguration(progress=False))


def test_projections_are_inner_products_with_token_differences(tiny_capture: ShiftSet) -> None:
    pair = tiny_pair()
    table = projection_table(pair, tiny_capture, probes(), QUICK)
    W_U = pair.base.W_U.detach().double().numpy()
    h = tiny_capture.residuals("policy", "h", "divergence").astype(float)
    expected = [
        row @ (W_U[:, probe.chosen_token] - W_U[:, probe.rejected_token])
        for row, probe in zip(h, probes(), strict=True)
    ]
    real = table[table["vector"] == "preference"]
    assert real["policy"].to_numpy() == pytest.approx(np.array(expected), abs=1e-5)
    assert list(real["pair"]) == list(range(8))


def test_the_random_control_follows_its_seed_and_not_the_preference(
    tiny_capture: ShiftSet,
) -> None:
    def control(seed: int) -> np.ndarray:
        configuration = MeasurementConfiguration(seed=seed)
        table = projection_table(tiny_pair(), tiny_capture, probes(), configuration)
        return table[table["vector"] == "random"]["policy"].to_numpy()

    assert control(0) == pytest.approx(control(0))
    assert not np.allclose(control(0), control(100))
    real = projection_table(tiny_pair(), tiny_capture, probes(), QUICK)
    real = real[real["vector"] == "preference"]["policy"].to_numpy()
    assert abs(spearmanr(control(0), real).statistic) < 0.99


def test_the_logit_lens_has_both_models_and_vectors_at_every_site(tiny_capture: ShiftSet) -> None:
    table = logit_lens_table(tiny_pair(), tiny_capture, probes(), QUICK)
    assert len(table) == 3 * 2 * 2
    assert set(table["n"]) == {8}


def test_the_example_keeps_its_projections_in_three_dimensions(
    tables: dict[str, pd.DataFrame],
) -> None:
    geometry = tables["geometry"].set_index("name")[["x", "y", "z"]]
    v = geometry.loc["e_chosen"] - geometry.loc["e_rejected"]
    assert np.allclose(geometry.loc["v"], v, atol=1e-9)
    values = tables["projections"]
    values = values[values["vector"] == "preference"]
    for model in ("base", "policy"):
        projected = float(geometry.loc[f"h_{model}"] @ v)
        assert np.abs(values[model] - projected).min() < 1e-6


def test_directions_have_both_controls(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["directions"].set_index(["family", "statistic"])["value"]
    assert len(table) == 9
    assert table["preference", "pc1_share"] > table["random_tokens", "pc1_share"]
    assert table.between(-1, 1).all()


# Claims 11 and 13: recovery.


@pytest.fixture(scope="module")
def planted() -> ShiftSet:
    """One shift for all rows, at the two places that can be read out."""
    # Seed 0 would plant the very draw that the random control makes of it.
    shifts = constant(24, 32, norm=2.0, seed=7)
    return capture(normal(24, 32, seed=1), shifts, sites=("resid_post.1", "h"))


def test_a_constant_shift_is_recovered_by_its_mean(planted: ShiftSet) -> None:
    table = kl_recovery_table(tiny_pair(), planted, None, QUICK)
    rows = table[table["coefficient"] == 1].set_index(["site", "direction", "vector"])
    for site in ("resid_post.1", "h"):
        for direction in ("interpolate", "invert"):
            assert rows.loc[(site, direction, "v_star"), "recovered"] == pytest.approx(1, abs=1e-4)
            for control in ("random", "permuted"):
                assert rows.loc[(site, direction, control), "recovered"] < 0.5
    assert "mean_preference" not in set(table["vector"])


def test_at_h_the_mean_logit_bias_is_the_steering_vector(planted: ShiftSet) -> None:
    table = kl_recovery_table(tiny_pair(), planted, None, QUICK)
    at_h = table[table["site"] == "h"].set_index(["direction", "coefficient"])
    bias, v_star = (at_h[at_h["vector"] == name]["kl"] for name in ("logit_bias", "v_star"))
    assert bias.to_numpy() == pytest.approx(v_star.to_numpy(), abs=1e-6)


def test_without_steering_nothing_is_recovered(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["kl_recovery"]
    still = table[table["coefficient"] == 0]
    assert still["recovered"].abs().max() < 1e-9
    assert (still["kl"] > 0).all()
    assert "mean_preference" in set(table[table["site"] == "h"]["vector"])
    assert "mean_preference" not in set(table[table["site"] != "h"]["vector"])


def test_no_row_is_judged_by_a_vector_that_it_made() -> None:
    # Every row moves along an axis of its own, so the other half's vector is of no use.
    shifts = 3 * np.eye(24, 32)
    found = capture(normal(24, 32, seed=0), shifts, sites=("h",))
    table = kl_recovery_table(tiny_pair(), found, None, QUICK)
    v_star = table[(table["vector"] == "v_star") & (table["coefficient"] == 1)]
    assert (v_star["recovered"] < 0.05).all()
    assert set(v_star["n"]) == {12}
    rank = rank_recovery_table(tiny_pair(), found, QUICK)
    assert rank[rank["basis"] == "svd"]["recovered"].max() < 0.05


def test_rank_one_recovers_a_constant_shift(planted: ShiftSet) -> None:
    table = rank_recovery_table(tiny_pair(), planted, QUICK).set_index(["site", "basis", "rank"])
    for site in ("resid_post.1", "h"):
        assert table.loc[(site, "svd", 1), "recovered"] == pytest.approx(1, abs=1e-4)
        assert table.loc[(site, "svd_centred", 1), "recovered"] == pytest.approx(1, abs=1e-4)
        assert table.loc[(site, "random", 1), "recovered"] < 0.5


def test_ranks_end_where_the_rows_do(tables: dict[str, pd.DataFrame]) -> None:
    assert set(tables["rank_recovery"]["rank"]) == {1, 2, 4}
    few = capture(normal(8, 32, seed=0), normal(8, 32, seed=1), sites=("h",))
    found = rank_recovery_table(tiny_pair(), few, MeasurementConfiguration(draws=20))
    assert set(found["rank"]) == {1, 2, 3}  # four rows estimate


def test_tokens_are_read_from_the_vector(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["tokens"]
    assert set(table["vector"]) == {"v_star", "random"}
    signs = table.groupby("effect")["value"]
    assert signs.min()["promoted"] > 0 > signs.max()["suppressed"]
