from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dsteer_tl.errors import DataError
from dsteer_tl.lens_model import load_lens_model
from dsteer_tl.toxicity.activations import matched_neurons, mean_activations
from dsteer_tl.toxicity.changes import measure_changes
from dsteer_tl.toxicity.component_reading import continuation_probes
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import Neurons, StudyTexts
from tests.models import random_model
from tests.toxicity.plain_components import (
    CONTINUATIONS,
    PROMPTS,
    models_of,
    plain_components,
)

COLUMNS = {
    "toxicity_activations": "group texts layer neuron sign mean_base mean_policy change",
    "toxicity_activation_changes": (
        "group texts mean_base change low high prompt_low prompt_high relative share_falling "
        "prompts neurons"
    ),
    "toxicity_offsets": (
        "place layer position_kind control cosine low high norm relative_norm rows prompts"
    ),
    "toxicity_residuals": "place layer control model prompt axis pc1 axis_size",
    "toxicity_decomposition": ("place layer position_kind term control share low high error rows"),
    "toxicity_value_changes": (
        "layer neuron group mean_activation cosine cosine_permuted change_norm write_change "
        "activation_change"
    ),
}
OWN = tuple(tuple(reversed(continuation)) or (7, 8) for continuation in CONTINUATIONS)
GROUP = Neurons(
    group="attribute",
    layers=np.array([1, 0, 1]),
    neurons=np.array([4, 9, 30]),
    signs=np.array([1, -1, -1]),
)
SETTINGS = ToxicityConfiguration(token_budget=24, draws=60, seed=1)


def texts(**continuations: tuple[tuple[int, ...], ...]) -> StudyTexts:
    return StudyTexts(
        prompts=PROMPTS, windows=(), window_prompt=1, continuations=dict(continuations)
    )


def measure(random_weights: bool = True) -> dict[str, pd.DataFrame]:
    pair = models_of("llama")
    other = load_lens_model(random_model("llama", seed=8)) if random_weights else None
    return measure_changes(
        pair.lens_base,
        pair.lens_policy,
        other,
        texts(base=CONTINUATIONS, policy=OWN),
        GROUP,
        SETTINGS,
        progress=False,
    )


def test_every_table_is_there_and_comes_out_the_same_twice():
    first, second = measure(), measure()
    assert {name: " ".join(table.columns) for name, table in first.items()} == COLUMNS
    for name, table in first.items():
        pd.testing.assert_frame_equal(table, second[name], check_exact=True)
        assert not table.isna().any().any(), name
        floats = table.select_dtypes("floating")
        assert (floats.dtypes == np.float64).all()
    assert set(first["toxicity_offsets"]["control"]) == {
        "policy",
        "sign_flipped",
        "random_weights",
    }
    assert len(first["toxicity_value_changes"]) == 2 * 48


def test_on_policy_each_model_reads_its_own_text():
    pair, table = models_of("llama"), measure()["toxicity_activations"]

    def means(model: object, continuations: tuple[tuple[int, ...], ...]) -> np.ndarray:
        probes = continuation_probes(PROMPTS, continuations)
        found = plain_components(model, [probe.ids for probe in probes])
        per_prompt = [
            [
                sign * components.mlp_post[layer][list(probe.positions["generated"]), neuron].mean()
                for layer, neuron, sign in zip(
                    GROUP.layers, GROUP.neurons, GROUP.signs, strict=True
                )
            ]
            for probe, components in zip(probes, found, strict=True)
        ]
        return np.mean(per_prompt, axis=0)

    for kind, own in (("off_policy", CONTINUATIONS), ("on_policy", OWN)):
        lines = table[(table["group"] == "attribute") & (table["texts"] == kind)]
        np.testing.assert_allclose(lines["mean_base"], means(pair.base, CONTINUATIONS), atol=2e-5)
        np.testing.assert_allclose(lines["mean_policy"], means(pair.policy, own), atol=2e-5)


def test_the_matched_group_is_as_active_in_the_base_on_its_own_text():
    lens, table = models_of("llama").lens_base, measure(False)["toxicity_activations"]
    found = table[(table["group"] == "matched") & (table["texts"] == "on_policy")]
    expected = [
        matched_neurons(
            mean_activations(
                lens, continuation_probes(PROMPTS, written), token_budget=24, progress=False
            ),
            GROUP,
            SETTINGS.seed,
        ).neurons.tolist()
        for written in (CONTINUATIONS, OWN)
    ]
    assert found["neuron"].tolist() == expected[0] != expected[1]


def test_a_study_without_random_weights_has_the_other_controls():
    table = measure(random_weights=False)["toxicity_offsets"]
    assert set(table["control"]) == {"policy", "sign_flipped"}


def test_continuations_of_both_models_are_needed():
    pair = models_of("llama")
    with pytest.raises(DataError, match=r"found continuations of \['base'\]"):
        measure_changes(
            pair.lens_base,
            pair.lens_policy,
            None,
            texts(base=CONTINUATIONS),
            GROUP,
            SETTINGS,
            progress=False,
        )
