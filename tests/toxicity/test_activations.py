from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.controls import bootstrap_mean
from dsteer_tl.errors import ShapeError
from dsteer_tl.toxicity.activations import (
    PromptActivations,
    activation_places,
    change_table,
    matched_neurons,
    mean_activations,
    neuron_table,
)
from dsteer_tl.toxicity.component_reading import continuation_probes, read_components
from dsteer_tl.toxicity.types import Neurons
from tests.models import backbone_parts
from tests.toxicity.plain_components import (
    CONTINUATIONS,
    PROMPTS,
    SEQUENCES,
    models_of,
    plain_components,
)


def neurons(layers: list[int], indices: list[int], signs: list[int] | None = None) -> Neurons:
    return Neurons(
        group="attribute",
        layers=np.array(layers, dtype=np.int64),
        neurons=np.array(indices, dtype=np.int64),
        signs=np.array(signs or [1] * len(layers), dtype=np.int64),
    )


def plain_means(architecture: str) -> np.ndarray:
    """Mean m ``[prompt, layer, d_mlp]`` over written tokens, from plain transformers."""
    found = plain_components(models_of(architecture).base, SEQUENCES)
    means = []
    for prompt, continuation, components in zip(PROMPTS, CONTINUATIONS, found, strict=True):
        first = len(prompt) - 1
        rows = slice(first, first + max(len(continuation), 1))
        means.append([components.mlp_post[layer][rows].mean(axis=0) for layer in range(2)])
    return np.array(means)


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "llama"])
def test_activations_are_those_of_plain_transformers(architecture: str):
    pair, expected = models_of(architecture), plain_means(architecture)
    probes = continuation_probes(PROMPTS, CONTINUATIONS)
    means = mean_activations(pair.lens_base, probes, token_budget=40, progress=False)
    np.testing.assert_allclose(means, expected.mean(axis=0), atol=2e-5)

    group = neurons([1, 0, 1], [7, 3, 40], [1, -1, -1])
    active = PromptActivations(group)
    for batch in read_components(
        {"base": pair.lens_base},
        probes,
        {"base": activation_places(2)},
        token_budget=40,
        progress=False,
    ):
        active.add(batch, "base")
    oriented = expected[:, group.layers, group.neurons] * group.signs
    np.testing.assert_allclose(active.means(), oriented, atol=2e-5)


def test_activations_without_the_scale_and_bias_of_the_norm_are_others():
    """The trap of claim 25: the comparison above would see it."""
    base = models_of("gpt2").base
    block = backbone_parts(base)[0][1]
    components = plain_components(base, SEQUENCES[:1])[0]
    stream = components.resid_mid[1]
    centred = stream - stream.mean(axis=1, keepdims=True)
    unscaled = centred / np.sqrt(centred.var(axis=1, keepdims=True) + 1e-5)
    norm, first = block.ln_2, block.mlp.c_fc
    scaled = unscaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()

    def activations(x: np.ndarray) -> np.ndarray:
        z = x @ first.weight.detach().numpy() + first.bias.detach().numpy()
        return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    np.testing.assert_allclose(activations(scaled), components.mlp_post[1], atol=1e-5)
    assert np.abs(activations(unscaled) - components.mlp_post[1]).mean() > 0.05


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_partners_are_other_neurons_of_the_same_layer(seed: int, count: int):
    generator = np.random.default_rng(seed)
    flat = generator.choice(3 * 40, size=count, replace=False)
    group = neurons((flat // 40).tolist(), (flat % 40).tolist(), [-1] * count)
    means = generator.standard_normal((3, 40))
    matched = matched_neurons(means, group, seed)
    assert matched.group == "matched"
    assert matched.layers.tolist() == group.layers.tolist()
    assert matched.signs.tolist() == group.signs.tolist()
    chosen = (matched.layers * 40 + matched.neurons).tolist()
    assert len(set(chosen)) == count and not set(chosen) & set(flat.tolist())
    assert matched_neurons(means, group, seed).neurons.tolist() == matched.neurons.tolist()


def test_partners_are_as_active():
    # Fewer than the candidates, so that the nearest of all is found.
    means = np.array([[0.0, 1.0, 2.0, 3.0, 2.1, 9.0], [5.0, 5.0, 5.0, 5.0, 5.0, 5.0]])
    matched = matched_neurons(means, neurons([0, 0], [2, 3]), 0)
    # Neuron 4 is nearest to both and goes to the first; 3 is in the group itself.
    assert matched.neurons.tolist() == [4, 1]
    generator = np.random.default_rng(0)
    wide = generator.standard_normal((1, 2000))
    group = neurons([0] * 50, list(range(50)))
    partners = matched_neurons(wide, group, 1)
    assert np.median(np.abs(wide[0, partners.neurons] - wide[0, :50])) < 0.05
    # Of random candidates, so another seed is another control.
    assert set(partners.neurons) != set(matched_neurons(wide, group, 2).neurons)


def test_groups_that_cannot_be_matched_are_refused():
    with pytest.raises(ShapeError, match="3 of the 4 neurons of layer 0"):
        matched_neurons(np.zeros((1, 4)), neurons([0, 0, 0], [0, 1, 2]), 0)
    with pytest.raises(ShapeError, match="layers up to 1 and neurons up to 0"):
        matched_neurons(np.zeros((1, 4)), neurons([1], [0]), 0)
    with pytest.raises(ShapeError, match="found in another model"):
        matched_neurons(np.zeros((1, 4)), neurons([0], [-1]), 0)


def test_changes_by_hand():
    group = neurons([0, 1], [5, 6], [1, -1])
    base = np.array([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]])
    policy = base + np.array([[-1.0, 0.5], [-2.0, 0.5], [0.0, 0.5]])
    table = neuron_table(group, base, policy, texts="off_policy")
    assert table["mean_base"].tolist() == [2.0, 4.0]
    assert table["change"].tolist() == [-1.0, 0.5]
    (line,) = change_table(group, base, policy, texts="off_policy", draws=500, seed=0).to_dict(
        "records"
    )
    assert (line["mean_base"], line["prompts"], line["neurons"]) == (3.0, 3, 2)
    assert line["change"] == pytest.approx(-0.25)
    assert line["relative"] == pytest.approx(-0.25 / 3)
    assert line["share_falling"] == 0.5
    expected = bootstrap_mean(np.array([-0.25, -0.75, 0.25]), draws=500, seed=0)
    assert (line["prompt_low"], line["prompt_high"]) == (expected.low, expected.high)
    over_neurons = bootstrap_mean((policy - base).mean(axis=0), draws=500, seed=0)
    assert (line["low"], line["high"]) == (over_neurons.low, over_neurons.high)


def test_pairing_takes_out_what_prompts_differ_in():
    generator = np.random.default_rng(0)
    base = 100 * generator.standard_normal((40, 3))
    change = change_table(
        neurons([0] * 3, [0, 1, 2]), base, base - 0.01, texts="off_policy", draws=200, seed=0
    )
    assert change["prompt_high"][0] < -0.009 and change["prompt_low"][0] > -0.011


def test_a_negative_mean_still_falls_downwards():
    base = np.full((4, 1), -2.0)
    table = change_table(
        neurons([0], [0]), base, base - 1, texts="on_policy", draws=50, seed=0
    ).iloc[0]
    assert table["change"] == -1 and table["relative"] == -0.5 and table["share_falling"] == 1


def test_arrays_of_other_prompts_or_neurons_are_refused():
    group = neurons([0], [0])
    with pytest.raises(ShapeError, match=r"shapes \(3, 1\) and \(2, 1\)"):
        neuron_table(group, np.zeros((3, 1)), np.zeros((2, 1)), texts="off_policy")
    with pytest.raises(ShapeError, match="no neurons"):
        change_table(
            neurons([], []), np.zeros((3, 0)), np.zeros((3, 0)), texts="x", draws=9, seed=0
        )
