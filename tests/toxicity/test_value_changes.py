from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from dsteer_tl.errors import HookError, ShapeError
from dsteer_tl.lens_model import LensModel, load_lens_model
from dsteer_tl.toxicity.activations import activation_places
from dsteer_tl.toxicity.component_reading import continuation_probes, read_components
from dsteer_tl.toxicity.types import Neurons
from dsteer_tl.toxicity.value_changes import ValueChanges, neuron_changes
from tests.models import random_model
from tests.toxicity.plain_components import (
    CONTINUATIONS,
    PROMPTS,
    SEQUENCES,
    models_of,
    plain_components,
    value_vectors,
)

GROUP = Neurons(
    group="attribute",
    layers=np.array([1, 0, 1]),
    neurons=np.array([4, 9, 30]),
    signs=np.array([1, 1, -1]),
)


def measure(base: LensModel, policy: LensModel, continuations=CONTINUATIONS) -> pd.DataFrame:
    changes = ValueChanges(base, policy)
    places = (*activation_places(2), "resid_mid.1")
    for batch in read_components(
        {"base": base, "policy": policy},
        continuation_probes(PROMPTS, continuations, response_limit=None),
        {"base": places, "policy": places},
        token_budget=16,
        progress=False,
    ):
        changes.add(batch)
    return changes.table(GROUP, seed=7)


def test_one_layer_by_hand():
    base = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    policy = base + torch.tensor([[3.0, 4.0], [0.0, -1.0], [0.0, 0.0]])
    found = neuron_changes(
        base,
        policy,
        np.array([2.0, -1.0, 5.0]),
        np.array([2.5, -1.0, 4.0]),
        np.array([0.0, 1.0]),
        np.array([2, 0, 1]),
    )
    assert found["cosine"].tolist() == pytest.approx([0.8, -1, 0])
    assert found["cosine_permuted"].tolist() == pytest.approx([0, 0.8, -1])
    assert found["change_norm"].tolist() == pytest.approx([5, 1, 0])
    # A neuron that is off on average, whose value vector moved against δ: writes along δ.
    assert found["write_change"].tolist() == pytest.approx([8, 1, 0])
    assert found["activation_change"].tolist() == pytest.approx([0, 0, -1])


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "llama"])
def test_table_is_that_of_plain_transformers(architecture: str):
    pair = models_of(architecture)
    table = measure(pair.lens_base, pair.lens_policy)
    base = plain_components(pair.base, SEQUENCES)
    policy = plain_components(pair.policy, SEQUENCES)
    where = [
        (prompt, position)
        for prompt, continuation in enumerate(CONTINUATIONS)
        for position in range(len(PROMPTS[prompt]), len(SEQUENCES[prompt]) - 1)
        if continuation
    ]

    def mean(found: list, place: str) -> np.ndarray:
        return np.mean([found[prompt].at(place)[position] for prompt, position in where], axis=0)

    shift = mean(policy, "resid_mid.1") - mean(base, "resid_mid.1")
    direction = shift / np.linalg.norm(shift)
    layers = zip(value_vectors(pair.base), value_vectors(pair.policy), strict=True)
    for layer, ((v, _), (v_policy, _)) in enumerate(layers):
        found = table[table["layer"] == layer]
        assert found["neuron"].tolist() == list(range(len(v)))
        m, dv = mean(base, f"mlp_post.{layer}"), v_policy - v
        dm = mean(policy, f"mlp_post.{layer}") - m
        norms = np.linalg.norm(dv, axis=1)
        for column, expected in (
            ("mean_activation", m),
            ("cosine", dv @ direction / norms),
            ("change_norm", norms),
            ("write_change", m * (dv @ direction)),
            ("activation_change", dm * (v @ direction)),
        ):
            np.testing.assert_allclose(found[column], expected, atol=2e-5, err_msg=column)
        # The null moves cosines to other neurons of the layer.
        assert sorted(found["cosine_permuted"]) == sorted(found["cosine"])
        assert (found["cosine_permuted"] != found["cosine"]).mean() > 0.9
    named = table[table["group"] == "attribute"]
    assert set(zip(named["layer"], named["neuron"], strict=True)) == {(1, 4), (0, 9), (1, 30)}
    assert set(table["group"]) == {"attribute", ""}


def test_changes_below_the_place_add_up_to_the_shift_where_nothing_else_moved():
    """Only W_out of the first layer differs: Σ write_change is the whole mean shift."""
    base = random_model("llama")
    policy = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = policy.model.layers[0].mlp.down_proj.weight
        weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
        policy.model.layers[1].self_attn.o_proj.weight.zero_()
        base.model.layers[1].self_attn.o_proj.weight.zero_()
    shift = np.zeros(32)
    models = [plain_components(model, SEQUENCES) for model in (base, policy)]
    where = [
        (prompt, position)
        for prompt in range(len(PROMPTS))
        for position in range(len(PROMPTS[prompt]), len(SEQUENCES[prompt]) - 1)
    ]
    for prompt, position in where:
        before, after = (found[prompt].resid_mid[1][position] for found in models)
        shift += (after - before) / len(where)
    table = measure(load_lens_model(base), load_lens_model(policy))
    assert table["write_change"].sum() == pytest.approx(np.linalg.norm(shift), rel=1e-5)
    assert table.loc[table["layer"] == 0, "activation_change"].abs().max() < 1e-7
    assert (table.loc[table["layer"] == 1, ["cosine", "change_norm"]] == 0).all().all()


def test_equal_models_change_nothing():
    lens = models_of("llama").lens_base
    table = measure(lens, lens)
    columns = ["cosine", "cosine_permuted", "change_norm", "write_change", "activation_change"]
    assert (table[columns] == 0).all().all()
    assert table["mean_activation"].abs().max() > 0


def test_what_cannot_be_measured_is_refused():
    lens = models_of("llama").lens_base
    with pytest.raises(ShapeError, match="no row of kind 'response'"):
        measure(lens, lens, continuations=((4,),) * len(PROMPTS))
    with pytest.raises(HookError, match="does not write m·W_out"):
        ValueChanges(lens, load_lens_model(random_model("olmo2")))
