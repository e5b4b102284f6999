from __future__ import annotations

import copy
import functools

import numpy as np
import pandas as pd
import pytest
import torch

from dsteer_tl.controls import bootstrap_ratio
from dsteer_tl.errors import HookError
from dsteer_tl.lens_model import LensModel, MlpWeights, load_lens_model
from dsteer_tl.positions import Probe
from dsteer_tl.toxicity.component_reading import continuation_probes, read_components
from dsteer_tl.toxicity.decomposition import (
    TERMS,
    Decomposition,
    decomposition_places,
    mlp_terms,
)
from tests.models import random_model
from tests.toxicity.plain_components import (
    CONTINUATIONS,
    PROMPTS,
    SEQUENCES,
    models_of,
    plain_components,
    value_vectors,
)

ARCHITECTURES = ("gpt2", "neox", "serial_neox", "llama")
SEED = 5


def probes() -> tuple[Probe, ...]:
    return continuation_probes(PROMPTS, CONTINUATIONS, response_limit=3)


def measure(base: LensModel, policy: LensModel, token_budget: int = 16) -> pd.DataFrame:
    decomposition = Decomposition(base, policy, seed=SEED)
    places = decomposition_places(base.n_layers)
    for batch in read_components(
        {"base": base, "policy": policy},
        probes(),
        {"base": places, "policy": places},
        token_budget=token_budget,
        progress=False,
    ):
        decomposition.add(batch)
    return decomposition.table(draws=100, seed=0)


@functools.cache
def table_of(architecture: str) -> pd.DataFrame:
    pair = models_of(architecture)
    return measure(pair.lens_base, pair.lens_policy)


def plain_terms(architecture: str, place: str, kind: str) -> tuple[dict[str, np.ndarray], list]:
    """The terms at one place ``[row, d_model]``, by loops over plain transformers in float64."""
    pair = models_of(architecture)
    weights = list(zip(value_vectors(pair.base), value_vectors(pair.policy), strict=True))
    base = plain_components(pair.base, SEQUENCES)
    policy = plain_components(pair.policy, SEQUENCES)
    name, layer = place.split(".")
    mlps = int(layer) + (name == "resid_post")
    attentions = mlps if architecture == "neox" else int(layer) + 1
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*TERMS, "permuted_rows", "shift")}
    prompts = []
    for probe in probes():
        for position in probe.positions[kind]:
            one, two = base[probe.prompt], policy[probe.prompt]
            prompts.append(probe.prompt)
            sums = {name: np.zeros(32) for name in (*TERMS, "permuted_rows")}
            sums["embedding"] = two.resid_pre[0][position] - one.resid_pre[0][position]
            for index in range(attentions):
                sums["attention"] += two.attn_out[index][position] - one.attn_out[index][position]
            for index in range(mlps):
                (v, b), (v_policy, b_policy) = weights[index]
                m, m_policy = one.mlp_post[index][position], two.mlp_post[index][position]
                order = np.random.default_rng([SEED, index]).permutation(len(m))
                for i in range(len(m)):
                    dv, dm = v_policy[i] - v[i], m_policy[i] - m[i]
                    sums["value_vectors"] += m[i] * dv
                    sums["activations"] += dm * v[i]
                    sums["interaction"] += dm * dv
                    sums["permuted_rows"] += m[i] * (v_policy[order[i]] - v[order[i]])
                sums["bias"] += b_policy - b
            for term, value in sums.items():
                found[term].append(value)
            found["shift"].append(two.at(place)[position] - one.at(place)[position])
    return {term: np.array(rows) for term, rows in found.items()}, prompts


@pytest.mark.parametrize("place", ["resid_mid.0", "resid_mid.1", "resid_post.1"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shares_are_those_of_plain_transformers(architecture: str, place: str):
    name, layer = place.split(".")
    table = table_of(architecture)
    for kind in ("last_prompt", "response"):
        terms, prompts = plain_terms(architecture, place, kind)
        shift = terms.pop("shift")
        # The reference is exact before it is compared with.
        np.testing.assert_allclose(sum(terms[term] for term in TERMS), shift, atol=1e-11)
        lines = table[
            (table["place"] == name)
            & (table["layer"] == int(layer))
            & (table["position_kind"] == kind)
        ]
        assert len(lines) == 7 and (lines["rows"] == len(prompts)).all()
        norms = np.linalg.norm(shift, axis=1)
        for line in lines.to_dict("records"):
            term = line["control"] if line["control"] != "measured" else line["term"]
            along = (terms[term] * shift).sum(axis=1) / norms
            expected = bootstrap_ratio(along, norms, prompts, draws=100, seed=0)
            assert line["share"] == pytest.approx(expected.value, abs=1e-5)
            assert line["low"] == pytest.approx(expected.low, abs=1e-5)
            assert line["high"] == pytest.approx(expected.high, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_terms_add_up_to_the_shift(architecture: str):
    table = table_of(architecture)
    assert len(table) == 2 * 2 * 2 * 7
    assert table["error"].max() < 1e-5
    measured = table[table["control"] == "measured"]
    sums = measured.groupby(["place", "layer", "position_kind"])["share"].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    # Every term is there, so that a lost one would show.
    deepest = measured[(measured["place"] == "resid_post") & (measured["layer"] == 1)]
    present = deepest.groupby("term")["share"].apply(lambda share: share.abs().max())
    without_bias = {"bias"} if architecture == "llama" else set()
    assert {term for term in TERMS if present[term] == 0} == without_bias


def test_biases_alone_are_named():
    base = random_model("gpt2")
    policy = copy.deepcopy(base)
    with torch.no_grad():
        policy.transformer.h[1].mlp.c_proj.bias.add_(0.5)
    table = measure(*(load_lens_model(model) for model in (base, policy)))
    last = table[(table["place"] == "resid_post") & (table["layer"] == 1)].set_index(
        ["position_kind", "term", "control"]
    )
    assert last.loc[("response", "bias", "measured"), "share"] == pytest.approx(1, abs=1e-5)
    assert last.loc[("response", "attention", "measured"), "share"] == 0
    # Below it nothing moved: no shift to have a share of, and no error.
    below = table[table["layer"] == 0]
    assert below["share"].isna().all() and (below["error"] == 0).all()


def test_batches_do_not_matter():
    pair = models_of("llama")
    whole = measure(pair.lens_base, pair.lens_policy, token_budget=4096)
    pd.testing.assert_frame_equal(
        whole.drop(columns="error"), table_of("llama").drop(columns="error"), atol=2e-5
    )


def test_models_whose_mlp_is_followed_by_a_norm_are_refused():
    lens = load_lens_model(random_model("olmo2"))
    with pytest.raises(HookError, match="does not write m·W_out"):
        Decomposition(models_of("llama").lens_base, lens, seed=0)
    with pytest.raises(HookError, match="does not write m·W_out"):
        Decomposition(lens, models_of("llama").lens_base, seed=0)


def weights(values: np.ndarray, bias: float) -> MlpWeights:
    d_mlp, d_model = values.shape
    return MlpWeights(
        W_in=torch.zeros(d_model, d_mlp),
        W_gate=None,
        W_out=torch.tensor(values),
        b_in=torch.zeros(d_mlp),
        b_gate=None,
        b_out=torch.full((d_model,), bias),
    )


def test_terms_of_one_mlp_by_hand():
    base, policy = weights(np.eye(2), 1.0), weights(np.array([[2.0, 0.0], [0.0, 5.0]]), 1.5)
    terms = mlp_terms(
        torch.tensor([[3.0, 1.0]]), torch.tensor([[3.0, 2.0]]), base, policy, np.array([1, 0])
    )
    assert terms["value_vectors"].tolist() == [[3.0, 4.0]]
    assert terms["activations"].tolist() == [[0.0, 1.0]]
    assert terms["interaction"].tolist() == [[0.0, 4.0]]
    assert terms["bias"].tolist() == [[0.5, 0.5]]
    # Neuron 0 gets Δv of neuron 1, and the other way round: 3·(0, 4) + 1·(1, 0).
    assert terms["permuted_rows"].tolist() == [[1.0, 12.0]]
    assert all(term.dtype == torch.float64 for term in terms.values())
