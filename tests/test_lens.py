from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dsteer_tl import lens
from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens import (
    lens_logits,
    logit_change,
    normed,
    projections_by_site,
    promoted_and_suppressed,
)
from dsteer_tl.lens_model import load_lens_model
from tests.models import VOCABULARY, random_model
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


class Recorded(torch.Tensor):
    """Notes how many numbers were turned to float64 at a time."""

    sizes: ClassVar[list[int]] = []

    def double(self) -> torch.Tensor:
        Recorded.sizes.append(self.numel())
        return super().double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_change_of_logits_never_holds_all_of_a_large_unembedding(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    W_U = torch.randn(24, 1001, generator=generator).to(dtype)
    vector = np.random.default_rng(0).standard_normal(24)
    whole = 0.5 * vector @ W_U.double().numpy()
    monkeypatch.setattr(lens, "_BLOCK_WEIGHTS", 24 * 90 + 7)
    monkeypatch.setattr(Recorded, "sizes", [])
    model: Any = SimpleNamespace(
        W_U=W_U.as_subclass(Recorded), readout=SimpleNamespace(scale=0.5), d_vocab=1001
    )
    found = logit_change(model, vector)
    expected = whole - whole.mean()
    # Relative to each column's terms: a sum that cancels has no digits of its own.
    terms = np.abs(vector) @ W_U.double().abs().numpy()
    assert found.dtype == np.float64
    assert (np.abs(found - expected) <= 1e-12 * terms).all()
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
    assert sum(Recorded.sizes) == 24 * 1001
    assert max(Recorded.sizes) == 24 * 90
    monkeypatch.setattr(lens, "_BLOCK_WEIGHTS", 1)
    assert logit_change(model, vector) == pytest.approx(expected, abs=1e-12)


def test_columns_that_pad_the_unembedding_are_neither_promoted_nor_suppressed() -> None:
    pair = tiny_pair()
    tokens = len(pair.tokenizer)
    assert tokens + 4 == VOCABULARY  # the tokenizer names 156 of 160
    plain = random_model(tie_word_embeddings=False)
    head: Any = plain.get_output_embeddings()
    vector = np.random.default_rng(0).standard_normal(pair.base.d_model)
    expected = promoted_and_suppressed(
        load_lens_model(plain, self_check=False), pair.tokenizer, vector, 9
    )
    with torch.no_grad():  # the extremes of all, and as large both ways, so that no mean moves
        pads = torch.from_numpy(np.outer([40.0, 30.0, -30.0, -40.0], vector))
        head.weight[tokens:] = pads.to(head.weight.dtype)
    model = load_lens_model(plain, self_check=False)
    change = logit_change(model, vector)
    assert np.argsort(change)[[0, 1, -2, -1]].tolist() == [159, 158, 157, 156]
    found = promoted_and_suppressed(model, pair.tokenizer, vector, 9)
    assert found["token_id"].tolist() == expected["token_id"].tolist()
    assert found["value"].max() < change[tokens]
    assert found["value"].tolist() == change[found["token_id"].to_numpy()].tolist()
    every = promoted_and_suppressed(model, pair.tokenizer, vector, VOCABULARY)
    assert sorted(every["token_id"]) == sorted([*range(tokens)] * 2)


def test_logits_of_half_precision_models_are_read_in_float32() -> None:
    model = load_lens_model(random_model().to(torch.bfloat16), self_check=False)
    rows = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(0))
    (found,) = lens_logits(model, rows)
    h = model.final_norm(rows.to(torch.bfloat16)).float()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, h @ model.W_U.float() + model.b_U.float())


def test_promoted_and_suppressed_tokens_are_the_extremes() -> None:
    pair = tiny_pair()
    vector = np.random.default_rng(0).standard_normal(pair.base.d_model)
    table = promoted_and_suppressed(pair.base, pair.tokenizer, vector, count=5)
    change = logit_change(pair.base, vector)
    promoted, suppressed = (table[table["effect"] == e] for e in ("promoted", "suppressed"))
    assert list(promoted["rank"]) == list(suppressed["rank"]) == [1, 2, 3, 4, 5]
    named = change[: len(pair.tokenizer)]
    assert list(promoted["value"]) == sorted(named, reverse=True)[:5]
    assert list(suppressed["value"]) == sorted(named)[:5]
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
