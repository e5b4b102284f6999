from __future__ import annotations

import json
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dsteer_tl import plots
from dsteer_tl.claims import LEDGER, Verdict, judge, ledger_markdown, ledger_text
from dsteer_tl.claims.text import number
from dsteer_tl.experiment.figures import _plots
from dsteer_tl.experiment.stressing import MODEL_VERDICTS
from dsteer_tl.experiment.study import STUDY_TABLES
from dsteer_tl.experiment.sweeping import SWEEP_TABLES
from dsteer_tl.measurements import AUDIT_TABLES, PAIR_TABLES, TABLES
from dsteer_tl.stress.settings import STRESS_TESTS
from tests import runs
from tests.claims import planted
from tests.claims.planted import row, shift_tables
from tests.measurements.synthetic import capture, constant, normal, subspace

SHIFT_ROWS = (6, 7, 8, 9, 18)


# Rows 6, 7, 8 and 18 on planted shifts.


@pytest.fixture(scope="module")
def constant_shift() -> dict[str, pd.DataFrame]:
    others = {"random_weights": normal(40, 32, seed=9)}
    return shift_tables(capture(normal(40, 32, seed=1), constant(40, 32, seed=7), others=others))


def test_parallel_shifts_replicate_row_6(constant_shift: dict[str, pd.DataFrame]) -> None:
    # Neither sign flips nor random weight changes give parallel shifts: the control fails.
    found = row(6, constant_shift)
    assert found.verdict is Verdict.REPLICATED
    assert found.measured == pytest.approx(1, abs=1e-6)
    assert found.null is not None
    assert found.null < 0.5
    assert found.null_name in {"sign flip", "random weights"}
    assert (found.site, found.position_kind, found.n) == ("h", "last_prompt", 40)


@pytest.mark.parametrize("number", [7, 8, 18])
def test_rank_one_is_trivial_when_the_mean_is_all_there_is(
    number: int, constant_shift: dict[str, pd.DataFrame]
) -> None:
    # The Gaussian control keeps the mean and the (vanishing) variance, so it is of rank one too.
    found = row(number, constant_shift)
    assert found.verdict is Verdict.TRIVIAL
    assert found.null == pytest.approx(found.measured, abs=1e-5)
    assert found.null_name == "Gaussian with the same mean and variance"


def test_row_6_is_trivial_if_random_weight_changes_are_as_parallel() -> None:
    others = {"random_weights": constant(40, 32, seed=8)}
    tables = shift_tables(capture(normal(40, 32, seed=1), constant(40, 32, seed=7), others=others))
    found = row(6, tables)
    assert found.verdict is Verdict.TRIVIAL
    assert found.null_name == "random weights"


@pytest.mark.parametrize("number", [6, 7, 18])
def test_shifts_that_depend_on_the_prompt_fail(number: int) -> None:
    found = row(number, shift_tables(capture(normal(80, 32, seed=1), subspace(80))))
    assert found.verdict is Verdict.FAILED
    assert found.measured is not None


def test_a_mean_among_prompt_dependent_shifts_is_partial() -> None:
    shifts = subspace(80) + constant(80, 32, norm=3.0, seed=7)
    others = {"random_weights": normal(80, 32, seed=9)}
    tables = shift_tables(capture(normal(80, 32, seed=1), shifts, others=others))
    six, seven = row(6, tables), row(7, tables)
    assert six.verdict is Verdict.PARTIAL
    assert six.measured is not None
    assert 0.5 < six.measured < 0.92
    assert seven.verdict is Verdict.PARTIAL
    assert seven.measured is not None
    assert 0.1 < seven.measured < 0.5
    assert "random weight changes" in seven.reason


def test_row_7_fails_if_random_weight_changes_have_as_small_a_ratio() -> None:
    shifts = subspace(80) + constant(80, 32, norm=3.0, seed=7)
    tables = shift_tables(
        capture(normal(80, 32, seed=1), shifts, others={"random_weights": constant(80, 32)})
    )
    assert row(7, tables).verdict is Verdict.FAILED


def test_low_rank_scatter_around_the_mean_gives_row_7_a_smaller_null() -> None:
    # All scatter on one axis: its σ2 is larger than that of the same variance spread evenly.
    scatter = np.outer(normal(60, seed=3), np.eye(32)[0])
    tables = shift_tables(
        capture(normal(60, 32, seed=1), constant(60, 32, norm=4.0, seed=7) + scatter)
    )
    found = row(7, tables)
    assert found.null is not None
    assert found.measured is not None
    assert found.null < found.measured


# The other rows.


@pytest.mark.parametrize(
    ("here", "later", "verdict"),
    [
        (1e-6, 3.0, Verdict.REPLICATED),
        (1e-6, 1e-6, Verdict.TRIVIAL),
        (0.5, 3.0, Verdict.PARTIAL),
        (4.0, 3.0, Verdict.FAILED),
    ],
)
def test_row_1(here: float, later: float, verdict: Verdict) -> None:
    found = row(1, planted.identity(here, later))
    assert found.verdict is verdict
    assert (found.measured, found.null) == (here, later)


@pytest.mark.parametrize(
    ("here", "later", "shuffled", "verdict"),
    [
        (1.0, 0.99, 0.0, Verdict.REPLICATED),
        (1.0, 0.99, 0.99, Verdict.TRIVIAL),
        (1.0, 0.1, 0.0, Verdict.PARTIAL),
        (0.5, 0.1, 0.4, Verdict.FAILED),
    ],
)
def test_row_2(here: float, later: float, shuffled: float, verdict: Verdict) -> None:
    found = row(2, planted.gradients(here, later, shuffled))
    assert found.verdict is verdict
    assert found.measured == pytest.approx(later)
    assert f"{here:.3f} at the divergence position" in found.reason


@pytest.mark.parametrize(
    ("share", "null", "verdict"),
    [
        (0.8, 0.1, Verdict.REPLICATED),
        (0.8, 0.7, Verdict.TRIVIAL),
        (0.3, 0.1, Verdict.PARTIAL),
        (0.1, 0.1, Verdict.FAILED),
    ],
)
def test_row_3(share: float, null: float, verdict: Verdict) -> None:
    found = row(3, planted.directions(share, null))
    assert (found.verdict, found.measured, found.null) == (verdict, share, null)


@pytest.mark.parametrize(
    ("rising", "random", "verdict"),
    [
        (1.0, 0.5, Verdict.REPLICATED),
        (1.0, 1.0, Verdict.TRIVIAL),
        (0.8, 0.5, Verdict.PARTIAL),
        (0.5, 0.5, Verdict.FAILED),
    ],
)
def test_row_4(rising: float, random: float, verdict: Verdict) -> None:
    found = row(4, planted.projections(rising, random))
    assert (found.verdict, found.measured, found.null) == (verdict, rising, random)
    assert found.ci is not None
    assert found.ci[0] <= rising <= found.ci[1]


@pytest.mark.parametrize(
    ("v_star", "null", "verdict"),
    [
        (0.97, 0.1, Verdict.REPLICATED),
        (0.97, 0.96, Verdict.TRIVIAL),
        (0.4, 0.1, Verdict.PARTIAL),
        (0.05, 0.1, Verdict.FAILED),
        (-0.97, 0.1, Verdict.FAILED),
    ],
)
def test_row_5(v_star: float, null: float, verdict: Verdict) -> None:
    found = row(5, planted.directions(0.8, null, v_star))
    assert (found.verdict, found.measured, found.null) == (verdict, v_star, null)


def test_row_9_sees_a_spectrum_collapse() -> None:
    # A long constant shift swallows the spectrum of H in the policy; the control's does not.
    shifts = constant(40, 32, norm=20.0, seed=7)
    others = {"random_weights": 0.01 * normal(40, 32, seed=9)}
    found = row(9, shift_tables(capture(normal(40, 32, seed=1), shifts, others=others)))
    assert found.verdict is Verdict.REPLICATED
    assert found.measured is not None
    assert found.measured < -1
    assert found.site == "resid_post.2"


def test_row_9_is_trivial_if_any_weight_change_does_it() -> None:
    shifts = constant(40, 32, norm=20.0, seed=7)
    others = {"random_weights": constant(40, 32, norm=20.0, seed=8)}
    found = row(9, shift_tables(capture(normal(40, 32, seed=1), shifts, others=others)))
    assert found.verdict is Verdict.TRIVIAL


def test_row_9_fails_where_entropy_rises() -> None:
    base = normal(40, 32, seed=1) + constant(40, 32, norm=20.0, seed=7)
    found = row(9, shift_tables(capture(base, 5 * normal(40, 32, seed=2))))
    assert found.verdict is Verdict.FAILED
    assert found.null is None


@pytest.mark.parametrize(
    ("early", "verdict"),
    [(0.02, Verdict.REPLICATED), (0.4, Verdict.PARTIAL), (0.9, Verdict.FAILED)],
)
def test_row_10(early: float, verdict: Verdict) -> None:
    found = row(10, planted.patching(early))
    assert found.verdict is verdict
    assert found.measured == pytest.approx(1 - early)
    assert found.ci == pytest.approx((1 - early - 0.02, 1 - early + 0.02))
    assert found.null == pytest.approx(1 / 3)
    assert found.site == "resid_post.3"  # below the last third of six layers


@pytest.mark.parametrize(
    ("v_star", "bias", "random", "verdict"),
    [
        (0.95, 0.2, 0.0, Verdict.REPLICATED),
        (0.95, 0.95, 0.0, Verdict.TRIVIAL),
        (0.6, 0.6, 0.0, Verdict.PARTIAL),
        (0.3, 0.3, 0.4, Verdict.FAILED),
        (-1.0, -1.0, -2.0, Verdict.FAILED),
    ],
)
def test_row_13(v_star: float, bias: float, random: float, verdict: Verdict) -> None:
    found = row(13, planted.recovery(v_star, bias, random))
    assert found.verdict is verdict
    assert found.measured == v_star
    assert found.null == max(bias, bias / 2)
    assert f"{v_star:.2f} at response" in found.reason


# Missing and undefined.


def test_without_tables_nothing_is_run_and_each_row_says_why() -> None:
    results = judge({})
    assert [found.id for found in results] == list(range(1, 37))
    for claim, found in zip(LEDGER, results, strict=True):
        assert found.verdict is Verdict.NOT_RUN
        assert found.measured is None
        assert all(name in found.reason for name in claim.tables)
        assert ("needs preference pairs" in found.reason) == (claim.id in {*range(1, 6), 19})
        assert ("needs a stress test" in found.reason) == (claim.id >= 31)


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: str(claim.id))
def test_tables_and_figures_of_a_claim_exist(claim: object) -> None:
    known = {*TABLES, *AUDIT_TABLES, *SWEEP_TABLES, *STUDY_TABLES, MODEL_VERDICTS}
    known |= {f"stress_{name}" for name in STRESS_TESTS}
    assert set(claim.tables) <= known  # type: ignore[attr-defined]
    assert claim.figure in {*_plots(), *plots.__all__}  # type: ignore[attr-defined]
    needs_pairs = bool(set(claim.tables) & PAIR_TABLES)  # type: ignore[attr-defined]
    assert needs_pairs == (claim.id in {*range(1, 6), 19})  # type: ignore[attr-defined]


def test_a_grid_without_one_leaves_row_13_out() -> None:
    tables = planted.recovery(0.95, 0.2)
    table = tables["kl_recovery"]
    found = row(13, {"kl_recovery": table[table["coefficient"] != 1]})
    assert found.verdict is Verdict.NOT_RUN
    assert found.reason == "λ = 1 is not among measurement.coefficients"


def test_a_statistic_that_is_undefined_is_not_run(
    constant_shift: dict[str, pd.DataFrame],
) -> None:
    tables = {**constant_shift, "shifts": constant_shift["shifts"].assign(sigma_ratio=nan)}
    found = row(7, tables)
    assert found.verdict is Verdict.NOT_RUN
    assert found.measured is None
    assert found.reason.startswith("undefined, as where base and policy do not differ")
    json.dumps(found.to_json(), allow_nan=False)


def test_rows_on_the_difference_of_equal_models_are_not_run(
    constant_shift: dict[str, pd.DataFrame],
) -> None:
    tables = {**constant_shift, **planted.identity(1e-6, 3.0)}
    assert row(1, tables, identical=True).verdict is Verdict.REPLICATED
    for claim_id in SHIFT_ROWS:
        found = row(claim_id, tables, identical=True)
        assert found.verdict is Verdict.NOT_RUN
        assert found.reason == "base and policy hold the same weights: no shift"


def test_differences_of_the_pair_are_named_where_they_matter(
    constant_shift: dict[str, pd.DataFrame],
) -> None:
    tables = {**constant_shift, **planted.identity(1e-6, 3.0)}
    said = "base and policy differ in W_U, final norm"
    assert said in row(6, tables, differences=("W_U", "final norm")).reason
    assert said not in row(1, tables, differences=("W_U", "final norm")).reason
    assert "differ" not in row(6, tables).reason


# For machines and for people.


def test_json_of_a_run(stories260k: Path) -> None:
    text = (runs.pair_run(stories260k) / "claims.json").read_text("utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    rows = json.loads(text, parse_constant=refuse)
    assert [found["id"] for found in rows] == planted.ALL_IDS
    for found in rows:
        assert found.keys() >= {
            *("id", "statement", "published", "measured", "ci", "null", "verdict", "reason"),
            *("site", "position_kind", "n", "source", "target", "null_name", "unit", "figure"),
        }
        assert found["verdict"] in set(Verdict)
        assert found["ci"] is None or len(found["ci"]) == 2
        if found["verdict"] != "NOT RUN":
            assert isinstance(found["measured"], float)
            assert found["n"] > 0


def test_both_renderings_hold_every_row(constant_shift: dict[str, pd.DataFrame]) -> None:
    results = judge({**constant_shift, **planted.recovery(0.95, 0.2)})
    markdown, text = ledger_markdown(results), ledger_text(results, width=100)
    assert len(markdown.splitlines()) == len(results) + 2
    for found, line in zip(results, markdown.splitlines()[2:], strict=True):
        assert line.startswith(f"| {found.id} | {found.statement} | {found.published}")
        assert f"**{found.verdict}**" in line
        assert found.reason in line
        starts = [part for part in text.splitlines() if part.split()[:1] == [str(found.id)]]
        assert len(starts) == 1
        assert starts[0].endswith(found.verdict.value)
    assert max(len(line) for line in text.splitlines()) <= 130
    assert "nan" not in markdown


def test_pipes_do_not_break_the_markdown_table(constant_shift: dict[str, pd.DataFrame]) -> None:
    line = next(
        line for line in ledger_markdown(judge(constant_shift)).splitlines() if "cos(u1" in line
    )
    assert line.replace("\\|", "").count("|") == 8


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.12345, "0.123"),
        (-0.5, "-0.5"),
        (12345.6, "12346"),
        (1.5e-6, "1.5e-06"),
        (2e7, "2.0e+07"),
    ],
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text
