"""Tables from moments against those from rows, and nulls against what they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dsteer_tl.controls import gaussian_matched
from dsteer_tl.cosines import cosine, cosines_to_mean
from dsteer_tl.errors import ShapeError
from dsteer_tl.gram_accumulator import GramAccumulator
from dsteer_tl.measurements.moment_tables import gaussian_twin, moment_tables
from dsteer_tl.spectra import spectrum
from dsteer_tl.streaming.moments import folds_and_signs
from dsteer_tl.streaming.shift_moments import ShiftMoments

D = 12


def planted(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Shifts along one direction, with a second one and noise."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((n, D)) * np.linspace(1, 0.2, D) + 2 * np.eye(D)[0]
    return rows, np.arange(n)


def moments_of(rows: np.ndarray, prompts: np.ndarray) -> ShiftMoments:
    found = ShiftMoments.empty(D, sites=["resid_post.0", "h"], kinds=["last_prompt"], hashes={})
    found.at("h", "last_prompt").update(rows, prompts)
    return found


def test_statistics_are_those_of_the_rows() -> None:
    rows, prompts = planted()
    tables = moment_tables(moments_of(rows, prompts), seed=0)
    (row,) = tables.spectra.to_dict("records")  # the other place has no rows
    raw, centred = spectrum(rows), spectrum(rows, centred=True)
    mean = rows.mean(axis=0)
    expected = {
        "n": len(rows),
        "mean_norm": np.linalg.norm(rows, axis=1).mean(),
        "v_norm": np.linalg.norm(mean),
        "cos_mean": cosines_to_mean(rows).mean(),
        "sigma_ratio": raw.sigma_ratio,
        "sigma_ratio_centred": centred.sigma_ratio,
        "u1_v_cos": cosine(raw.directions[0], mean),
        "u1_v_cos_centred": abs(cosine(centred.directions[0], mean)),
        "pc1_share_centred": centred.share[0],
        "effective_rank": raw.effective_rank,
        "effective_rank_centred": centred.effective_rank,
        "entropy": raw.entropy,
        "entropy_centred": centred.entropy,
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-9), name
    assert set(row) == {"site", "position_kind", "cos_held_out", *expected}
    assert row["cos_held_out"] == pytest.approx(row["cos_mean"], abs=0.05)
    values = tables.singular_values.set_index(["matrix", "index"])["singular_value"]
    np.testing.assert_allclose(values["shift"], raw.singular_values, atol=1e-7)
    np.testing.assert_allclose(values["shift_centred"], centred.singular_values, atol=1e-7)
    assert set(values.index.get_level_values(0)) == {
        "shift",
        "shift_centred",
        "gaussian_matched",
        "gaussian_matched_centred",
    }


def test_every_statistic_stands_beside_a_null() -> None:
    rows, prompts = planted()
    moments = moments_of(rows, prompts)
    tables = moment_tables(moments, seed=0)
    statistics = set(tables.spectra) - {"site", "position_kind", "n", "mean_norm"}
    assert set(tables.nulls["statistic"]) == statistics
    nulls = tables.nulls.set_index(["statistic", "null"])
    flipped = rows * folds_and_signs(prompts)[1][:, None]
    sign_flip = nulls.xs("sign_flip", level="null")["value"]
    assert sign_flip["cos_mean"] == pytest.approx(cosines_to_mean(flipped).mean())
    assert sign_flip["v_norm"] == pytest.approx(np.linalg.norm(flipped.mean(axis=0)))
    assert abs(sign_flip["cos_held_out"]) < 0.2 < tables.spectra["cos_held_out"].item()
    random = nulls.loc[("cos_mean", "random_direction")]
    directions = np.random.default_rng(1).standard_normal((4000, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    drawn = directions @ moments.at("h", "last_prompt").mean_direction
    assert random["value"] == 0 and random["ci_low"] == -random["ci_high"]
    assert np.mean(np.abs(drawn) < random["ci_high"]) == pytest.approx(0.95, abs=0.03)
    again = moment_tables(moments, seed=0).nulls
    np.testing.assert_array_equal(again["value"], tables.nulls["value"])
    assert (moment_tables(moments, seed=1).nulls["value"] != again["value"]).any()


@pytest.mark.parametrize("n", [8, D, D + 1, 40])
def test_a_twin_is_distributed_as_matched_gaussian_rows(n: int) -> None:
    """Both drawn 200 times: traces, largest eigenvalues and means by Kolmogorov and Smirnov."""
    rows = planted(n)[0]
    gram = GramAccumulator(D)
    gram.update(rows)
    drawn: dict[str, list[list[float]]] = {"twin": [], "rows": []}
    for seed in range(200):
        other = GramAccumulator(D)
        other.update(gaussian_matched(rows, 10_000 + seed))
        for name, found in (("twin", gaussian_twin(gram, seed)), ("rows", other)):
            raw, centred = found.spectrum(keep=0), found.spectrum(centred=True, keep=0)
            assert found.count == n
            drawn[name].append(
                [
                    found.scatter_trace,
                    raw.sigma_ratio,
                    centred.singular_values[0],
                    centred.entropy,
                    float(np.linalg.norm(found.mean)),
                ]
            )
    twins, expected = np.array(drawn["twin"]), np.array(drawn["rows"])
    for column in range(twins.shape[1]):
        assert stats.ks_2samp(twins[:, column], expected[:, column]).pvalue > 1e-4, column


def test_too_few_rows() -> None:
    with pytest.raises(ShapeError, match="no place with two rows"):
        moment_tables(moments_of(np.ones((1, D)), np.zeros(1, dtype=int)), seed=0)
    with pytest.raises(ShapeError, match="found 0 rows, expected at least 2"):
        gaussian_twin(GramAccumulator(D), 0)


def test_equal_models_have_no_directions() -> None:
    tables = moment_tables(moments_of(np.zeros((5, D)), np.arange(5)), seed=0)
    (row,) = tables.spectra.to_dict("records")
    assert row["mean_norm"] == row["v_norm"] == 0
    assert math.isnan(row["cos_mean"]) and math.isnan(row["entropy"])
