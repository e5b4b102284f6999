"""The verdicts of rows 6, 7, 8 and 13 on pairs of models in which the truth is planted.

From weights through captures and the real tables to the ledger: what a rule would say of shifts
that cannot come from a model is no test of it.
"""

from __future__ import annotations

import numpy as np
import pytest
from transformers.utils import logging as transformers_logging

from dsteer_tl.claims import ClaimResult, Verdict
from dsteer_tl.claims.selection import at, value_at
from tests.claims.planted import row
from tests.claims.planted_pairs import Plant, planted_tables

ROWS = (6, 7, 8, 13)
SEEDS = (0, 1, 2)


@pytest.fixture(autouse=True, scope="module")
def _no_bars() -> None:
    transformers_logging.disable_progress_bar()


def found(number: int, plant: Plant, seed: int) -> ClaimResult:
    return row(number, planted_tables(plant, seed))


@pytest.mark.parametrize("number", ROWS)
@pytest.mark.parametrize("seed", SEEDS)
def test_one_vector_before_the_norm_replicates(number: int, seed: int) -> None:
    assert found(number, "vector", seed).verdict is Verdict.REPLICATED


@pytest.mark.parametrize("seed", SEEDS)
def test_subtracting_the_planted_vector_gives_the_base_and_no_bias_does(seed: int) -> None:
    restored = found(13, "vector", seed)
    assert restored.site == "resid_post.1"
    assert restored.measured == pytest.approx(1, abs=1e-4)
    assert restored.null is not None
    assert restored.null < 0.9
    # At h the vector is another one for every prompt, and its mean is a logit bias.
    table = planted_tables("vector", seed)["kl_recovery"]
    rows = at(table, site="h", direction="invert", coefficient=1.0, position_kind="last_prompt")
    at_h, bias = (value_at(rows, "recovered", vector=name) for name in ("v_star", "logit_bias"))
    assert at_h == pytest.approx(bias, abs=1e-4)
    assert f"{at_h:.2f} at h, where v* is a constant logit bias by algebra" in restored.reason


@pytest.mark.parametrize("number", ROWS)
@pytest.mark.parametrize("seed", SEEDS)
def test_shifts_of_rank_eight_without_a_mean_fail(number: int, seed: int) -> None:
    assert found(number, "scatter", seed).verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("number", "verdict"),
    [
        (6, Verdict.REPLICATED),
        (7, Verdict.TRIVIAL),
        (8, Verdict.TRIVIAL),
        (13, Verdict.TRIVIAL),
    ],
)
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_where_norms_are_equal_one_vector_is_a_logit_bias(
    number: int, verdict: Verdict, seed: int
) -> None:
    # All shifts are one vector at h too: nothing is left of them without their mean.
    assert found(number, "equal_norms", seed).verdict is verdict


def test_a_change_of_a_bias_alone_is_as_parallel_in_the_null_model() -> None:
    # Any change of the bias of the last block adds one vector: so does the random one.
    assert found(6, "bias_alone", 0).verdict is Verdict.TRIVIAL


@pytest.mark.parametrize("number", ROWS)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_weight_changes_replicate_nothing(number: int, seed: int) -> None:
    verdict = found(number, "noise", seed).verdict
    assert verdict in (Verdict.FAILED, Verdict.TRIVIAL)
    assert verdict is Verdict.FAILED or number == 8


def test_the_plants_are_what_they_say() -> None:
    vector, scatter = (planted_tables(plant)["shifts"] for plant in ("vector", "scatter"))
    last = at(vector, site="resid_post.1", position_kind="last_prompt")
    assert value_at(last, "sigma_ratio") < 1e-5
    assert value_at(last, "v_norm") == pytest.approx(np.sqrt(2), rel=1e-5)
    last = at(scatter, site="resid_post.1", position_kind="response")
    assert value_at(last, "effective_rank") == pytest.approx(8, abs=2)
    assert abs(value_at(last, "cos_loo_mean")) < 0.2
