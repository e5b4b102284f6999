"""Separation of two classes in closed form, by brute force, and on a plain transformers model."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import calinski_harabasz_score

from dsteer_tl.controls import bootstrap
from dsteer_tl.errors import ShapeError
from dsteer_tl.measurements.separation_table import separation_table
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.preferences import EncodedPair
from dsteer_tl.separation import (
    calinski_harabasz,
    chi_difference,
    chi_interval,
    chi_ratio,
    exceedance,
    exchanged_chi,
    identity_error,
    pair_sums,
    resampled_chi,
    without_length,
    xie_beni,
)
from tests.models import CONTEXT, policy_of, random_model
from tests.tiny_pairs import encoded_pairs, tiny_pair

QUICK = MeasurementConfiguration(draws=20, token_budget=200)
seeds = st.integers(0, 2**32 - 1)


def classes(seed: int, pairs: int = 12, d: int = 5, apart: float = 0.5):
    """Two responses of one prompt have something in common."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((pairs, d))
    chosen, rejected = (shared + rng.standard_normal((pairs, d)) for _ in range(2))
    return chosen + apart, rejected


def sklearn_chi(chosen: np.ndarray, rejected: np.ndarray) -> float:
    labels = [0] * len(chosen) + [1] * len(rejected)
    return float(calinski_harabasz_score(np.concatenate([chosen, rejected]), labels))


def test_both_indices_in_closed_form():
    chosen, rejected = np.array([[0.0, 1], [0, -1]]), np.array([[4.0, 1], [4, -1]])
    # n = 4, W = 4, D² = 16.
    assert xie_beni(chosen, rejected) == pytest.approx(4 / (4 * 16))
    assert calinski_harabasz(chosen, rejected) == pytest.approx((4 - 2) * (4 / 4 * 16) / 4)
    assert xie_beni(chosen, chosen) == float("inf")


@settings(deadline=None, max_examples=40)
@given(seed=seeds, pairs=st.integers(2, 30), d=st.integers(1, 12), apart=st.floats(0.0, 50.0))
def test_two_balanced_classes_have_one_index(seed, pairs, d, apart):
    chosen, rejected = classes(seed, pairs, d, apart)
    chi, xb = calinski_harabasz(chosen, rejected), xie_beni(chosen, rejected)
    assert chi * xb == pytest.approx((2 * pairs - 2) / 4, rel=1e-9)
    assert identity_error(chi, xb, 2 * pairs) < 1e-9
    assert identity_error(2 * chi, xb, 2 * pairs) == pytest.approx(1)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, repeats=st.integers(1, 3))
def test_all_prompts_once_give_the_index(seed, repeats):
    chosen, rejected = classes(seed)
    sums = pair_sums(chosen + 100, rejected + 100, np.arange(12) // repeats)
    found = resampled_chi(sums, np.arange(len(sums.pairs)))
    assert found == pytest.approx(sklearn_chi(chosen, rejected), rel=1e-8)


def test_some_prompts_give_the_index_of_their_pairs():
    chosen, rejected = classes(0)
    sums = pair_sums(chosen, rejected, np.arange(12) // 2)
    rows = np.array([0, 1, 4, 5, 10, 11])
    found = resampled_chi(sums, np.array([0, 2, 5]))
    assert found == pytest.approx(sklearn_chi(chosen[rows], rejected[rows]))


def test_exchanges_are_those_of_whole_prompts():
    chosen, rejected = classes(1, pairs=6)
    prompts = np.array([0, 0, 1, 2, 3, 3])
    possible = []
    for swaps in product([False, True], repeat=4):
        swap = np.array(swaps)[prompts][:, None]
        first = np.where(swap, rejected, chosen)
        possible.append(sklearn_chi(first, np.where(swap, chosen, rejected)))
    found = exchanged_chi(pair_sums(chosen, rejected, prompts), 200, seed=0)
    distance = np.abs(found[:, None] - np.array(possible)).min(axis=1)
    assert distance.max() < 1e-9
    assert len(np.unique(found.round(9))) == len(np.unique(np.round(possible, 9)))


def test_resamples_do_not_look_further_apart_than_the_data():
    chosen, rejected = classes(2, pairs=60, d=20, apart=0.2)
    sums = pair_sums(chosen, rejected, np.arange(60))
    value = sklearn_chi(chosen, rejected)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(60, size=60) for _ in range(400)]
    mine = np.mean([resampled_chi(sums, rows) for rows in drawn])
    naive = np.mean([sklearn_chi(chosen[rows], rejected[rows]) for rows in drawn])
    assert mine == pytest.approx(value, rel=0.1)
    assert naive > 1.3 * value


def test_intervals_are_those_of_the_shared_bootstrap():
    base, policy = (pair_sums(*classes(seed), np.arange(12)) for seed in (0, 3))
    everything = np.arange(12)
    expected = bootstrap(
        lambda rows: resampled_chi(policy, rows) / resampled_chi(base, rows),
        everything,
        draws=50,
        seed=4,
    )
    assert chi_ratio(base, policy, 50, 4) == expected
    same = chi_ratio(base, base, 50, 4)
    assert (same.value, same.low, same.high) == (1, 1, 1)
    same = chi_difference(base, base, 50, 4)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    found = chi_interval(base, 50, 4)
    assert found.low < found.value < found.high


def test_length_alone_is_taken_away_and_nothing_else():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, size=(2, 200)).astype(float)
    lengths[0] += 10
    direction, other = np.eye(4)[0], np.eye(4)[1]
    noise = rng.standard_normal((2, 200, 4))
    by_length = lengths[..., None] * direction + noise
    assert sklearn_chi(*by_length) > 50
    assert sklearn_chi(*without_length(*by_length, *lengths)) < 4
    # A difference that has nothing to do with length stays.
    apart = noise + np.array([1.0, 0.0])[:, None, None] * other
    equal = np.tile(rng.integers(5, 40, size=200), (2, 1)).astype(float)
    assert sklearn_chi(*without_length(*apart, *equal)) == pytest.approx(
        sklearn_chi(*apart), rel=0.05
    )
    constant = np.full(200, 7.0)
    left = without_length(*apart, constant, constant)
    assert np.allclose(left[0] - left[1], apart[0] - apart[1])


def test_a_p_value_counts_the_value_itself():
    null = np.arange(99.0)
    assert exceedance(1000.0, null) == pytest.approx(0.01)
    assert exceedance(-1.0, null) == 1.0
    assert exceedance(98.0, null) == pytest.approx(0.02)


def test_refusals():
    chosen, rejected = classes(0)
    with pytest.raises(ShapeError, match="as many of each"):
        xie_beni(chosen, rejected[:-1])
    with pytest.raises(ShapeError, match="at least 2 prompts"):
        pair_sums(chosen, rejected, np.zeros(12))
    with pytest.raises(ShapeError, match="one a response"):
        without_length(chosen, rejected, np.ones(11), np.ones(12))
    with pytest.raises(ShapeError, match="0 draws"):
        exchanged_chi(pair_sums(chosen, rejected, np.arange(12)), 0, 0)
    with pytest.raises(ShapeError, match="same pairs"):
        chi_ratio(
            pair_sums(chosen, rejected, np.arange(12)),
            pair_sums(chosen, rejected, np.arange(12) // 2),
            5,
            0,
        )


def reference(model, site: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean states of plain transformers in float64, one sequence at a time."""
    pooled = []
    for side in ("chosen_ids", "rejected_ids"):
        rows = []
        for item in encoded_pairs():
            ids = torch.tensor([[*item.prompt_ids, *getattr(item, side)]])
            with torch.no_grad():
                states = model.double()(ids, output_hidden_states=True).hidden_states[site]
            rows.append(states[0, len(item.prompt_ids) :].mean(dim=0).numpy())
        pooled.append(np.array(rows))
    return pooled[0], pooled[1]


def test_the_table_holds_the_means_of_plain_transformers():
    table = separation_table(tiny_pair(), encoded_pairs(), QUICK, progress=False)
    values = table.set_index(["model", "site", "index"])["value"]
    models = {"base": random_model(), "policy": policy_of(random_model(), scale=0.05)}
    # HuggingFace's last hidden state is behind the final norm: h.
    for name, model in models.items():
        for site, place in (("resid_post.0", 1), ("h", -1)):
            chosen, rejected = reference(model, place)
            assert values[name, site, "chi"] == pytest.approx(
                sklearn_chi(chosen, rejected), rel=1e-4
            )
            assert values[name, site, "xb"] == pytest.approx(xie_beni(chosen, rejected), rel=1e-4)
    ratio = values["policy", "h", "chi"] / values["base", "h", "chi"]
    assert values["change", "h", "chi_ratio"] == pytest.approx(ratio)
    assert list(dict.fromkeys(table["site"])) == ["resid_post.0", "resid_post.1", "h"]
    assert (table["n"] == 2 * len(encoded_pairs())).all()
    assert table["identity_error"].max() < 1e-9
    ordered = table[["low", "value", "high"]].to_numpy()
    assert (np.diff(ordered, axis=1) >= -1e-9).all()


def test_two_runs_give_one_table_whatever_the_batches():
    found = [
        separation_table(
            tiny_pair(),
            encoded_pairs(),
            replace(QUICK, token_budget=budget),
            controls={"same": tiny_pair().base},
            progress=False,
        )
        for budget in (1, 200, 200)
    ]
    assert found[1].equals(found[2])
    numbers = found[0].select_dtypes("number").columns.drop("identity_error")
    assert np.allclose(found[0][numbers], found[1][numbers], rtol=1e-3, atol=1e-4)
    same = found[1].set_index(["model", "site", "index"])["value"]
    assert same["same_change", "h", "chi_ratio"] == 1


def test_pairs_that_cannot_be_pooled_are_left_out():
    kept = encoded_pairs()
    long = EncodedPair((0, *([5] * CONTEXT)), (6,), (7,))
    empty = EncodedPair(kept[0].prompt_ids, (), (7,))
    first = separation_table(tiny_pair(), [*kept, long, empty], QUICK, progress=False)
    assert first.equals(separation_table(tiny_pair(), kept, QUICK, progress=False))
    with pytest.raises(ShapeError, match="0 of 2 pairs"):
        separation_table(tiny_pair(), [long, empty], QUICK, progress=False)
