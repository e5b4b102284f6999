"""Every row of the ledger by every choice, on tables in which the truth is planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import logging as transformers_logging

from dsteer_tl.claims import LEDGER, Verdict
from dsteer_tl.claims.choices import DIMENSIONS
from dsteer_tl.claims.multiverse import COLUMNS, flipping_choices, multiverse, verdict_shares
from dsteer_tl.claims.selection import at, value_at
from dsteer_tl.claims.shift_choices import (
    LAST_RESID_POST,
    at_kind,
    at_last_resid_post,
    centred,
)
from dsteer_tl.claims.views import stored_views
from dsteer_tl.errors import ShapeError
from dsteer_tl.measurements.other_captures import other_capture_tables
from dsteer_tl.measurements.shift_statistics import shift_table
from dsteer_tl.pair import ModelPair
from tests.claims import planted
from tests.claims.planted import row
from tests.claims.planted_pairs import SETTINGS, plant_pair, planted_probes, planted_tables
from tests.measurements.synthetic import capture, constant, normal

Tables = dict[str, pd.DataFrame]
SHIFTS = (6, 7, 8, 18)


@pytest.fixture(autouse=True, scope="module")
def _no_bars() -> None:
    transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def vector() -> pd.DataFrame:
    return multiverse(stored_views(planted_tables("vector")))


# The table.


def test_every_claim_has_one_default_that_is_the_ledgers(vector: pd.DataFrame) -> None:
    assert list(vector.columns) == list(COLUMNS)
    defaults = vector[vector["default"]]
    assert defaults["id"].tolist() == [claim.id for claim in LEDGER]
    for number in (*SHIFTS, 13):
        found = row(number, planted_tables("vector"))
        told = at(defaults, id=number)
        assert told["verdict"].tolist() == [found.verdict.value]
        assert told["measured"].tolist() == [found.measured]
    assert not defaults["flips"].any()


def test_a_claim_without_a_choice_says_so() -> None:
    table = multiverse(stored_views(planted.identity(1e-6, 3.0)))
    (found,) = at(table, id=1).to_dict("records")
    assert (found["verdict"], found["applies"], found["flips"]) == ("REPLICATED", False, False)
    assert found["reason"] == "no choice that this run stores bears on it"


def test_a_claim_that_is_not_run_keeps_its_reason() -> None:
    (found,) = at(multiverse(stored_views({})), id=6).to_dict("records")
    assert (found["verdict"], found["applies"]) == ("NOT RUN", False)
    assert "no table cosines" in found["reason"]


def test_flips_are_other_verdicts_and_nothing_else(vector: pd.DataFrame) -> None:
    for _, group in vector.groupby("id"):
        default = at(group, default=True)["verdict"].to_numpy()[0]
        idle = Verdict.NOT_RUN.value
        others = (group["verdict"] != default) & (group["verdict"] != idle) & (default != idle)
        assert (group["flips"] == others).all()
    assert not vector.loc[vector["verdict"] == Verdict.NOT_RUN.value, "applies"].any()


# The views.


def test_a_planted_vector_replicates_by_every_choice_that_does_not_undo_it(
    vector: pd.DataFrame,
) -> None:
    # Before the norm all shifts are one vector: without their mean nothing is left.
    site = at(vector, dimension="site", choice=LAST_RESID_POST).set_index("id")["verdict"]
    assert site.to_dict() == {6: "REPLICATED", 7: "TRIVIAL", 8: "TRIVIAL", 18: "TRIVIAL"}
    positions = at(vector, dimension="position", choice="response")
    assert set(positions["id"]) == {6, 7, 8, 13, 18}
    assert set(positions["verdict"]) == {"REPLICATED"}
    # Without their mean, shifts of different lengths still lie on the vector.
    without = at(vector, dimension="centring").set_index("id")["verdict"]
    assert (without[7], without[8]) == ("REPLICATED", "REPLICATED")
    assert set(without.index) == {7, 8, 18}
    # At h the vector is a logit bias, which is worse.
    at_h = at(vector, dimension="site", choice="h", id=13).to_dict("records")[0]
    assert (at_h["verdict"], at_h["flips"]) == ("PARTIAL", True)
    assert at_h["measured"] == pytest.approx(at_h["null"], abs=1e-4)


def test_a_view_holds_what_was_measured_there() -> None:
    tables = planted_tables("vector")
    moved = at_last_resid_post(tables)["shifts"]
    there = at(tables["shifts"], site="resid_post.1", position_kind="response")
    assert set(moved["site"]) == {"h"}
    assert value_at(moved, "v_norm", position_kind="response") == value_at(there, "v_norm")
    changed = centred(tables)
    assert changed["shifts"]["sigma_ratio"].equals(tables["shifts"]["sigma_ratio_centred"])
    ratio = at(changed["nulls"], statistic="sigma_ratio", null="gaussian_matched")["value"]
    own = at(tables["nulls"], statistic="sigma_ratio_centred", null="gaussian_matched")["value"]
    np.testing.assert_array_equal(ratio, own)
    assert at(changed["nulls"], statistic="u1_v_cos")["value"].isna().all()
    assert len(changed["mass"]) == len(tables["mass"]) / 2
    assert set(at_kind(tables, "response")["kl_recovery"]["position_kind"]) == {"response"}


def test_views_leave_the_tables_as_they_are() -> None:
    tables = planted_tables("vector")
    before = {name: table.copy() for name, table in tables.items()}
    stored_views(tables)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, before[name])


def test_all_combinations_are_taken_once(vector: pd.DataFrame) -> None:
    every = at(vector, dimension="all")
    counts = every.groupby("id").size().to_dict()
    # Two sites and two position kinds, and centring for the rows that have it.
    assert counts == {6: 4, 7: 8, 8: 8, 13: 4, 18: 8}
    assert not every.duplicated(["id", "choice"]).any()
    default = at(every, choice="h · last_prompt · uncentred · float32 · prompts of the run")
    for number in SHIFTS:
        one, other = (at(table, id=number) for table in (default, vector))
        assert one["measured"].tolist() == at(other, default=True)["measured"].tolist()


def sweep(**changes: object) -> pd.DataFrame:
    rows = [
        {
            "suite": "held_out",
            "direction": "interpolate",
            "vector": vector,
            "matching": matching,
            "site": site,
            "positions": "all",
            "coefficient": coefficient,
            "family": "degeneration",
            "metric": "repeated_4grams",
            "value": level * coefficient / 4,
            "ci_low": level * coefficient / 4 - 0.01,
            "ci_high": level * coefficient / 4 + 0.01,
            "n": 32,
        }
        for vector, matching, site, level in (
            ("v_star", "norm", "h", 0.05),
            ("random", "norm", "h", 0.01),
            ("random", "kl", "h", 0.04),
            ("v_star", "norm", "resid_post.5", 0.9),
            ("random", "norm", "resid_post.5", 0.0),
        )
        for coefficient in (0.0, 1.0, 2.0, 4.0)
    ]
    return pd.DataFrame(rows).assign(**changes)


def test_choices_of_a_sweep() -> None:
    metrics = pd.DataFrame(
        [
            {
                "suite": "held_out",
                "family": "degeneration",
                "metric": "repeated_4grams",
                "status": "measured",
                "reason": "",
                "unit": "share",
                "better": "lower",
            }
        ]
    )
    views = stored_views({"sweep": sweep(), "sweep_metrics": metrics})
    table = at(multiverse(views), id=15).set_index(["dimension", "choice"])
    assert table.loc[("default", "default"), "verdict"] == "PARTIAL"
    steered = table.loc[("site", "steered at resid_post.5")]
    assert (steered["verdict"], steered["measured"], steered["flips"]) == ("REPLICATED", 0.9, True)
    # By KL the random vector does nearly as much, and v* is where it was.
    matched = table.loc[("matching", "controls by KL")]
    assert (matched["measured"], matched["null"]) == (0.05, 0.04)
    assert table.index.get_level_values("dimension").tolist() == ["default", "site", "matching"]


def test_choices_of_the_study() -> None:
    offsets = pd.DataFrame(
        [
            {
                "place": place,
                "layer": 3,
                "position_kind": kind,
                "control": control,
                "cosine": cosine if control == "policy" else 0.1,
                "low": cosine - 0.01,
                "high": cosine + 0.01,
                "rows": 40,
            }
            for place, cosine in (("resid_mid", 0.95), ("resid_post", 0.5))
            for kind in ("last_prompt", "response")
            for control in ("policy", "random_weights")
        ]
    )
    table = at(multiverse(stored_views({"toxicity_offsets": offsets})), id=26)
    told = list(zip(table["dimension"], table["choice"], table["verdict"], strict=True))
    assert told == [
        ("default", "default", "REPLICATED"),
        ("position", "response", "REPLICATED"),
        ("place", "resid_post", "PARTIAL"),
    ]


# What is told of it.


def test_flipping_choices_and_shares(vector: pd.DataFrame) -> None:
    flips = flipping_choices(vector).set_index("id")
    assert flips.loc[13, "verdict"] == "REPLICATED"
    assert flips.loc[13, "flipped_by"] == "site: h → PARTIAL"
    assert flips.loc[13, ["alternatives", "kept"]].tolist() == [2, 0.5]
    assert flips.loc[1, "alternatives"] == 0
    assert np.isnan(flips.loc[1, "kept"])
    shares = verdict_shares(vector)
    assert set(shares["id"]) == {6, 7, 8, 13, 18}
    assert shares.groupby("id")["share"].sum().tolist() == pytest.approx([1] * 5)
    assert at(shares, id=13)[["verdict", "share", "universes"]].to_numpy().tolist() == [
        ["PARTIAL", 0.5, 4],
        ["REPLICATED", 0.5, 4],
    ]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(Verdict)), st.sampled_from([*DIMENSIONS, "all"])),
        max_size=12,
    )
)
def test_shares_are_of_what_has_a_verdict(drawn: list[tuple[Verdict, str]]) -> None:
    rows = [(Verdict.FAILED, "default"), *drawn]
    table = pd.DataFrame(
        {
            "id": 7,
            "dimension": [dimension for _, dimension in rows],
            "choice": [str(index) for index in range(len(rows))],
            "default": [dimension == "default" for _, dimension in rows],
            "verdict": [verdict.value for verdict, _ in rows],
            "applies": [verdict is not Verdict.NOT_RUN for verdict, _ in rows],
            "flips": [verdict not in (Verdict.NOT_RUN, Verdict.FAILED) for verdict, _ in rows],
        }
    )
    (found,) = flipping_choices(table).to_dict("records")
    single = [v for v, dimension in drawn if dimension != "all" and v is not Verdict.NOT_RUN]
    assert found["alternatives"] == len(single)
    if single:
        assert found["kept"] == pytest.approx(single.count(Verdict.FAILED) / len(single))
    shares = verdict_shares(table)
    crossed = [v for v, dimension in drawn if dimension == "all" and v is not Verdict.NOT_RUN]
    assert shares["share"].sum() == pytest.approx(1 if crossed else 0)


# Other captures.


def test_a_restricted_shift_set_is_that_of_its_prompts() -> None:
    base, shifts = normal(12, 8, seed=1), constant(12, 8) + normal(12, 8, seed=2)
    whole = capture(base, shifts)
    kept = [1, 4, 5, 9]
    found = whole.restricted(prompts=kept, sites=["h"])
    other = capture(base[kept], shifts[kept], prompts=kept, sites=["h"])
    assert found.prompts("last_prompt").tolist() == kept
    np.testing.assert_array_equal(
        found.residuals("policy", "h", "last_prompt"),
        other.residuals("policy", "h", "last_prompt"),
    )
    pd.testing.assert_frame_equal(shift_table(found), shift_table(other))
    assert whole.count("last_prompt") == 12
    assert whole.sites != found.sites


def test_a_restricted_shift_set_says_what_is_missing() -> None:
    whole = capture(normal(4, 8, seed=1), constant(4, 8))
    with pytest.raises(ShapeError, match=r"resid_post.7 was not captured"):
        whole.restricted(sites=["resid_post.7"])
    with pytest.raises(ShapeError, match="the 4 captured prompts share none"):
        whole.restricted(prompts=[99])


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Tables]:
    folder: Path = tmp_path_factory.mktemp("pair")
    pair, shift_set = plant_pair("vector", 0, folder)
    from dsteer_tl.lens_model import LoadOptions

    def load(precision: str) -> tuple[ModelPair, dict[str, object]]:
        if precision == "float32":
            return pair, {}
        options = LoadOptions(dtype=precision)
        paths = folder / "base", folder / "policy"
        return ModelPair.load(*paths, options=options, self_check=False), {}

    return other_capture_tables(
        load,  # type: ignore[arg-type]
        planted_probes(0),
        shift_set,
        SETTINGS,
        unrelated=planted_probes(5)[:20],
        progress=False,
    )


def test_other_captures_by_dimension_and_choice(
    others: dict[tuple[str, str], Tables],
) -> None:
    prompts = ("first half", "second half", "unrelated text")
    assert set(others) == {
        ("precision", "bfloat16"),
        *(("prompts", choice) for choice in prompts),
        *(("precision · prompts", f"bfloat16 · {choice}") for choice in prompts),
    }
    halves = [others["prompts", f"{name} half"]["cosines"] for name in ("first", "second")]
    kept = [set(at(table, position_kind="last_prompt")["prompt"]) for table in halves]
    assert not kept[0] & kept[1]
    assert len(kept[0] | kept[1]) == 64
    n = others["prompts", "unrelated text"]["shifts"].query("position_kind == 'last_prompt'")["n"]
    assert set(n) == {20}
    # Rounded weights move the shifts a little: it is another capture, and not the same one.
    whole = planted_tables("vector")["shifts"]
    rounded = others["precision", "bfloat16"]["shifts"]
    assert rounded["v_norm"].tolist() == pytest.approx(whole["v_norm"].tolist(), rel=0.05)
    assert rounded["v_norm"].tolist() != whole["v_norm"].tolist()


def test_a_planted_vector_is_one_on_other_prompts_and_in_bfloat16(
    others: dict[tuple[str, str], Tables],
) -> None:
    table = multiverse(stored_views(planted_tables("vector"), others))
    singles = table[table["dimension"].isin(["precision", "prompts"]) & (table["id"] == 6)]
    assert len(singles) == 4
    # What rounding adds to a small shift of a long state is not parallel to it.
    assert set(at(singles, dimension="prompts")["verdict"]) <= {"REPLICATED", "TRIVIAL"}
    assert set(at(table, dimension="prompts", id=13)["verdict"]) == {"REPLICATED"}
    counts = at(table, dimension="all", applies=True).groupby("id").size()
    # Two sites, two position kinds, two precisions and four sets of prompts; without their mean
    # shifts that are all one vector have no second singular value to speak of.
    assert counts.to_dict() == {6: 32, 7: 48, 8: 64, 13: 32, 18: 64}
