"""Rows 31 and 32 on planted tables: each verdict, and what makes it."""

from __future__ import annotations

import pandas as pd
import pytest

from dsteer_tl.claims import Verdict, decide
from dsteer_tl.claims.measured_variants import embedding_freeze, rank_of_preferences
from dsteer_tl.claims.selection import MissingRowsError
from dsteer_tl.stress.columns import VARIANT_COLUMNS

Row = tuple[str, str, str, float, float, float]


def planted(*rows: Row) -> pd.DataFrame:
    """Rows (condition, role, statistic, value, low, high) at h and the last prompt token."""
    return pd.DataFrame(
        [
            dict(
                zip(
                    VARIANT_COLUMNS,
                    ("t", condition, role, "run", "h", "last_prompt", name, value, low, high, 64),
                    strict=True,
                )
            )
            for condition, role, name, value, low, high in rows
        ]
    )


def embeddings(trainable: float, random: float) -> pd.DataFrame:
    rows: list[Row] = []
    for condition, role, size in (
        ("trainable", "measured", trainable),
        ("other_seed", "control", 0.03),
        ("random_weights", "control", random),
    ):
        for name, factor in (("cos_loo_mean", 0.5), ("sigma_ratio", -1.0), ("recovered", 0.2)):
            value = factor * size
            rows.append((condition, role, f"difference:{name}", value, value - 0.01, value + 0.02))
        rows.append((condition, role, "cos_to_reference", 0.97, 0.9, 0.99))
        rows.append((condition, role, "readout_shift", 0.004, 0.0, 0.01))
        rows.append((condition, role, "cos_loo_mean", 0.9, 0.8, 0.95))
    return planted(*rows)


@pytest.mark.parametrize(
    ("trainable", "random", "verdict"),
    [
        (0.02, 0.4, Verdict.REPLICATED),
        (0.02, 0.03, Verdict.TRIVIAL),
        (0.045, 0.4, Verdict.PARTIAL),  # the interval goes further than 0.05
        (0.2, 0.4, Verdict.FAILED),
        (0.5, 0.4, Verdict.FAILED),
    ],
)
def test_freezing(trainable: float, random: float, verdict: Verdict) -> None:
    found = embedding_freeze({"stress_embeddings": embeddings(trainable, random)})
    assert decide(found) == verdict
    assert found.measured == pytest.approx(trainable)
    assert found.null == pytest.approx(random)
    # The largest difference is negative: its size has the interval with its ends exchanged.
    assert found.ci == pytest.approx((trainable - 0.02, trainable + 0.01))
    assert "sigma ratio" in found.reason and "0.97" in found.reason


def test_freezing_without_its_conditions() -> None:
    table = embeddings(0.02, 0.4)
    for condition in ("trainable", "random_weights"):
        with pytest.raises(MissingRowsError, match=condition):
            embedding_freeze({"stress_embeddings": table[table["condition"] != condition]})


def axes(
    ranks: tuple[float, ...], ratio: tuple[float, float], shuffled: float, learnt: float = 0.52
) -> pd.DataFrame:
    rows: list[Row] = []
    for count, rank in zip((1, 2, 4), ranks, strict=True):
        rows.append((f"axes_{count}", "measured", "effective_rank", rank, rank, rank))
    name = "ratio:effective_rank"
    rows.append(("axes_4", "measured", name, ranks[2] / ranks[0], *ratio))
    rows.append(("axes_4", "measured", "accuracy:brevity", 0.55, learnt, 0.6))
    rows.append(("axes_4", "measured", "accuracy:sentiment", 0.7, 0.6, 0.8))
    rows.append(("axes_4_shuffled", "control", name, shuffled, shuffled - 0.1, shuffled + 0.1))
    rows.append(("axes_4_shuffled", "control", "effective_rank", 1.0, 0.9, 1.1))
    return planted(*rows)


@pytest.mark.parametrize(
    ("ranks", "ratio", "shuffled", "verdict"),
    [
        ((10, 15, 20), (1.8, 2.2), 1.0, Verdict.REPLICATED),
        ((10, 15, 20), (1.8, 2.2), 1.5, Verdict.REPLICATED),
        ((10, 15, 20), (1.8, 2.2), 1.75, Verdict.TRIVIAL),
        ((10, 9, 20), (1.8, 2.2), 1.0, Verdict.PARTIAL),
        ((10, 11, 12), (0.9, 1.4), 1.0, Verdict.FAILED),
        ((10, 9, 20), (1.8, 2.2), 3.0, Verdict.FAILED),
    ],
)
def test_rank(
    ranks: tuple[float, ...], ratio: tuple[float, float], shuffled: float, verdict: Verdict
) -> None:
    found = rank_of_preferences({"stress_heterogeneous": axes(ranks, ratio, shuffled)})
    assert decide(found) == verdict
    assert found.measured == pytest.approx(ranks[2] / ranks[0])
    assert found.null == shuffled
    assert "10.0 (k = 1)" in found.reason and "least brevity, accuracy 0.55" in found.reason


def test_axes_that_were_not_learnt_have_no_rank() -> None:
    table = axes((10, 15, 20), (1.8, 2.2), 1.0, learnt=0.49)
    found = rank_of_preferences({"stress_heterogeneous": table})
    assert decide(found) is Verdict.UNTESTABLE
    assert "1 of 2 axes were learnt with 4" in found.reason


def test_rank_of_one_number_of_axes() -> None:
    table = axes((10, 15, 20), (1.8, 2.2), 1.0)
    with pytest.raises(MissingRowsError, match=r"stress\.axes"):
        rank_of_preferences({"stress_heterogeneous": table[table["condition"] == "axes_1"]})
