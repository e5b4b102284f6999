"""Scaled keys and replaced activations, against plain transformers with edited weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsteer_tl.errors import ConfigurationError, HookError, ShapeError
from dsteer_tl.lens_model import Gather, LensModel, load_lens_model, pad
from dsteer_tl.toxicity.neuron_edits import (
    KEYS,
    Keys,
    all_neurons,
    mean_contributions,
    most_active_neurons,
    replace_activations,
    scale_keys,
)
from dsteer_tl.toxicity.types import Neurons
from tests.models import LAYERS, backbone_parts, random_model

ROWS = ((5, 9, 33, 2, 77, 41), (8, 120, 3), (14, 15, 92, 65, 35))
PLACES = [(0, 7), (1, 3), (0, 31), (1, 20)]

#: For each architecture, module and orientation of the keys of W_in and W_gate.
KEY_MODULES: dict[str, dict[str, str]] = {
    "gpt2": {"in": "c_fc"},
    "neox": {"in": "dense_h_to_4h"},
    "llama": {"in": "up_proj", "gate": "gate_proj"},
}
CASES = [
    *((architecture, "in") for architecture in KEY_MODULES),
    ("llama", "gate"),
    ("llama", "both"),
]


def group(places: list[tuple[int, int]], name: str = "attribute") -> Neurons:
    layers, neurons = (np.array(part, dtype=np.int64) for part in zip(*places, strict=True))
    return Neurons(group=name, layers=layers, neurons=neurons, signs=np.ones_like(layers))


def lens_of(model: Any) -> LensModel:
    return load_lens_model(copy.deepcopy(model), self_check=False)


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, LensModel]]:
    plain = {name: random_model(name).double() for name in KEY_MODULES}
    return {name: (model, lens_of(model)) for name, model in plain.items()}


@torch.no_grad()
def with_longer_keys(model: Any, architecture: str, keys: str, factor: float) -> Any:
    """A copy whose weights are multiplied, key by key."""
    edited = copy.deepcopy(model)
    for layer, neuron in PLACES:
        mlp = backbone_parts(edited)[0][layer].mlp
        for kind, module in KEY_MODULES[architecture].items():
            if keys in (kind, "both"):
                weight = getattr(mlp, module).weight
                key = weight[:, neuron] if architecture == "gpt2" else weight[neuron]
                key.mul_(factor)
    return edited


@torch.inference_mode()
def logits(lens: LensModel, edits: list[Any]) -> Tensor:
    batch = pad(ROWS)
    with lens.hooks(edits):
        return lens.forward(batch.ids, batch.mask)[batch.mask.bool()]


@pytest.mark.parametrize("factor", [10.0, 0.0, -1.5])
@pytest.mark.parametrize(("architecture", "keys"), CASES)
def test_scaled_keys_are_edited_weights(
    models: dict[str, tuple[Any, LensModel]], architecture: str, keys: Keys, factor: float
) -> None:
    plain, lens = models[architecture]
    edited = with_longer_keys(plain, architecture, keys, factor)
    found = logits(lens, scale_keys(lens, group(PLACES), factor, keys))
    with torch.no_grad():
        expected = torch.cat([edited(torch.tensor([list(row)])).logits[0] for row in ROWS])
        before = torch.cat([plain(torch.tensor([list(row)])).logits[0] for row in ROWS])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert float((expected - before).abs().max()) > 0.05


@pytest.mark.parametrize(("architecture", "keys"), CASES)
def test_greedy_continuations_are_those_of_edited_weights(
    models: dict[str, tuple[Any, LensModel]], architecture: str, keys: Keys
) -> None:
    plain = copy.deepcopy(models[architecture][0]).float()
    lens, edited = lens_of(plain), lens_of(with_longer_keys(plain, architecture, keys, 10.0))
    batch = pad(ROWS, side="left")
    with lens.hooks(scale_keys(lens, group(PLACES), 10.0, keys)):
        found = lens.generate(batch.ids, batch.mask, max_new_tokens=12)
    assert torch.equal(found, edited.generate(batch.ids, batch.mask, max_new_tokens=12))
    assert not torch.equal(found, lens.generate(batch.ids, batch.mask, max_new_tokens=12))


def test_other_neurons_keep_every_bit(models: dict[str, tuple[Any, LensModel]]) -> None:
    _, lens = models["gpt2"]
    batch = pad(ROWS)
    everywhere = torch.arange(len(ROWS)).repeat(3), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    gather = Gather(*everywhere)
    before = lens.capture(batch.ids, batch.mask, ["mlp_post.0"], gather)["mlp_post.0"]
    with lens.hooks(scale_keys(lens, group(PLACES), 3.0)):
        after = lens.capture(batch.ids, batch.mask, ["mlp_post.0"], gather)["mlp_post.0"]
    changed = (before != after).any(dim=0).nonzero()[:, 0].tolist()
    assert changed == [7, 31]


def test_a_factor_of_one_is_no_edit(models: dict[str, tuple[Any, LensModel]]) -> None:
    for _, lens in models.values():
        for keys in KEYS if lens.gated_mlp else KEYS[:1]:
            assert scale_keys(lens, group(PLACES), 1.0, keys) == []


def test_in_keys_of_a_gated_neuron_scale_its_activation_whatever_its_sign(
    models: dict[str, tuple[Any, LensModel]],
) -> None:
    _, lens = models["llama"]
    batch = pad(ROWS)
    gather = Gather(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 4, 1, 2, 0, 3]))
    before = lens.capture(batch.ids, batch.mask, ["mlp_post.0"], gather)["mlp_post.0"]
    with lens.hooks(scale_keys(lens, group(PLACES), 10.0, "in")):
        after = lens.capture(batch.ids, batch.mask, ["mlp_post.0"], gather)["mlp_post.0"]
    for neuron in (7, 31):
        torch.testing.assert_close(after[:, neuron], 10 * before[:, neuron])
    assert (before[:, [7, 31]] < 0).any()
    assert (before[:, [7, 31]] > 0).any()


@pytest.mark.parametrize("keys", ["gate", "both"])
def test_gates_are_refused_where_there_are_none(
    models: dict[str, tuple[Any, LensModel]], keys: Keys
) -> None:
    _, lens = models["gpt2"]
    with pytest.raises(ConfigurationError, match="have no gate"):
        scale_keys(lens, group(PLACES), 2.0, keys)


def test_bad_scales_and_neurons_are_refused(models: dict[str, tuple[Any, LensModel]]) -> None:
    _, lens = models["llama"]
    with pytest.raises(ConfigurationError, match="finite"):
        scale_keys(lens, group(PLACES), float("nan"))
    with pytest.raises(ConfigurationError, match="expected one of in, gate, both"):
        scale_keys(lens, group(PLACES), 2.0, "out")  # type: ignore[arg-type]
    for place in [(LAYERS, 0), (0, lens.d_mlp), (-1, 0), (0, -1)]:
        with pytest.raises(HookError, match="another model"):
            scale_keys(lens, group([(0, 0), place]), 2.0)


@torch.inference_mode()
def test_own_activations_change_nothing_and_zeros_silence(
    models: dict[str, tuple[Any, LensModel]],
) -> None:
    _, lens = models["llama"]
    batch, neurons = pad(ROWS), group(PLACES)
    places = [f"mlp_post.{layer}" for layer in range(LAYERS)]
    with lens.reading(places) as store:
        plain = lens.forward(batch.ids, batch.mask)[batch.mask.bool()]
    own = {
        layer: store[places[layer]][..., torch.from_numpy(neurons.of_layer(layer))]
        for layer in range(LAYERS)
    }
    assert torch.equal(logits(lens, replace_activations(lens, neurons, own)), plain)
    zeros = {layer: torch.zeros_like(values) for layer, values in own.items()}
    silenced = logits(lens, replace_activations(lens, neurons, zeros))
    # A key of length zero has no activation where there is no bias.
    torch.testing.assert_close(silenced, logits(lens, scale_keys(lens, neurons, 0.0)))


def test_activations_of_another_batch_or_group_are_refused(
    models: dict[str, tuple[Any, LensModel]],
) -> None:
    _, lens = models["llama"]
    neurons = group(PLACES)
    with pytest.raises(ShapeError, match=r"layer 1.*found shape None"):
        replace_activations(lens, neurons, {0: torch.zeros(3, 6, 2)})
    with pytest.raises(ShapeError, match=r"expected \(batch, position, 2\)"):
        replace_activations(lens, neurons, {0: torch.zeros(3, 6, 3), 1: torch.zeros(3, 6, 2)})
    values = {layer: torch.zeros(1, 6, 2) for layer in range(LAYERS)}
    with pytest.raises(ShapeError, match="the same batch"):
        logits(lens, replace_activations(lens, neurons, values))


@pytest.mark.parametrize("budget", [7, 1000])
def test_contributions_are_mean_activation_times_norm(
    models: dict[str, tuple[Any, LensModel]], budget: int
) -> None:
    """Against one text at a time; the first token does not count but where it is alone."""
    plain, lens = models["gpt2"]
    texts = [*ROWS, (11,)]
    found = mean_contributions(lens, texts, token_budget=budget, progress=False)
    for layer in range(LAYERS):
        mlp = backbone_parts(plain)[0][layer].mlp
        seen: list[Tensor] = []
        handle = mlp.c_proj.register_forward_pre_hook(lambda _, a, kept=seen: kept.append(a[0][0]))
        with torch.no_grad():
            for text in texts:
                plain(torch.tensor([list(text)]))
        handle.remove()
        counted = torch.cat([m[1:] if len(m) > 1 else m for m in seen])
        expected = counted.double().abs().mean(dim=0) * mlp.c_proj.weight.double().norm(dim=1)
        np.testing.assert_allclose(found[layer], expected.detach().numpy(), rtol=1e-4)
    with pytest.raises(ShapeError, match="none without tokens"):
        mean_contributions(lens, [()], token_budget=budget, progress=False)


def test_most_active_neurons_are_outside_the_attribute() -> None:
    sizes = np.array([[1.0, 9.0, 3.0], [8.0, 2.0, 7.0]])
    found = most_active_neurons(sizes, 2, exclude=group([(0, 1)]))
    assert found.group == "most_active"
    assert list(zip(found.layers.tolist(), found.neurons.tolist(), strict=True)) == [(1, 0), (1, 2)]
    assert found.signs.tolist() == [1, 1]
    assert sizes[0, 1] == 9.0
    with pytest.raises(ShapeError, match="expected 1 to 5"):
        most_active_neurons(sizes, 6, exclude=group([(0, 1)]))


def test_all_neurons_are_every_one_once(models: dict[str, tuple[Any, LensModel]]) -> None:
    _, lens = models["llama"]
    every = all_neurons(lens)
    assert len(every) == LAYERS * lens.d_mlp
    for layer in range(LAYERS):
        assert every.of_layer(layer).tolist() == list(range(lens.d_mlp))
