"""Passes without what nobody asked for: wrappers in blocks, upper blocks, unembedded rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from dsteer_tl.errors import HookError
from dsteer_tl.lens_model import Edit, Gather, LensModel, load_lens_model, pad
from dsteer_tl.lens_model.bridge import BridgeLens
from dsteer_tl.sites import FINAL, resid_post
from tests.lens_model.cases import Case
from tests.models import LAYERS, VOCABULARY, random_model

GENERATOR = torch.Generator().manual_seed(5)
ROWS = tuple(
    torch.randint(2, VOCABULARY, (length,), generator=GENERATOR).tolist() for length in (8, 3, 6)
)
BATCH = pad(ROWS)
CHOSEN = Gather(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([7, 2, 2, 0, 5]))


def shifted(lens: LensModel, site: str) -> Edit:
    added = torch.randn(lens.d_model, generator=torch.Generator().manual_seed(1))
    return Edit(site, lambda x: x + added.to(x))


@pytest.mark.parametrize("site", ["", resid_post(0), FINAL])
def test_logits_at_chosen_positions(case: Case, site: str) -> None:
    """Those of the whole pass, under an edit too."""
    lens = case.lens
    with torch.inference_mode(), lens.hooks([shifted(lens, site)] if site else []):
        whole = lens.forward(BATCH.ids, BATCH.mask)[CHOSEN.rows, CHOSEN.positions]
        found = lens.logits_at(BATCH.ids, BATCH.mask, CHOSEN)
        again = lens.forward(BATCH.ids, BATCH.mask)[CHOSEN.rows, CHOSEN.positions]
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(whole, again)


def test_a_zero_edit_leaves_chosen_logits_bitwise(case: Case) -> None:
    lens = case.lens
    with torch.inference_mode():
        plain = lens.logits_at(BATCH.ids, BATCH.mask, CHOSEN)
        with lens.hooks([Edit(site, lambda x: x + 0 * x) for site in lens.sites]):
            found = lens.logits_at(BATCH.ids, BATCH.mask, CHOSEN)
    assert torch.equal(found, plain)


@contextmanager
def counted_stages(lens: LensModel) -> Iterator[list[int]]:
    """Numbers of the blocks and the final norm that run."""
    ran: list[int] = []

    def count(number: int) -> object:
        return lambda *_: ran.append(number)

    handles = [
        stage.register_forward_hook(count(number))  # type: ignore[arg-type]
        for number, stage in enumerate(lens._stages)
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def test_capture_ends_after_the_last_layer_that_is_read(case: Case) -> None:
    lens = case.lens
    whole = lens.capture(BATCH.ids, BATCH.mask, lens.sites, CHOSEN)
    with counted_stages(lens) as ran:
        found = lens.capture(BATCH.ids, BATCH.mask, [resid_post(0)], CHOSEN)
    assert ran == [0]
    assert torch.equal(found["resid_post.0"], whole["resid_post.0"])
    with counted_stages(lens) as ran:
        lens.capture(BATCH.ids, BATCH.mask, [FINAL], CHOSEN)
    assert ran == list(range(LAYERS + 1))
    # Nothing is left behind that would end the next pass.
    again = lens.capture(BATCH.ids, BATCH.mask, lens.sites, CHOSEN)
    assert all(torch.equal(again[site], whole[site]) for site in lens.sites)


def inner_modules(lens: BridgeLens) -> list[torch.nn.Module]:
    return [part for part, _ in lens._direct._wrapped]


def only_bridge(case: Case) -> BridgeLens:
    if not isinstance(case.lens, BridgeLens):
        pytest.skip("HookedTransformer has no wrappers to pass by")
    return case.lens


def test_blocks_run_directly_unless_something_inside_is_hooked(case: Case) -> None:
    lens = only_bridge(case)
    direct = lens.forward(BATCH.ids, BATCH.mask)
    with lens._direct.running():
        assert not lens._direct.hooked
        assert all("forward" in part.__dict__ for part in inner_modules(lens))
    assert not any("forward" in part.__dict__ for part in inner_modules(lens))

    seen: list[Tensor] = []
    name = "blocks.1.attn.hook_out"
    assert name in lens.hook_names()
    # Past this library, as a user of TransformerLens would.
    with lens.bridge.hooks(fwd_hooks=[(name, lambda x, hook: seen.append(x))]):  # noqa: ARG005
        assert lens._direct.hooked
        wrapped = lens.forward(BATCH.ids, BATCH.mask)
    assert len(seen) == 1
    real = BATCH.mask.bool()
    torch.testing.assert_close(direct[real], wrapped[real], rtol=2e-4, atol=2e-4)


def test_no_trace_is_left_after_an_error(case: Case) -> None:
    lens = only_bridge(case)

    def fail(x: Tensor) -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError), lens.hooks([Edit(resid_post(0), fail)]):
        lens.forward(BATCH.ids, BATCH.mask)
    assert not any("forward" in part.__dict__ for part in inner_modules(lens))


def test_the_stream_is_read_in_direct_blocks_without_falling_back(case: Case) -> None:
    lens = only_bridge(case)
    with lens.reading(lens.sites):
        assert not lens._direct.hooked
    with lens.reading(["resid_pre.1"]):
        assert not lens._direct.hooked


def test_float64_is_refused_where_its_attention_would_be_nan() -> None:
    lens = load_lens_model(random_model("llama").double())
    left = pad(ROWS, side="left")
    lens.generate(left.ids, left.mask, max_new_tokens=2)
    with lens.hooks([shifted(lens, "attn_out.0")]):
        lens.forward(BATCH.ids, BATCH.mask)
        with pytest.raises(HookError, match=r"float64.*left-padded.*load it in float32"):
            lens.generate(left.ids, left.mask, max_new_tokens=2)
