"""Both views of a LoRA adapter: resuming, shared prefills and chosen tokens as on whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsteer_tl.errors import HookError
from dsteer_tl.lens_model import Edit, LensModel, pad
from dsteer_tl.pair import ModelPair
from tests.models import VOCABULARY, random_model, tiny_tokenizer
from tests.test_pair import make_adapter

GENERATOR = torch.Generator().manual_seed(3)
ROWS = tuple(
    torch.randint(2, VOCABULARY, (length,), generator=GENERATOR).tolist() for length in (9, 1, 5)
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelPair, ModelPair]:
    """An adapter on its base, and the same two models as whole checkpoints."""
    folder = tmp_path_factory.mktemp("adapter") / "policy"
    merged = make_adapter(random_model(), folder)
    tokenizer = tiny_tokenizer()
    return (
        ModelPair.load(random_model(), folder, tokenizer=tokenizer),
        ModelPair.load(random_model(), merged, tokenizer=tokenizer),
    )


def both(pairs: tuple[ModelPair, ModelPair], role: str) -> tuple[LensModel, LensModel]:
    return getattr(pairs[0], role), getattr(pairs[1], role)


@pytest.mark.parametrize("role", ["base", "policy"])
@pytest.mark.parametrize("site", ["resid_post.0", "resid_post.1"])
def test_resuming(pairs: tuple[ModelPair, ModelPair], role: str, site: str) -> None:
    batch, (view, whole) = pad(ROWS), both(pairs, role)
    with torch.inference_mode():
        with view.reading([site]) as kept:
            logits = view.forward(batch.ids, batch.mask)
        with view.resumed(site, kept[site]):
            assert torch.equal(view.forward(batch.ids, batch.mask), logits)
        assert torch.equal(view.forward(batch.ids, batch.mask), logits)
        expected = whole.forward(batch.ids, batch.mask)
    for row, ids in enumerate(ROWS):
        found = logits[row, : len(ids)]
        torch.testing.assert_close(found, expected[row, : len(ids)], rtol=0, atol=3e-5)


def test_the_blocks_above_are_those_of_the_view(pairs: tuple[ModelPair, ModelPair]) -> None:
    """One residual of the base, continued by each model's own last block."""
    batch, (base, policy) = pad(ROWS), (pairs[0].base, pairs[0].policy)
    with torch.inference_mode():
        with base.reading(["resid_post.0"]) as kept:
            base.forward(batch.ids, batch.mask)
        found = []
        for lens in (base, policy, pairs[1].policy):
            with lens.resumed("resid_post.0", kept["resid_post.0"]):
                found.append(lens.forward(batch.ids, batch.mask))
    real = batch.mask.bool()
    assert (found[0] - found[1])[real].abs().max() > 0.05
    torch.testing.assert_close(found[1][real], found[2][real], rtol=0, atol=3e-5)


@pytest.mark.parametrize("role", ["base", "policy"])
def test_shared_prefills_and_chosen_tokens(pairs: tuple[ModelPair, ModelPair], role: str) -> None:
    batch = pad(ROWS, side="left")
    ids, mask = batch.ids.repeat_interleave(2, dim=0), batch.mask.repeat_interleave(2, dim=0)
    offsets = torch.randn(len(ids), 1, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for lens in both(pairs, role):
        shared = lens.prefill(batch.ids, batch.mask, 2)
        assert shared.cache is not None
        for prefill in (shared, None):
            seen: list[Tensor] = []

            def choose(logits: Tensor, step: int, seen: list[Tensor] = seen) -> Tensor:
                assert step == len(seen)
                seen.append(logits.clone())
                return logits[:, 2:].argmax(dim=-1) + 2  # no end of sequence

            with lens.hooks([Edit("h", lambda x: x + 4 * offsets)]):
                tokens = lens.generate(ids, mask, max_new_tokens=4, choose=choose, prefill=prefill)
            found.append((tokens, torch.stack(seen)))
    for tokens, logits in found[1:]:
        assert torch.equal(tokens, found[0][0])
        torch.testing.assert_close(logits, found[0][1], rtol=0, atol=1e-4)
    assert not torch.equal(found[0][0][0], found[0][0][1])


def test_value_vectors_of_an_adapter_that_is_not_merged(tmp_path: Path) -> None:
    """Its low-rank part is no row of W_out: refused, where the base alone is not."""
    make_adapter(random_model(), tmp_path / "mlp", target_modules=["down_proj"])
    pair = ModelPair.load(random_model(), tmp_path / "mlp", tokenizer=tiny_tokenizer())
    pair.base.check_value_vectors()
    with pytest.raises(HookError, match="adapter is not merged"):
        pair.policy.check_value_vectors()
    make_adapter(random_model(), tmp_path / "attention", target_modules=["q_proj"])
    pair = ModelPair.load(random_model(), tmp_path / "attention", tokenizer=tiny_tokenizer())
    pair.policy.check_value_vectors()
