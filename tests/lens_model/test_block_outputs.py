"""What attention and MLP add to the stream: written at, and split over heads."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsteer_tl.errors import HookError
from dsteer_tl.lens_model import Edit, Gather, load_lens_model, pad
from dsteer_tl.pair import ModelPair
from tests.lens_model.cases import Case
from tests.models import LAYERS, backbone_parts, random_model, tiny_tokenizer
from tests.test_pair import make_adapter

ROWS = ((5, 9, 33, 2, 77, 41), (8, 120, 3))
#: Module of a block whose output is added to the stream, where it is not the attention or MLP.
POST_NORMS = {
    ("gemma2", "attn_out"): "post_attention_layernorm",
    ("gemma2", "mlp_out"): "post_feedforward_layernorm",
    ("olmo2", "attn_out"): "post_attention_layernorm",
    ("olmo2", "mlp_out"): "post_feedforward_layernorm",
}


def plain_module(case: Case, kind: str, layer: int) -> Any:
    """The module of plain transformers whose output is added to the stream."""
    block = backbone_parts(case.plain)[0][layer]
    after = POST_NORMS.get((case.architecture, kind))
    if after is not None:
        return getattr(block, after)
    if kind == "mlp_out":
        return block.mlp
    return next(
        getattr(block, name) for name in ("self_attn", "attn", "attention") if hasattr(block, name)
    )


@contextlib.contextmanager
def added(module: Any, vector: Tensor) -> Iterator[None]:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + vector, *output[1:])
        return output + vector

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["attn_out", "mlp_out"])
@pytest.mark.parametrize("layer", range(LAYERS))
@torch.no_grad()
def test_what_is_written_is_added_to_the_stream(case: Case, kind: str, layer: int) -> None:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(layer))
    batch = pad(ROWS)
    plain = case.lens.forward(batch.ids, batch.mask)
    with case.lens.hooks([Edit(f"{kind}.{layer}", lambda x: x + vector)]):
        found = case.lens.forward(batch.ids, batch.mask)
    assert not torch.allclose(plain, found, atol=1e-2)
    for index, row in enumerate(ROWS):
        with added(plain_module(case, kind, layer), vector):
            expected = case.plain(input_ids=torch.tensor([row]), use_cache=False).logits[0]
        torch.testing.assert_close(found[index, : len(row)], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_replaced_outputs_make_the_stream(case: Case) -> None:
    """With both outputs of a block replaced, its stream is what enters plus what was written."""
    batch = pad(ROWS)
    sizes = (len(ROWS), batch.ids.shape[1], 32)
    attention = torch.randn(sizes, generator=torch.Generator().manual_seed(1))
    mlp = torch.randn(sizes, generator=torch.Generator().manual_seed(2))
    edits = [Edit("attn_out.0", lambda _: attention), Edit("mlp_out.0", lambda _: mlp)]
    with case.lens.hooks(edits), case.lens.reading(["resid_pre.0", "resid_post.0"]) as store:
        case.lens.forward(batch.ids, batch.mask)
    expected = store["resid_pre.0"] + attention + mlp
    torch.testing.assert_close(store["resid_post.0"], expected, atol=2e-5, rtol=1e-5)
    case.lens.check_block_outputs()


@torch.no_grad()
def test_heads_and_bias_are_what_attention_writes(case: Case) -> None:
    lens = case.lens
    if case.architecture in {"gemma2", "olmo2"}:
        with pytest.raises(HookError, match="norm follows it"):
            lens.check_attention_outputs()
        return
    lens.check_attention_outputs()
    batch = pad(ROWS)
    gather = Gather(torch.tensor([0, 1, 0]), torch.tensor([5, 2, 1]))
    for layer in range(LAYERS):
        weights = lens.attention_output(layer)
        assert weights.W_O.shape == (4, 8, 32) and weights.b_O.shape == (32,)
        kept = lens.capture(batch.ids, batch.mask, [f"attn_z.{layer}", f"attn_out.{layer}"], gather)
        z = kept[f"attn_z.{layer}"].unflatten(1, (4, 8))
        heads = torch.einsum("nhk,hkd->nhd", z, weights.W_O)
        torch.testing.assert_close(
            heads.sum(dim=1) + weights.b_O, kept[f"attn_out.{layer}"], atol=2e-5, rtol=1e-4
        )
    with pytest.raises(HookError, match=r"no attention in layer 2: it has 2 layers"):
        lens.attention_output(LAYERS)


@torch.no_grad()
def test_z_is_what_plain_transformers_projects(case: Case) -> None:
    module = next(
        getattr(block, name)
        for block in [backbone_parts(case.plain)[0][1]]
        for name in ("self_attn", "attn", "attention")
        if hasattr(block, name)
    )
    projection = next(
        getattr(module, name) for name in ("o_proj", "c_proj", "dense") if hasattr(module, name)
    )
    found: list[Tensor] = []
    handle = projection.register_forward_hook(lambda _m, i, _o: found.append(i[0]))
    case.plain(input_ids=torch.tensor([ROWS[0]]), use_cache=False)
    handle.remove()
    batch = pad(ROWS)
    gather = Gather(torch.zeros(6, dtype=torch.long), torch.arange(6))
    z = case.lens.capture(batch.ids, batch.mask, ["attn_z.1"], gather)["attn_z.1"]
    torch.testing.assert_close(z, found[0][0].flatten(1), atol=2e-5, rtol=1e-4)


def test_rows_are_reduced_inside_the_hook(case: Case) -> None:
    batch = pad(ROWS)
    gather = Gather(torch.tensor([0, 1]), torch.tensor([4, 2]))
    direction = torch.randn(32, 2, generator=torch.Generator().manual_seed(0)).double()
    places = ["attn_out.1", "resid_post.0"]
    whole = case.lens.capture(batch.ids, batch.mask, places, gather)
    found = case.lens.capture(
        batch.ids,
        batch.mask,
        places,
        gather,
        reduce={"attn_out.1": lambda x: x.double() @ direction},
    )
    assert found["attn_out.1"].dtype == torch.float64
    torch.testing.assert_close(found["attn_out.1"], whole["attn_out.1"].double() @ direction)
    assert torch.equal(found["resid_post.0"], whole["resid_post.0"])


def test_biases_of_the_output_projection() -> None:
    plain = random_model("llama", attention_bias=True)
    lens = load_lens_model(copy.deepcopy(plain))
    lens.check_attention_outputs()
    expected = backbone_parts(plain)[0][1].self_attn.o_proj.bias
    assert bool(expected.any())
    torch.testing.assert_close(lens.attention_output(1).b_O, expected)


def test_heads_of_an_adapter_that_is_not_merged(tmp_path: Path) -> None:
    """Its low-rank part is in no W_O: refused, where the base alone is not; writing still works."""
    make_adapter(random_model(), tmp_path / "policy", target_modules=["o_proj"])
    pair = ModelPair.load(random_model(), tmp_path / "policy", tokenizer=tiny_tokenizer())
    pair.base.check_attention_outputs()
    with pytest.raises(HookError, match="adapter is not merged"):
        pair.policy.check_attention_outputs()
    assert torch.equal(pair.base.attention_output(0).W_O, pair.policy.attention_output(0).W_O)
    batch, vector = pad(ROWS), torch.ones(32)
    with torch.no_grad():
        for lens in (pair.base, pair.policy):
            lens.check_block_outputs()
            plain = lens.forward(batch.ids, batch.mask)
            with (
                lens.hooks([Edit("attn_out.1", lambda x: x + vector)]),
                lens.reading(["resid_post.1", "attn_out.1"]) as store,
            ):
                steered = lens.forward(batch.ids, batch.mask)
            assert not torch.allclose(plain, steered, atol=1e-2)
            expected = lens.readout_at("resid_post.1")(store["resid_post.1"])
            torch.testing.assert_close(steered, expected, atol=1e-5, rtol=1e-4)


def test_a_block_that_scales_what_is_added_is_refused() -> None:
    """As in Granite where TransformerLens shows attention before the multiplier."""
    lens: Any = load_lens_model(random_model("llama"))
    lens.check_block_outputs()
    lens.bridge.blocks[1].attn.register_forward_hook(lambda _m, _i, o: (1.1 * o[0], *o[1:]))
    with pytest.raises(HookError, match=r"block 1 of .* does not add attn_out"):
        lens.check_block_outputs()
