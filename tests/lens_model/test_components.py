"""Places inside blocks, on every backend and architecture, against plain transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dsteer_tl.errors import HookError
from dsteer_tl.lens_model import Edit, Gather, LensModel, load_lens_model, pad
from tests.lens_model.cases import Case
from tests.models import LAYERS, VOCABULARY, backbone_parts, random_model

ROWS = ((5, 9, 33, 2, 77, 41), (8, 120, 3))
#: A norm follows the MLP.
NORM_AFTER = {"gemma2", "olmo2"}
PARALLEL = {"neox", "phi"}


def plain_mlp(model: Any, layer: int) -> Any:
    return backbone_parts(model)[0][layer].mlp


def output_layer(mlp: Any) -> Any:
    """The module whose input is m."""
    for name in ("down_proj", "c_proj", "dense_4h_to_h", "fc2"):
        if hasattr(mlp, name):
            return getattr(mlp, name)
    raise AssertionError(f"unknown MLP {type(mlp).__name__}")


@torch.no_grad()
def plain_parts(model: Any, row: tuple[int, ...], layer: int) -> dict[str, Tensor]:
    """The MLP's input and output, m, and the block's input and output, by hooks on modules."""
    found: dict[str, Tensor] = {}
    mlp, block = plain_mlp(model, layer), backbone_parts(model)[0][layer]

    def first(value: Any) -> Tensor:
        return value[0] if isinstance(value, tuple) else value

    handles = [
        output_layer(mlp).register_forward_hook(lambda _m, i, _o: found.update(m=i[0])),
        mlp.register_forward_hook(lambda _m, _i, o: found.update(mlp=first(o))),
        block.register_forward_hook(lambda _m, _i, o: found.update(post=first(o))),
        block.register_forward_pre_hook(
            lambda _m, a, k: found.update(pre=a[0] if a else k["hidden_states"]), with_kwargs=True
        ),
    ]
    model(input_ids=torch.tensor([list(row)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: tensor[0] for name, tensor in found.items()}


def captured(lens: LensModel, places: list[str]) -> list[dict[str, Tensor]]:
    """Every place at every token, one dictionary a row of ROWS, from one padded batch."""
    batch = pad(ROWS)
    rows = torch.tensor([i for i, row in enumerate(ROWS) for _ in row])
    positions = torch.tensor([p for row in ROWS for p in range(len(row))])
    kept = lens.capture(batch.ids, batch.mask, places, Gather(rows, positions))
    return [{place: kept[place][rows == i] for place in places} for i in range(len(ROWS))]


def places_of(layer: int) -> list[str]:
    kinds = ("resid_pre", "resid_mid", "attn_out", "mlp_out", "mlp_post", "mlp_pre", "resid_post")
    return [f"{kind}.{layer}" for kind in kinds]


def test_places_are_what_plain_transformers_computes(case: Case) -> None:
    for layer in range(LAYERS):
        for row, kept in zip(ROWS, captured(case.lens, places_of(layer)), strict=True):
            plain = plain_parts(case.plain, row, layer)
            for place, name in (("mlp_post", "m"), ("resid_post", "post"), ("resid_pre", "pre")):
                torch.testing.assert_close(
                    kept[f"{place}.{layer}"], plain[name], atol=2e-5, rtol=1e-4
                )
            if case.architecture not in NORM_AFTER:
                torch.testing.assert_close(
                    kept[f"mlp_out.{layer}"], plain["mlp"], atol=2e-5, rtol=1e-4
                )


def test_a_block_adds_what_attention_and_mlp_write(case: Case) -> None:
    for layer in range(LAYERS):
        for kept in captured(case.lens, places_of(layer)):
            pre, mid, attention, mlp, post = (
                kept[f"{kind}.{layer}"]
                for kind in ("resid_pre", "resid_mid", "attn_out", "mlp_out", "resid_post")
            )
            torch.testing.assert_close(pre + attention + mlp, post, atol=2e-5, rtol=1e-5)
            expected = pre if case.architecture in PARALLEL else pre + attention
            torch.testing.assert_close(mid, expected, atol=2e-5, rtol=1e-5)
    assert case.lens.parallel_blocks == (case.architecture in PARALLEL)


def test_value_vectors_are_what_a_neuron_writes(case: Case) -> None:
    lens = case.lens
    if case.architecture in NORM_AFTER:
        with pytest.raises(HookError, match="norm follows it"):
            lens.check_value_vectors()
        return
    lens.check_value_vectors()
    for layer in range(LAYERS):
        weights = lens.mlp_weights(layer)
        assert weights.W_out.shape == (lens.d_mlp, lens.d_model)
        assert weights.W_in.shape == (lens.d_model, lens.d_mlp)
        for kept in captured(lens, [f"mlp_post.{layer}", f"mlp_out.{layer}"]):
            written = kept[f"mlp_post.{layer}"] @ weights.W_out + weights.b_out
            torch.testing.assert_close(written, kept[f"mlp_out.{layer}"], atol=2e-5, rtol=1e-4)


def test_gated_activations_are_the_product_of_both_keys(case: Case) -> None:
    lens = case.lens
    weights = lens.mlp_weights(1)
    assert lens.gated_mlp == weights.gated == (weights.W_gate is not None)
    if not weights.gated:
        with pytest.raises(HookError, match="no gate"):
            captured(lens, ["mlp_gate.1"])
        return
    act = plain_mlp(case.plain, 1)
    function = getattr(act, "act_fn", None) or act.activation_fn
    for kept in captured(lens, ["mlp_gate.1", "mlp_pre.1", "mlp_post.1"]):
        expected = function(kept["mlp_gate.1"]) * kept["mlp_pre.1"]
        torch.testing.assert_close(kept["mlp_post.1"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mlp_pre", "mlp_gate", "mlp_post"])
@torch.no_grad()
def test_written_neurons_reach_the_logits(case: Case, kind: str) -> None:
    lens = case.lens
    if kind == "mlp_gate" and not lens.gated_mlp:
        with (
            pytest.raises(HookError, match="no gate"),
            lens.hooks([Edit("mlp_gate.1", lambda x: x)]),
        ):
            pass
        return
    chosen = torch.zeros(lens.d_mlp)
    chosen[3] = 1.0
    batch = pad(ROWS)
    plain = lens.forward(batch.ids, batch.mask)
    with lens.hooks([Edit(f"{kind}.1", lambda x: x * (1 + 4 * chosen.to(x)))]):
        steered = lens.forward(batch.ids, batch.mask)
        read = captured(lens, ["mlp_post.1"])
    assert not torch.allclose(plain, steered)
    if kind != "mlp_post":
        return
    for row, kept in zip(ROWS, read, strict=True):
        before = plain_parts(case.plain, row, 1)["m"]
        torch.testing.assert_close(
            kept["mlp_post.1"], before * (1 + 4 * chosen), atol=2e-5, rtol=1e-4
        )


@torch.no_grad()
def test_scaled_activations_are_scaled_value_vectors(case: Case) -> None:
    """Scaling m of one neuron is the same as scaling its row of W_out, in plain transformers."""
    edited = copy.deepcopy(case.plain)
    layer = output_layer(plain_mlp(edited, 0))
    # transformers' Conv1D (GPT-2) keeps W_out, nn.Linear its transpose.
    rows = layer.weight if type(layer).__name__ == "Conv1D" else layer.weight.T
    rows[7] *= 5.0
    chosen = torch.ones(case.lens.d_mlp)
    chosen[7] = 5.0
    for row in ROWS:
        ids = torch.tensor([list(row)])
        expected = edited(input_ids=ids, use_cache=False).logits
        with case.lens.hooks([Edit("mlp_post.0", lambda m: m * chosen.to(m))]):
            found = case.lens.forward(ids, torch.ones_like(ids))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_unknown_places_are_refused(case: Case) -> None:
    for place, message in (
        ("mlp_post.9", "does not exist"),
        ("resid_mid.2", "does not exist"),
        ("mlp_posts.0", "unknown site"),
    ):
        with pytest.raises(HookError, match=message):
            captured(case.lens, [place])
    for place in ("resid_mid.0", "attn_z.1", "resid_pre.1"):
        with (
            pytest.raises(HookError, match="read alone"),
            case.lens.hooks([Edit(place, lambda x: x)]),
        ):
            pass
    with pytest.raises(HookError, match="from 0"):
        case.lens.mlp_weights(LAYERS)


@torch.no_grad()
def test_biases_of_a_gated_mlp() -> None:
    plain = random_model("llama", mlp_bias=True)
    lens = load_lens_model(copy.deepcopy(plain))
    lens.check_value_vectors()
    weights, mlp = lens.mlp_weights(0), plain_mlp(plain, 0)
    assert weights.b_gate is not None
    for found, expected in (
        (weights.b_in, mlp.up_proj.bias),
        (weights.b_gate, mlp.gate_proj.bias),
        (weights.b_out, mlp.down_proj.bias),
    ):
        torch.testing.assert_close(found, expected)


def test_a_mixture_of_experts_is_refused() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    configuration = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=64,
    )
    lens = load_lens_model(MixtralForCausalLM(configuration).eval(), self_check=False)
    with pytest.raises(HookError, match="mixture of experts"):
        lens.mlp_weights(0)
