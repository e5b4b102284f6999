from __future__ import annotations

import numpy as np
import pytest
import torch

from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens import logit_change, normed, projections_by_site, promoted_and_suppressed
from tests.tiny_pairs import probes, tiny_pair


@pytest.fixture(scope="module")
def shift_set() -> ShiftSet:
    return capture_shifts(tiny_pair(), probes(), configuration=CaptureConfiguration(progress=False))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_norm_turns_the_last_residual_into_h(architecture: str) -> None:
    pair = tiny_pair(architecture)
    found = capture_shifts(pair, probes(), configuration=CaptureConfiguration(progress=False))
    last, h = (found.residuals("base", site, "response") for site in ("resid_post.1", "h"))
    assert normed(pair.base, last) == pytest.approx(h, abs=1e-5)
    assert not np.allclose(last, h, atol=0.1)


def test_projections_are_inner_products_with_a_vector_of_each_row(shift_set: ShiftSet) -> None:
    model = tiny_pair().base
    n = shift_set.count("divergence")
    vectors = np.random.default_rng(0).standard_normal((n, model.d_model))
    found = projections_by_site(model, shift_set, "base", "divergence", vectors)
    assert tuple(found) == shift_set.sites
    h = shift_set.residuals("base", "h", "divergence").astype(float)
    assert found["h"] == pytest.approx((h * vectors).sum(1), abs=1e-9)
    assert found["resid_post.1"] == pytest.approx(found["h"], abs=1e-4)
    assert not np.allclose(found["resid_post.0"], found["h"], atol=0.1)


def test_one_vector_a_row_is_asked_for(shift_set: ShiftSet) -> None:
    with pytest.raises(ShapeError, match=r"3 vectors \(3, 32\) for 8 rows .*one vector a row"):
        projections_by_site(tiny_pair().base, shift_set, "base", "divergence", np.zeros((3, 32)))


@pytest.mark.parametrize("architecture", ["llama", "phi"])
def test_the_change_of_logits_is_that_of_the_model(architecture: str) -> None:
    model = tiny_pair(architecture).base
    h, v = (torch.randn(model.d_model, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    change = (model.readout(h + v) - model.readout(h)).detach().double().numpy()
    found = logit_change(model, v.numpy())
    assert found == pytest.approx(change - change.mean(), abs=1e-4)
    assert found.mean() == pytest.approx(0, abs=1e-12)


def test_promoted_and_suppressed_tokens_are_the_extremes() -> None:
    pair = tiny_pair()
    vector = np.random.default_rng(0).standard_normal(pair.base.d_model)
    table = promoted_and_suppressed(pair.base, pair.tokenizer, vector, count=5)
    change = logit_change(pair.base, vector)
    promoted, suppressed = (table[table["effect"] == e] for e in ("promoted", "suppressed"))
    assert list(promoted["rank"]) == list(suppressed["rank"]) == [1, 2, 3, 4, 5]
    assert list(promoted["value"]) == sorted(change, reverse=True)[:5]
    assert list(suppressed["value"]) == sorted(change)[:5]
    for row in table.itertuples():
        assert row.value == change[row.token_id]
        assert row.token == pair.tokenizer.decode([row.token_id])


def test_the_opposite_vector_swaps_the_two_lists() -> None:
    pair = tiny_pair()
    vector = np.random.default_rng(0).standard_normal(pair.base.d_model)
    forth, back = (
        promoted_and_suppressed(pair.base, pair.tokenizer, sign * vector).set_index("effect")
        for sign in (1, -1)
    )
    assert list(forth.loc["promoted", "token_id"]) == list(back.loc["suppressed", "token_id"])
