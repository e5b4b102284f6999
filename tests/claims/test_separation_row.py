"""Row 19 in tables in which the truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dsteer_tl.claims import Measurement, Verdict, decide
from dsteer_tl.claims.measured_separation import alignment_quality
from dsteer_tl.claims.selection import MissingRowsError
from dsteer_tl.measurements.separation_table import separation_rows
from dsteer_tl.measurements.settings import MeasurementConfiguration

PAIRS = 60


def planted(
    seed: int = 0, draws: int = 100, d: int = 8, noise: float = 0.3, **apart: float
) -> dict[str, pd.DataFrame]:
    """Chosen states stand ``apart`` from rejected ones, by model; models share most noise."""
    rng = np.random.default_rng(seed)
    shared = np.repeat(rng.standard_normal((PAIRS, d))[None], 2, axis=0).reshape(-1, d)
    shared = shared + rng.standard_normal((2 * PAIRS, d))
    labels = np.repeat([1.0, 0.0], PAIRS)[:, None]
    states = {
        name: shared + noise * rng.standard_normal(shared.shape) + distance * labels
        for name, distance in apart.items()
    }
    lengths = rng.integers(5, 30, size=2 * PAIRS).astype(float)
    rows = separation_rows(
        "h", states, lengths, np.arange(PAIRS), MeasurementConfiguration(draws=draws, seed=seed)
    )
    return {"separation": pd.DataFrame(rows)}


def test_a_policy_that_separates_better_replicates():
    found = alignment_quality(planted(base=0.5, policy=1.0, random_weights=0.5))
    assert decide(found) is Verdict.REPLICATED
    assert found.ci is not None and found.ci[0] > 1
    assert found.ci[0] < found.measured < found.ci[1]
    assert found.null == pytest.approx(1, abs=0.2) and found.null_name == "random weights"
    assert "CHI·XB = (n − 2)/4" in found.reason and "without the effect of length" in found.reason
    assert (found.site, found.n) == ("h", 2 * PAIRS)


def test_it_is_trivial_where_random_weights_do_it_too():
    found = alignment_quality(planted(base=0.5, policy=1.0, random_weights=1.0))
    assert decide(found) is Verdict.TRIVIAL


def test_it_fails_where_the_policy_separates_no_better():
    for policy in (0.8, 0.4):
        assert decide(alignment_quality(planted(base=0.8, policy=policy))) is Verdict.FAILED


def test_without_a_control_model_exchanged_labels_are_the_null():
    tables = planted(base=0.5, policy=1.0)
    found = alignment_quality(tables)
    rows = tables["separation"].set_index(["model", "index"])
    assert found.null == rows.loc[("change", "chi_ratio"), "null_high"]
    assert found.null_name == "95 % of exchanged labels"
    assert decide(found) is Verdict.REPLICATED


def test_a_table_without_the_change_is_no_measurement():
    tables = planted(base=0.5, policy=1.0)
    kept = tables["separation"].query("model != 'change'")
    with pytest.raises(MissingRowsError):
        alignment_quality({"separation": kept})


def replicated_share(**apart: float) -> float:
    found: list[Measurement] = [
        alignment_quality(planted(seed, draws=40, noise=0.5, **apart)) for seed in range(60)
    ]
    return float(np.mean([decide(each) is Verdict.REPLICATED for each in found]))


def test_labels_that_say_nothing_rarely_replicate():
    assert replicated_share(base=0.0, policy=0.0) <= 0.05


def test_two_models_that_separate_alike_rarely_replicate():
    # One side of a 95 % interval; well above it by chance in 60 runs.
    assert replicated_share(base=0.6, policy=0.6) <= 0.08
