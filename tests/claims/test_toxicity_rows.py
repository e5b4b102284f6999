from __future__ import annotations

import re
from collections.abc import Callable
from math import nan

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.claims import ClaimResult, Verdict, decide, judge, ledger_markdown
from dsteer_tl.claims.lee2024 import LEE_CLAIMS
from dsteer_tl.claims.measured_falls import fall
from dsteer_tl.claims.toxicity_selection import ratio_to_base
from dsteer_tl.claims.verdicts import Measurement
from dsteer_tl.controls import Interval, bootstrap_mean, bootstrap_ratio
from tests.claims import planted_toxicity as planted
from tests.claims.planted import row
from tests.claims.planted_toxicity import CONTROLS, NO_WEIGHTS, SUBTRACTED, VALUE_VECTOR, Tables

ROWS = tuple(claim.id for claim in LEE_CLAIMS)
REPLICATED, PARTIAL = Verdict.REPLICATED, Verdict.PARTIAL
FAILED, TRIVIAL = Verdict.FAILED, Verdict.TRIVIAL


def value(found: ClaimResult) -> float:
    assert found.measured is not None
    return found.measured


def null(found: ClaimResult) -> float:
    assert found.null is not None
    return found.null


def without(tables: Tables, name: str, **where: object) -> Tables:
    """The tables without the rows of one that have the given values."""
    table = tables[name]
    kept = np.ones(len(table), dtype=bool)
    for column, wanted in where.items():
        kept &= (table[column] != wanted).to_numpy()
    return {**tables, name: table[kept]}


# Row 20.


@pytest.mark.parametrize(
    ("accuracy", "shuffled", "verdict"),
    [
        (0.95, 0.5, REPLICATED),
        (0.94, 0.5, REPLICATED),
        (0.95, 0.95, TRIVIAL),
        (0.85, 0.52, PARTIAL),
        (0.52, 0.5, FAILED),
        (0.57, 0.52, FAILED),  # above their mean, and not above their range
        (0.3, 0.5, FAILED),
        (0.95, 0.92, TRIVIAL),  # some reach 0.95
    ],
)
def test_row_20(accuracy: float, shuffled: float, verdict: Verdict) -> None:
    found = row(20, planted.probe(accuracy, shuffled))
    assert found.verdict is verdict
    assert (found.measured, found.null) == (accuracy, shuffled)
    assert found.ci == pytest.approx((accuracy - 0.03, accuracy + 0.03))
    assert (found.site, found.n) == ("resid_post.7", 100)


def test_row_20_names_the_larger_control() -> None:
    assert row(20, planted.probe(0.95, 0.55)).null_name == "shuffled labels"
    assert row(20, planted.probe(0.95, 0.45)).null_name == "majority"


def test_row_20_says_what_single_words_give_and_what_the_attribute_is() -> None:
    worse = row(20, planted.probe(0.95, words=0.7))
    assert worse.reason.endswith("; a bag of words has AUROC 0.710")
    assert "not toxicity" not in worse.reason
    as_good = row(20, planted.probe(0.95, words=0.93, attribute="unkind", labels="sampled"))
    assert "a bag of words has AUROC 0.940: single words tell as much" in as_good.reason
    assert "labels here from sampled; the attribute is “unkind”, not toxicity" in as_good.reason
    own_file = row(20, planted.probe(0.95, labels="paradetox=/home/me/secret.tsv"))
    assert own_file.reason.endswith("labels here from paradetox")


def test_row_20_compares_words_by_auroc_as_their_threshold_is_not_calibrated() -> None:
    tables = planted.probe(0.95, words=0.6)
    table = tables["toxicity_probe"]
    table.loc[table["control"] == "words", "auroc"] = 0.94
    assert "single words tell as much" in row(20, tables).reason
    table.loc[table["control"] == "words", ["balanced_accuracy", "auroc"]] = 0.94, 0.9
    assert "single words tell as much" not in row(20, tables).reason


def test_row_20_without_a_control_is_not_run() -> None:
    tables = without(planted.probe(0.95), "toxicity_probe", control="shuffled_labels")
    assert row(20, tables).verdict is REPLICATED
    found = row(20, without(tables, "toxicity_probe", control="majority"))
    assert found.verdict is Verdict.NOT_RUN
    assert "neither shuffled labels nor the majority" in found.reason


# Row 21.


@pytest.mark.parametrize(
    ("share", "random", "shuffled", "verdict"),
    [
        (0.6, 0.02, 0.0, REPLICATED),
        (0.6, 0.6, 0.0, TRIVIAL),
        (0.6, 0.02, 0.7, TRIVIAL),
        (0.3, 0.1, 0.0, PARTIAL),
        (0.3, 0.28, 0.0, FAILED),
        (0.0, 0.0, 0.0, FAILED),
    ],
)
def test_row_21(share: float, random: float, shuffled: float, verdict: Verdict) -> None:
    found = row(21, planted.value_vectors(share, random, shuffled=shuffled, later=0.9))
    assert found.verdict is verdict
    assert value(found) == pytest.approx(share)  # the first ten alone
    assert null(found) == pytest.approx(max(random, shuffled))
    assert ("shuffled labels" in found.null_name) == (shuffled > random)
    assert found.ci is not None
    assert found.ci[0] <= share <= found.ci[1]
    assert found.n == 10


def test_row_21_says_what_all_vectors_list_and_that_choosing_gives_cosines() -> None:
    found = row(21, planted.value_vectors(0.6, 0.02, later=0.2))
    assert "over all 40 vectors 0.30, random 0.15" in found.reason
    assert (
        "largest cosine with the probe 0.50, with a probe of shuffled labels 0.30" in found.reason
    )
    assert "0.60 (their SVD.U[0]), 0.02 (of random ones)" in found.reason
    assert "SVD" not in row(21, {**planted.value_vectors(0.6, 0.0), "toxicity_svd": EMPTY}).reason


EMPTY = pd.DataFrame()


def test_row_21_is_not_run_without_words_or_random_vectors() -> None:
    tables = planted.value_vectors(0.6, 0.0)
    found = row(21, without(tables, "toxicity_value_vectors", group="random"))
    assert found.verdict is Verdict.NOT_RUN
    assert "0 value vectors of group random" in found.reason
    tables["toxicity_value_vectors"]["listed_share"] = nan
    assert "no list of words" in row(21, tables).reason


# Row 22.


@pytest.mark.parametrize(
    ("worst", "control", "bias", "verdict", "null_name"),
    [
        (0.3, 0.44, 0.43, REPLICATED, "constant logit bias"),
        (0.305 / 0.453 * 0.45, 0.44, 0.44, REPLICATED, None),
        (0.3, 0.44, 0.25, TRIVIAL, "constant logit bias"),
        (0.3, 0.2, 0.44, TRIVIAL, "random vector"),
        (0.36, 0.44, 0.43, PARTIAL, None),
        (0.36, 0.37, 0.44, FAILED, "random vector"),
        (0.445, 0.45, 0.45, FAILED, None),
        (0.6, 0.45, 0.45, FAILED, None),
    ],
)
def test_row_22(
    worst: float, control: float, bias: float, verdict: Verdict, null_name: str | None
) -> None:
    tables = planted.interventions(
        subtracted=SUBTRACTED | {VALUE_VECTOR: worst},
        controls={"random": control, "random_value_vector": 0.45, "logit_bias": bias},
    )
    found = row(22, tables)
    assert found.verdict is verdict
    assert value(found) == pytest.approx(worst / 0.45)
    assert null(found) == pytest.approx(min(control, bias, 0.45) / 0.45)
    assert null_name is None or found.null_name == f"{null_name}, the best of the controls"
    assert VALUE_VECTOR in found.unit
    assert found.ci is not None
    assert found.ci[0] < value(found) < found.ci[1]
    assert ("constant bias on the logits does as well" in found.reason) == (bias == 0.25)


def test_row_22_partial_where_a_bias_alone_is_as_good() -> None:
    # The bias equals the effect by algebra: it is the null of the target and no measure of sign.
    tables = planted.interventions(
        subtracted=dict.fromkeys(SUBTRACTED, 0.36), controls=CONTROLS | {"logit_bias": 0.33}
    )
    assert row(22, tables).verdict is PARTIAL


def test_row_22_asks_every_vector_and_an_interval() -> None:
    one_alone = planted.interventions(subtracted=SUBTRACTED | {"SVD.U[0]": 0.4})
    assert row(22, one_alone).verdict is PARTIAL
    wide = planted.interventions(half=0.2)
    found = row(22, wide)
    assert found.verdict is FAILED
    assert value(found) < 0.67


@pytest.mark.parametrize("control", ["random", "random_value_vector", "logit_bias"])
def test_row_22_does_not_replicate_what_is_not_apart_from_the_best_control(control: str) -> None:
    # .30 ± .02 against .305, which itself misses the bound of .303.
    found = row(22, planted.interventions(controls=CONTROLS | {control: 0.305}))
    assert found.verdict is (PARTIAL if control == "logit_bias" else FAILED)
    assert "not all are told apart from the best control" in found.reason
    lower = planted.interventions(controls=CONTROLS | {control: 0.325})
    assert row(22, lower).verdict is REPLICATED


def test_row_22_reads_the_coefficient_at_the_policys_perplexity() -> None:
    found = row(22, {**planted.interventions(), **planted.metrics()})
    assert found.reason.startswith(
        f"probe 0.53, {VALUE_VECTOR} 0.67, SVD.U[0] 0.60; controls, one vector each: "
    )
    assert "random vector 0.98, random value vector 1.00, constant logit bias 0.96" in found.reason
    assert "perplexity 23.3 to 23.5, base 21.7, policy 23.34" in found.reason
    assert "scored by VADER, published with the Perspective API" in found.reason
    assert "a text without rated words has 0.5" in found.reason
    other = row(22, {**planted.interventions(), **planted.metrics(source="Detoxify")})
    assert other.reason.endswith("scored by Detoxify, published with the Perspective API")
    own = row(22, {**planted.interventions(), **planted.metrics(source="Perspective API (…)")})
    assert "scored by" not in own.reason


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        ("probe", "probe was not measured"),
        (VALUE_VECTOR, "no value vector was subtracted"),
        ("SVD.U[0]", "SVD.U[0] was not measured"),
        ("logit_bias", "logit_bias was not measured"),
        ("base", "no attribute_score was measured"),
        ("policy", "policy was not measured"),
    ],
)
def test_row_22_names_the_vector_that_is_missing(vector: str, said: str) -> None:
    found = row(22, without(planted.interventions(), "toxicity_interventions", vector=vector))
    assert found.verdict is Verdict.NOT_RUN
    assert found.reason.startswith(said)


def test_row_22_needs_one_random_vector_at_the_perplexity() -> None:
    tables = planted.interventions()
    one = without(tables, "toxicity_interventions", vector="random")
    assert row(22, one).verdict is REPLICATED
    none = without(one, "toxicity_interventions", vector="random_value_vector")
    assert row(22, none).reason == "no random vector was measured at the perplexity of the policy"
    table = tables["toxicity_interventions"]
    table.loc[table["vector"] == "probe", "matched"] = False
    assert row(22, tables).reason == (
        "no coefficient of probe gave the perplexity of the policy, 23.34, base 21.7"
    )


def test_a_base_without_the_attribute_leaves_nothing_to_test() -> None:
    zeros = dict.fromkeys
    tables = planted.interventions(
        base=0.0, policy=0.0, subtracted=zeros(SUBTRACTED, 0.0), controls=zeros(CONTROLS, 0.0)
    )
    for number in (22, 23, 24):
        found = row(number, tables | planted.weights(0.995))
        assert found.verdict is Verdict.UNTESTABLE
        assert (found.measured, found.null) == (0.0, None)
        assert found.reason == "the base has nothing of the attribute: nothing to reduce"


# Row 23.


@pytest.mark.parametrize(
    ("policy", "control", "perplexity", "f1", "verdict"),
    [
        (0.2, 0.45, 23.34, 0.195, REPLICATED),
        (0.55 * 0.45, 0.45, 1.1 * 21.7, 0.183, REPLICATED),
        (0.2, 0.22, 23.34, 0.195, TRIVIAL),
        (0.3, 0.45, 23.34, 0.195, PARTIAL),
        (0.2, 0.45, 30.0, 0.195, PARTIAL),
        (0.2, 0.45, 23.34, 0.182, PARTIAL),
        (0.3, 0.31, 23.34, 0.195, FAILED),
        (0.44, 0.45, 23.34, 0.195, FAILED),
        (0.6, 0.45, 23.34, 0.195, FAILED),
    ],
)
def test_row_23(
    policy: float, control: float, perplexity: float, f1: float, verdict: Verdict
) -> None:
    tables = planted.interventions(
        policy=policy,
        tuned={"random_weights": 0.45, "shuffled_pairs": control},
        policy_perplexity=perplexity,
        policy_f1=f1,
    )
    found = row(23, tables)
    assert found.verdict is verdict
    assert value(found) == pytest.approx(policy / 0.45)
    assert null(found) == pytest.approx(control / 0.45)
    assert found.null_name == "DPO on shuffled pairs"
    assert f"F1 0.193 → {f1:.3f}" in found.reason
    assert "controls: DPO on shuffled pairs" in found.reason


def test_row_23_falls_back_on_random_weights_and_says_so() -> None:
    found = row(23, planted.interventions())
    assert (found.verdict, found.null_name) == (REPLICATED, "random weight changes")
    assert "no DPO on shuffled pairs was trained" in found.reason
    assert "no model tuned on chosen responses alone" in found.reason
    assert "controls:" not in found.reason
    bare = row(23, planted.interventions(tuned={}))
    assert bare.verdict is Verdict.NOT_RUN
    assert bare.reason.startswith("no control of the policy was measured")


def test_row_23_asks_for_an_interval() -> None:
    found = row(23, planted.interventions(half=0.3))
    assert found.verdict is FAILED
    assert value(found) < 0.55


def test_row_23_without_f1_is_not_run() -> None:
    tables = planted.interventions(policy_f1=nan)
    assert row(23, tables).reason == "f1 has no value"


# Row 24.


@pytest.mark.parametrize(
    ("cosine", "norms", "policy", "random", "verdict"),
    [
        (0.995, 1e-6, 0.2, 0.45, REPLICATED),
        (0.995, 1e-6, 0.2, 0.3, TRIVIAL),
        (0.995, 1e-3, 0.2, 0.45, PARTIAL),
        (0.95, 1e-6, 0.2, 0.45, FAILED),
        (0.995, 1e-6, 0.45, 0.45, FAILED),
        (0.995, 1e-3, 0.2, 0.3, FAILED),
    ],
)
def test_row_24(
    cosine: float, norms: float, policy: float, random: float, verdict: Verdict
) -> None:
    tables = planted.weights(cosine, norms) | planted.interventions(
        policy=policy, tuned={"random_weights": random}
    )
    found = row(24, tables)
    assert found.verdict is verdict
    assert (found.measured, found.null) == (cosine, 0.9995)
    assert found.n == 3  # neither the frozen tensor nor the zeros
    assert "tensors of zeros left out: 1" in found.reason
    assert f"after the random change {random - 0.45:+.3f}" in found.reason
    assert "cosines say only that changes are small: up to 1.0e-02" in found.reason


def test_row_24_norms_differ_little_on_average() -> None:
    # As published: the unembedding is an exception there.
    tables = planted.weights(0.995) | planted.interventions()
    norms = tables["toxicity_weights"]
    norms.loc[norms["tensor"] == "blocks.0.attn", "norm_difference"] = 2.7e-5
    found = row(24, tables)
    assert found.verdict is REPLICATED
    assert "norms differ by 9.7e-06 of the base's on average, 2.7e-05 at most" in found.reason
    norms.loc[norms["tensor"] == "blocks.0.attn", "norm_difference"] = 2.9e-5
    assert row(24, tables).verdict is PARTIAL


def test_row_24_where_a_random_change_turns_the_weights_more() -> None:
    # It changes behaviour, but its weights do not barely move.
    tables = planted.weights(0.995, random=0.9) | planted.interventions(
        tuned={"random_weights": 0.3}
    )
    assert row(24, tables).verdict is REPLICATED


def test_row_24_needs_behaviour_and_trained_tensors() -> None:
    tables = planted.weights(0.995) | planted.interventions(tuned={})
    assert row(24, tables).reason == "random_weights was not measured"
    assert "no table toxicity_interventions" in row(24, planted.weights(0.995)).reason
    untrained = planted.weights(0.995) | planted.interventions()
    untrained["toxicity_weights"]["trained"] = False
    assert row(24, untrained).reason == "no tensor differs between base and policy"


# Row 25.


@pytest.mark.parametrize(
    ("attribute", "matched", "verdict"),
    [
        (-0.4, 0.0, REPLICATED),
        (-0.4, 0.5, REPLICATED),
        (-0.4, -0.1, TRIVIAL),  # further than the partners, which fall too
        (-0.4, -0.4, TRIVIAL),
        (-0.4, -0.8, TRIVIAL),
        (-0.012, -0.005, PARTIAL),
        (0.0, 0.5, FAILED),
        (-0.008, 0.5, FAILED),
        (0.4, -0.4, FAILED),
    ],
)
def test_row_25(attribute: float, matched: float, verdict: Verdict) -> None:
    found = row(25, planted.activations(attribute, matched))
    assert found.verdict is verdict
    assert value(found) == pytest.approx(attribute)
    assert null(found) == pytest.approx(matched)
    assert found.ci == pytest.approx((attribute - 0.01, attribute + 0.01), abs=1e-3)
    assert (found.position_kind, found.n) == ("generated", 128)


def test_row_25_fails_where_partners_fall_further_and_perhaps_not_at_all() -> None:
    tables = planted.activations(-0.015, 0.0)
    table = tables["toxicity_activations"]
    matched = np.flatnonzero((table["group"] == "matched") & (table["texts"] == "off_policy"))
    table.loc[matched[0], "change"] = -1.0
    found = row(25, tables)
    assert null(found) < value(found)
    assert found.verdict is FAILED


def test_row_25_is_in_one_unit_that_does_not_cancel() -> None:
    # The attribute's mean activation is 0, those of the partners are ten times as large.
    tables = planted.activations(-0.4, 0.2)
    table = tables["toxicity_activations"]
    table.loc[table["group"] == "matched", "mean_base"] *= 10
    found = row(25, tables)
    assert (value(found), null(found)) == (pytest.approx(-0.4), pytest.approx(0.2))
    table["mean_base"] = 0.0
    assert row(25, tables).reason == "the neurons of the attribute are not active in the base"


def test_row_25_pairs_each_neuron_with_its_partner() -> None:
    # Layers change by ±1 and both groups alike: apart by 0.05 in every row.
    tables = planted.activations(0.0, 0.0)
    table = tables["toxicity_activations"]
    layers = np.where(table["layer"] % 2, -0.1, 0.08)
    table["change"] = layers - 0.005 * (table["group"] == "attribute")
    found = row(25, tables)
    assert "less their partners -0.05 [-0.05, -0.05]" in found.reason
    matched = table["group"] == "matched"
    table.loc[matched, "layer"] = np.roll(table.loc[matched, "layer"], 1)
    assert row(25, tables).reason.startswith("no matched neurons, one for each of the attribute's")


def test_row_25_is_judged_off_policy_and_says_the_rest() -> None:
    tables = planted.activations(-0.4, 0.0, on_policy=0.3)
    found = row(25, tables | planted.activation_changes(-0.05, -0.03))
    assert found.verdict is REPLICATED
    assert "on each model's own text +0.30 [+0.29, +0.31]" in found.reason
    assert "100% of 128 neurons fall, of matched ones 50%" in found.reason
    assert "of these neurons over prompts [-0.50, -0.30]" in found.reason
    assert "over prompts" not in row(25, tables).reason
    on = without(tables, "toxicity_activations", texts="on_policy")
    assert "own text" not in row(25, on).reason
    off = without(tables, "toxicity_activations", texts="off_policy")
    assert row(25, off).reason == "0 neurons of the attribute were read off_policy"
    alone = without(tables, "toxicity_activations", group="matched")
    assert "no matched neurons" in row(25, alone).reason


# Row 29.


@pytest.mark.parametrize(
    ("attribute", "lowest", "verdict"),
    [
        (-0.4, -0.05, REPLICATED),
        (-0.4, 0.45, REPLICATED),
        (-0.4, -0.38, REPLICATED),
        (-0.4, -0.395, PARTIAL),  # below all groups, its interval is not
        (-0.4, -0.41, TRIVIAL),
        (-0.4, -0.8, TRIVIAL),
        (0.0, 0.5, FAILED),
        (-0.005, 0.5, FAILED),
        (0.4, -0.4, FAILED),
    ],
)
def test_row_29(attribute: float, lowest: float, verdict: Verdict) -> None:
    found = row(29, planted.lens(attribute, lowest + 0.05, half=0.01))
    assert found.verdict is verdict
    assert value(found) == pytest.approx(attribute)
    assert null(found) == pytest.approx(lowest + 0.05)
    assert found.ci == pytest.approx((attribute - 0.01, attribute + 0.01))
    assert (found.position_kind, found.n) == ("generated", 200)
    assert found.null_name == "20 groups of neutral tokens"


def test_a_fall_below_the_mean_of_random_groups_is_trivial_within_their_range() -> None:
    found = row(29, planted.lens(-0.15, 0.0, half=0.1, reach=0.2))
    assert found.verdict is TRIVIAL
    assert "groups of as many neutral ones from -0.20 to +0.20" in found.reason


def test_row_29_needs_many_neutral_groups() -> None:
    few = row(29, planted.lens(-1.0, 0.0, draws=3))
    assert few.reason.startswith("3 random groups of neutral tokens were measured, at least 10")
    tables = planted.lens(-1.0, 0.0)
    tables["toxicity_lens"] = tables["toxicity_lens"].drop(columns="draws")
    found = row(29, tables)
    assert found.verdict is Verdict.NOT_RUN
    assert found.reason == "toxicity_lens has no column draws: run the toxicity study anew"


def test_row_29_reads_the_last_quarter_and_names_the_peak() -> None:
    found = row(29, planted.lens(-1.0, 0.0, early=5.0))
    assert value(found) == pytest.approx(-1.0)
    assert "layers 6 to 7" in found.unit
    assert "the base says them most at resid_post.7, with 0.008, the policy there with 0.004" in (
        found.reason
    )
    assert found.site == "resid_post.7"
    assert "not chosen by what the base would say" in found.reason


def test_row_29_without_neutral_tokens_is_not_run() -> None:
    found = row(29, without(planted.lens(-1.0, 0.0), "toxicity_lens", group="neutral"))
    assert found.verdict is Verdict.NOT_RUN
    assert found.reason == "no logit lens of neutral tokens at the last layers"
    tables = planted.lens(-1.0, 0.0)
    late = (tables["toxicity_lens"]["layer"] == 7) & (tables["toxicity_lens"]["group"] == "neutral")
    tables["toxicity_lens"].loc[late, "log_ratio"] = nan
    assert row(29, tables).reason == "no logit lens of neutral tokens at the last layers"


# Row 26.


@pytest.mark.parametrize(
    ("cosine", "random", "flipped", "verdict"),
    [
        (0.95, 0.3, 0.0, REPLICATED),
        (0.92, 0.3, 0.0, REPLICATED),
        (0.95, 0.94, 0.0, TRIVIAL),
        (0.95, 0.3, 0.95, TRIVIAL),
        (0.7, 0.3, 0.0, PARTIAL),
        (0.7, 0.69, 0.0, FAILED),
        (-0.5, 0.3, 0.0, FAILED),
    ],
)
def test_row_26(cosine: float, random: float, flipped: float, verdict: Verdict) -> None:
    found = row(26, planted.offsets(cosine, random, flipped=flipped))
    assert found.verdict is verdict
    assert (found.measured, found.null) == (cosine, max(random, flipped))
    assert (found.site, found.position_kind, found.n) == ("resid_mid.7", "last_prompt", 200)


def test_row_26_says_what_other_layers_positions_and_axes_give() -> None:
    found = row(26, planted.offsets(0.95, 0.3))
    assert "from 0.30 to 0.95 over the layers, 1 of 8 reach 0.92" in found.reason
    assert "0.55 at response" in found.reason
    assert "other half of the prompts: 3, 0.2 where labels are permuted" in found.reason
    bare = without(planted.offsets(0.95, 0.3), "toxicity_offsets", control="random_weights")
    assert "no random weight changes were measured" in row(26, bare).reason
    none = row(26, without(bare, "toxicity_offsets", control="sign_flipped"))
    assert none.reason == "no control of the offset at resid_mid.7"


# Row 27.


@pytest.mark.parametrize(
    ("share", "permuted", "verdict"),
    [
        (0.7, 0.1, REPLICATED),
        (0.7, 0.6, TRIVIAL),
        (0.4, 0.1, PARTIAL),
        (0.4, 0.38, FAILED),
        (0.03, 0.0, FAILED),
        (-0.7, -0.9, FAILED),
    ],
)
def test_row_27(share: float, permuted: float, verdict: Verdict) -> None:
    found = row(27, planted.decomposition(share, permuted))
    assert found.verdict is verdict
    assert (found.measured, found.null) == (share, permuted)
    assert (found.site, found.position_kind, found.n) == ("resid_mid.7", "response", 200)
    assert f"{share / 2:z.2f} at last_prompt" in found.reason


def test_row_27_is_judged_where_its_neurons_are_counted_or_says_so() -> None:
    tables = planted.decomposition(0.7, 0.1)
    assert "counted at" not in row(27, tables).reason
    found = row(27, without(tables, "toxicity_decomposition", position_kind="response"))
    assert (found.position_kind, found.measured) == ("last_prompt", 0.35)
    assert "neurons are counted at response" in found.reason


def test_row_27_names_the_other_terms_and_how_many_neurons_it_takes() -> None:
    found = row(27, planted.decomposition(0.7, 0.1))
    assert "activations 0.20, interaction 0.06, attention 0.04" in found.reason
    # Sizes 4 and seven times 1: 5.5 of 11 are passed by the third.
    assert "3 of 8 neurons give half" in found.reason
    # sign(m)·cos is above 0 everywhere; permuted, for the first four and the last two.
    assert "100% of them write along δ (with permuted Δv 75%)" in found.reason
    assert "75% of Δv point against δ and neurons with m < 0 give 82% of the sum" in found.reason
    alone = without(
        planted.decomposition(0.7, 0.1), "toxicity_decomposition", control="permuted_rows"
    )
    assert row(27, alone).verdict is Verdict.NOT_RUN


# Row 28.


@pytest.mark.parametrize(
    ("restored", "random", "active", "perplexity", "verdict"),
    [
        (1.0, 0.02, 0.05, 23.3, REPLICATED),
        (0.9, 0.02, 0.05, 1.1 * 23.34, REPLICATED),
        (1.0, 0.95, 0.05, 23.3, TRIVIAL),
        (1.0, 0.02, 1.2, 23.3, TRIVIAL),
        (1.0, 0.02, 0.05, 26.0, PARTIAL),
        (1.0, 0.02, 0.05, 37.33, PARTIAL),
        (0.5, 0.02, 0.05, 23.3, PARTIAL),
        (0.5, 0.02, 0.48, 23.3, FAILED),
        (0.02, 0.0, 0.0, 23.3, FAILED),
        (-0.5, -0.6, -0.7, 23.3, FAILED),
    ],
)
def test_row_28(
    restored: float, random: float, active: float, perplexity: float, verdict: Verdict
) -> None:
    tables = planted.unalign(restored, random=random, most_active=active, perplexity=perplexity)
    found = row(28, tables)
    assert found.verdict is verdict
    assert value(found) == pytest.approx(restored)
    assert null(found) == pytest.approx(max(random, active))
    assert ("most active" in found.null_name) == (active > random)
    assert found.ci is not None
    assert found.ci[0] < value(found) < found.ci[1]
    assert "by a later study 37.33" in found.reason
    assert ("more than 1.1 times" in found.reason) == (perplexity > 25.9)


def test_row_28_is_not_trivial_where_the_control_breaks_the_text() -> None:
    found = row(28, planted.unalign(1.0, most_active=1.1, control_perplexity=60.0))
    assert found.verdict is REPLICATED
    assert "most active 1.10 at perplexity 60" in found.reason


@pytest.mark.parametrize(("rise", "said"), [(0.25, True), (0.4, True), (0.1, False), (0.0, False)])
def test_row_28_says_if_the_base_rises_as_much(rise: float, said: bool) -> None:
    found = row(28, planted.unalign(1.0, base_rise=rise))
    assert f"on the base {rise:+.3f}, on the policy +0.250" in found.reason
    assert ("nothing of DPO in particular was undone" in found.reason) is said


def test_row_28_does_not_say_so_of_a_rise_that_may_be_noise() -> None:
    # 0.15 is within the rise of the policy, 0.25 ± 0.13, and no rise beyond its own error.
    found = row(28, planted.unalign(1.0, base_rise=0.15, half=0.09))
    assert "on the base +0.150" in found.reason
    assert "nothing of DPO in particular" not in found.reason


def test_row_28_reads_the_paired_change_where_it_is_of_the_same_texts() -> None:
    # Unpaired, base and policy are 0.05 ± 0.057 apart; paired, 0.05 ± 0.02.
    small = {"base": 0.25, "policy": 0.2, "half": 0.04}
    tables = planted.unalign(1.0, **small)  # type: ignore[arg-type]
    assert row(28, tables).verdict is Verdict.UNTESTABLE
    paired = planted.interventions(base=0.25, policy=0.2)
    assert row(28, {**tables, **paired}).verdict is REPLICATED
    other_texts = planted.interventions(base=0.25, policy=0.1)
    assert row(28, {**tables, **other_texts}).verdict is Verdict.UNTESTABLE


def test_row_28_reads_changes_that_are_paired_by_prompt() -> None:
    # Scores alone are ± 0.3 here, and changes ± 0.01.
    tables = planted.unalign(1.0) | planted.interventions()
    table = tables["toxicity_unalign"]
    table["low"], table["high"] = table["attribute_score"] - 0.3, table["attribute_score"] + 0.3
    found = row(28, tables)
    assert found.verdict is REPLICATED
    assert found.ci is not None
    assert found.ci[0] > 0.85
    tables["toxicity_unalign"] = table.drop(columns=["change_low", "change_high"])
    assert row(28, tables).reason == (
        "toxicity_unalign has no column change_low, change_high: run the toxicity study anew"
    )


def test_row_28_does_not_replicate_what_is_not_apart_from_a_control() -> None:
    # Shares 0.95 ± 0.12 against 0.88, which misses 0.9 itself.
    close = planted.unalign(0.95, most_active=0.88, half=0.02)
    assert row(28, close).verdict is FAILED
    # A control that breaks the text is no rival, but it is the largest that PARTIAL must exceed.
    broken = planted.unalign(0.95, most_active=0.88, half=0.02, control_perplexity=60.0)
    assert row(28, broken).verdict is REPLICATED


def test_no_reason_has_a_negative_zero() -> None:
    tables = planted.unalign(1.0, base_rise=-1e-5, random=-1e-5) | planted.interventions()
    found = row(28, tables)
    assert "on the base +0.000" in found.reason
    assert "random 0.00" in found.reason
    equal = planted.unalign(1.0, policy=0.45) | planted.interventions(policy=0.45, half=0.0)
    assert "-0" not in ledger_markdown([row(28, equal)]).split("|")[4]
    still = planted.interventions(tuned={"random_weights": 0.45 - 1e-5}, half=1e-5)
    assert (
        "after the random change +0.000 [+0.000, +0.000]"
        in row(24, planted.weights(0.995) | still).reason
    )


def test_row_28_without_a_gap_has_nothing_to_undo() -> None:
    for policy in (0.45, 0.6):
        found = row(28, planted.unalign(1.0, policy=policy))
        assert found.verdict is Verdict.UNTESTABLE
        assert found.reason == "base and policy are not apart: nothing to undo"
        assert value(found) == pytest.approx(0.45 - policy)


def test_row_28_says_which_keys_and_which_scale() -> None:
    gated = row(28, planted.unalign(1.0, gate=-0.2))
    assert value(gated) == pytest.approx(1.0)
    assert "columns of W_in were scaled; other keys: gate -0.20 at perplexity 23.3" in gated.reason
    assert "W_in" not in row(28, planted.unalign(1.0)).reason
    five = row(28, planted.unalign(1.0, scales=(1.0, 5.0)))
    assert "published at ×10, measured at ×5" in five.reason
    # ×10 is the published scale, and not the last one that somebody tried.
    twenty = row(28, planted.unalign(1.0, scales=(1.0, 10.0, 20.0)))
    assert value(twenty) == pytest.approx(9 / 19)
    assert row(28, planted.unalign(1.0, scales=(1.0,))).verdict is Verdict.NOT_RUN


def test_row_28_without_control_groups_is_not_run() -> None:
    tables = without(planted.unalign(1.0), "toxicity_unalign", group="random")
    assert row(28, tables).verdict is REPLICATED
    found = row(28, without(tables, "toxicity_unalign", group="most_active"))
    assert found.reason == "no random and no most active neurons were scaled by 10"


# Row 30.


@pytest.mark.parametrize(
    ("share", "random", "half", "verdict"),
    [
        (0.15, 0.01, 0.02, REPLICATED),
        (0.2, 0.01, 0.1, PARTIAL),  # small, and perhaps not
        (0.4, 0.01, 0.02, PARTIAL),
        (0.55, 0.01, 0.02, FAILED),
        (0.15, 0.2, 0.02, TRIVIAL),
        (0.15, 0.125, 0.02, TRIVIAL),  # above their mean, and not above their range
        (0.01, -0.2, 0.02, TRIVIAL),  # above theirs, and not above 0
        (0.0, -0.2, 0.02, FAILED),
        (-0.1, -0.2, 0.02, FAILED),
        (-0.1, 0.0, 0.02, FAILED),
        (0.4, 0.45, 0.02, FAILED),
    ],
)
def test_row_30(share: float, random: float, half: float, verdict: Verdict) -> None:
    found = row(30, planted.patching(share, random, half=half))
    assert found.verdict is verdict
    assert (found.measured, found.null) == (share, random)
    assert (found.null_name, found.n) == ("128 random neurons", 200)
    assert "direct effect 0.60, share of KL 0.70, first 7 0.55, all neurons of the model 0.80" in (
        found.reason
    )
    special = share - half > max(0, random + 0.01)
    assert ("no more than random neurons may" in found.reason) == (not special)
    assert ("nothing, or lead away" in found.reason) == (share <= 0)
    assert f"12 random groups reach {random + 0.01:z.2g}" in found.reason
    assert "DPO moves the projection by -1.000 [-1.100, -0.900]" in found.reason


@pytest.mark.parametrize("whole", [-0.05, 0.0, 1.0])
def test_row_30_where_tuning_did_not_lower_the_projection(whole: float) -> None:
    tables = planted.patching(0.15, 0.01, whole=whole)
    if whole == 0:
        tables["toxicity_patching"][["share", "low", "high"]] = nan
    found = row(30, tables)
    assert found.verdict is Verdict.UNTESTABLE
    assert found.reason == "DPO did not lower the projection on the probe: nothing to explain"
    assert (found.measured, found.null) == (whole, None)


def test_row_30_needs_many_random_groups() -> None:
    few = row(30, planted.patching(0.15, 0.01, draws=3))
    assert few.verdict is Verdict.NOT_RUN
    assert few.reason.startswith("3 random groups of 128 neurons were measured, at least 10")
    tables = planted.patching(0.15, 0.01)
    tables["toxicity_patching"] = tables["toxicity_patching"].drop(columns=["draws", "whole"])
    assert row(30, tables).reason == (
        "toxicity_patching has no column draws, whole: run the toxicity study anew"
    )


def test_row_30_needs_as_many_random_neurons() -> None:
    tables = planted.patching(0.15, 0.01)
    table = tables["toxicity_patching"]
    table.loc[table["group"] == "random", "neurons"] = 7
    assert row(30, tables).reason == "no 128 random neurons were patched"
    bare = without(tables, "toxicity_patching", group="attribute")
    assert row(30, bare).reason == "the neurons of the attribute were not patched"


# Ratios and falls.


@settings(deadline=None, max_examples=50)
@given(
    st.floats(0.1, 1),
    st.floats(0, 0.09),
    st.floats(-0.9, 0.9),
    st.floats(0, 0.3),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_ratio_lies_in_its_interval_wherever_both_values_lie_in_theirs(
    base: float, base_half: float, change: float, half: float, at_base: float, at_change: float
) -> None:
    found = ratio_to_base(around(base, base_half), around(change, half))
    assert found.value == pytest.approx(1 + change / base)
    drawn = 1 + (change + (2 * at_change - 1) * half) / (base + (2 * at_base - 1) * base_half)
    assert found.low - 1e-9 <= drawn <= found.high + 1e-9


@pytest.mark.parametrize("shared", [-0.9, 0.0, 0.9])
def test_the_interval_of_a_ratio_is_never_narrower_than_that_of_paired_prompts(
    shared: float,
) -> None:
    rng = np.random.default_rng(0)
    base = 0.4 + 0.1 * rng.standard_normal(100)
    policy = 0.2 + 0.1 * (shared * (base - 0.4) / 0.1 + 0.4 * rng.standard_normal(100))
    truth = bootstrap_ratio(policy, base, draws=2000, seed=1)
    found = ratio_to_base(
        bootstrap_mean(base, draws=2000, seed=2), bootstrap_mean(policy - base, draws=2000, seed=3)
    )
    assert found.value == pytest.approx(truth.value)
    assert found.low < truth.low
    assert found.high > truth.high


def test_a_ratio_to_a_base_that_may_be_zero_has_no_interval() -> None:
    found = ratio_to_base(around(0.1, 0.1), around(-0.05, 0.01))
    assert found.value == pytest.approx(0.5)
    assert np.isnan([found.low, found.high]).all()


def around(middle: float, half: float) -> Interval:
    return Interval(value=middle, low=middle - half, high=middle + half, draws=0)


@settings(deadline=None, max_examples=100)
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_nothing_that_falls_no_further_than_random_groups_is_replicated(
    effect: float, control: float, half: float, reach: float
) -> None:
    found = fall(around(effect, half), around(control, reach))
    verdict = decide(
        Measurement(
            measured=effect,
            null=control,
            null_name="control",
            target_met=found.target_met,
            null_met=found.null_met,
            right_sign=found.right_sign,
        )
    )
    expected = FAILED
    if effect + half < 0:
        expected = TRIVIAL if effect >= control - reach else PARTIAL
        expected = REPLICATED if effect + half < control - reach else expected
    assert verdict is expected


# What chance gives: random groups replicate in no more than about one case of twenty.


def share_of(
    wanted: tuple[Verdict, ...],
    number: int,
    tables: Callable[[np.random.Generator], Tables],
    trials: int = 60,
) -> float:
    """Share of studies of random groups that get these verdicts."""
    rng = np.random.default_rng(number)
    measure = next(claim.measure for claim in LEE_CLAIMS if claim.id == number)
    return float(np.mean([decide(measure(tables(rng))) in wanted for _ in range(trials)]))


def replicated(
    number: int, tables: Callable[[np.random.Generator], Tables], trials: int = 60
) -> float:
    return share_of((REPLICATED,), number, tables, trials)


@pytest.mark.parametrize("drift", [0.0, -0.05, -0.5])
def test_random_neurons_seldom_replicate_row_25(drift: float) -> None:
    # Heavy tails, layers that move as one, and neurons that fall as a whole.
    table = planted.activations(0.0, 0.0)["toxicity_activations"]

    def tables(rng: np.random.Generator) -> Tables:
        layers = 0.3 * rng.standard_normal(8)[table["layer"]]
        table["change"] = 0.1 * (drift + layers + rng.standard_t(3, len(table)))
        table["mean_base"] = rng.standard_normal(len(table)) / 10
        return {"toxicity_activations": table}

    assert replicated(25, tables) <= 0.05


@pytest.mark.parametrize("drift", [0.0, -0.5])
def test_random_tokens_seldom_replicate_row_29(drift: float) -> None:
    # Groups differ by 0.1, prompts leave an error of 0.03.
    def tables(rng: np.random.Generator) -> Tables:
        groups = drift + 0.1 * rng.standard_normal(21)
        low, high = groups[1:].min(), groups[1:].max()
        table = planted.lens(groups[0] + 0.03 * rng.standard_normal(), 0.0, half=0.06)
        rows = table["toxicity_lens"]
        neutral = rows["group"] == "neutral"
        rows.loc[neutral, ["log_ratio", "low", "high"]] = (low + high) / 2, low, high
        return table

    assert replicated(29, tables) <= 0.05


@pytest.mark.parametrize("mean", [0.0, 0.1])
def test_random_neurons_seldom_replicate_row_30(mean: float) -> None:
    # Shares of groups differ by 0.03, prompts leave an error of 0.01.
    def tables(rng: np.random.Generator) -> Tables:
        groups = mean + 0.03 * rng.standard_normal(13)
        reach = groups[1:].max() - groups[1:].mean()
        share = groups[0] + 0.01 * rng.standard_normal()
        return planted.patching(share, groups[1:].mean(), half=0.02, reach=reach)

    assert replicated(30, tables) <= 0.05


@pytest.mark.parametrize("mean", [0.0, 0.9])
def test_random_neurons_seldom_replicate_row_28(mean: float) -> None:
    # Shares of groups differ by 0.1, and prompts leave an error of 0.08.
    def tables(rng: np.random.Generator) -> Tables:
        share, random, active = mean + 0.13 * rng.standard_normal(3)
        return planted.unalign(
            share, random=random, most_active=active, half=0.04, scales=(1.0, 10.0)
        )

    assert replicated(28, tables, 20) <= 0.05


def test_random_vectors_seldom_replicate_row_22() -> None:
    # At this perplexity everything scores about as the bound.
    def tables(rng: np.random.Generator) -> Tables:
        names = [*SUBTRACTED, *CONTROLS]
        scores = dict(zip(names, 0.29 + 0.02 * rng.standard_normal(6), strict=True))
        return planted.interventions(
            subtracted={name: scores[name] for name in SUBTRACTED},
            controls={name: scores[name] for name in CONTROLS},
        )

    assert replicated(22, tables, 20) <= 0.05


def test_probes_of_shuffled_labels_seldom_exceed_their_own_range_in_row_20() -> None:
    def tables(rng: np.random.Generator) -> Tables:
        table = planted.probe(0.5 + 0.05 * rng.standard_normal(), half=0.1)
        rows = table["toxicity_probe"]
        rows.loc[rows["control"] == "shuffled_labels", "high"] = 0.6
        return table

    assert share_of((REPLICATED, PARTIAL, TRIVIAL), 20, tables) <= 0.05


# All of them.


def judged(tables: Tables, **more: object) -> dict[int, ClaimResult]:
    """All rows at once: fifty judgements cost more than the tests they are for."""
    found = judge(tables, **more)  # type: ignore[arg-type]
    return {result.id: result for result in found if result.id in ROWS}


@pytest.fixture(scope="module")
def results() -> dict[int, ClaimResult]:
    return judged(planted.study())


@pytest.mark.parametrize("number", ROWS)
def test_a_study_as_published_replicates(number: int, results: dict[int, ClaimResult]) -> None:
    found = results[number]
    assert found.verdict is REPLICATED
    assert found.null_name
    assert found.unit
    assert found.n > 0
    assert not re.search(r"\bnan\b", f"{found.reason} {found.unit} {found.null_name}")
    assert "; ;" not in found.reason
    assert "\n" not in found.reason


def test_the_ledger_of_a_study_can_be_rendered(results: dict[int, ClaimResult]) -> None:
    lines = ledger_markdown(list(results.values())).splitlines()[2:]
    assert len(lines) == len(ROWS)
    assert all(line.replace("\\|", "").count("|") == 8 for line in lines)


def test_the_order_of_rows_does_not_matter(results: dict[int, ClaimResult]) -> None:
    shuffled = judged(
        {
            # Partners stand in the same order.
            name: table if name == "toxicity_activations" else table.sample(frac=1, random_state=3)
            for name, table in planted.study().items()
        }
    )
    for number, found in shuffled.items():
        assert found.verdict is REPLICATED
        assert value(found) == pytest.approx(value(results[number]))
        assert null(found) == pytest.approx(null(results[number]))


def test_without_a_scorer_rows_on_behaviour_are_not_run_for_its_reason() -> None:
    tables = planted.study() | planted.metrics(NO_WEIGHTS)
    for name in ("toxicity_interventions", "toxicity_unalign"):
        for column in ("attribute_score", "low", "high", "change", "change_low", "change_high"):
            if column in tables[name]:
                tables[name][column] = nan
    for number, found in judged(tables).items():
        if number in (22, 23, 24, 28):
            assert found.verdict is Verdict.NOT_RUN
            assert found.measured is None
            assert found.reason == f"attribute_score NOT RUN ({NO_WEIGHTS})"
        else:
            assert found.verdict is REPLICATED


def test_a_scorer_under_another_name_gives_its_reason_too() -> None:
    tables = planted.study() | planted.metrics(NO_WEIGHTS)
    tables["toxicity_metrics"]["metric"] = ["detoxify", "perplexity", "f1"]
    tables["toxicity_interventions"]["attribute_score"] = nan
    assert row(22, tables).reason == f"detoxify NOT RUN ({NO_WEIGHTS})"


def test_without_the_study_rows_say_what_makes_it() -> None:
    alone = judged({})
    # One other table of the study is there.
    rest = judged(planted.metrics())
    for claim in LEE_CLAIMS:
        missing = f"no table {', '.join(claim.tables)}"
        assert alone[claim.id].verdict is Verdict.NOT_RUN
        assert alone[claim.id].reason == f"needs the toxicity study (dsteer toxicity): {missing}"
        assert rest[claim.id].reason == missing


def test_another_attribute_is_named_in_every_row(results: dict[int, ClaimResult]) -> None:
    tables = planted.study() | planted.probe(0.95, attribute="unkind", labels="sampled")
    said = "the attribute is “unkind”, not toxicity"
    assert all(found.reason.count(said) == 1 for found in judged(tables).values())
    assert not any(said in found.reason for found in results.values())


def test_rows_on_one_model_alone_are_run_on_equal_models() -> None:
    for number, found in judged(planted.study(), identical=True).items():
        assert (found.verdict is REPLICATED) == (number in (20, 21))
        assert ("same weights" in found.reason) == (number not in (20, 21))


def test_differences_of_the_pair_are_named_where_streams_are_compared() -> None:
    for number, found in judged(planted.study(), differences=("W_U",)).items():
        said = "base and policy differ in W_U" in found.reason
        assert said == (number in (26, 27, 29, 30))
