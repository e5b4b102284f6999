"""Value vectors against plain transformers weights, and the traps of claim 21."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import PreTrainedModel

from dsteer_tl.cosines import cosine, unit_rows
from dsteer_tl.errors import HookError, ShapeError
from dsteer_tl.lens import promoted_and_suppressed
from dsteer_tl.lens_model import LensModel, load_lens_model
from dsteer_tl.pair import ModelPair
from dsteer_tl.toxicity import value_vectors
from dsteer_tl.toxicity.types import Neurons
from dsteer_tl.toxicity.value_vector_tables import (
    random_group,
    svd_table,
    token_table,
    value_vector_name,
    value_vector_table,
)
from dsteer_tl.toxicity.value_vectors import (
    closest_value_vectors,
    is_listed,
    listed_share,
    oriented_to,
    oriented_value_vectors,
    probe_cosines,
    promoted_share,
    promoted_token_ids,
    random_neurons,
    tokens_promoted,
    value_vector_svd,
)
from tests.models import LAYERS, VOCABULARY, backbone_parts, random_model, tiny_tokenizer

GATED = {"gpt2": False, "neox": False, "llama": True}
D_MLP = {"gpt2": 128, "neox": 48, "llama": 48}


def value_rows(model: PreTrainedModel, layer: int) -> np.ndarray:
    """Value vectors read from the plain checkpoint, one a row."""
    mlp: Any = backbone_parts(model)[0][layer].mlp
    if hasattr(mlp, "c_proj"):  # a Conv1D holds the transpose of a Linear
        return mlp.c_proj.weight.detach().double().numpy()
    linear = mlp.dense_4h_to_h if hasattr(mlp, "dense_4h_to_h") else mlp.down_proj
    return linear.weight.detach().double().numpy().T


@pytest.fixture(scope="module", params=list(GATED))
def case(request: pytest.FixtureRequest) -> tuple[str, PreTrainedModel, LensModel]:
    name = request.param
    return name, random_model(name), load_lens_model(random_model(name), self_check=False)


@pytest.fixture(scope="module")
def llama() -> LensModel:
    return load_lens_model(random_model(), self_check=False)


def group(*places: tuple[int, int, int]) -> Neurons:
    layers, neurons, signs = (np.array(part) for part in zip(*places, strict=True))
    return Neurons(group="attribute", layers=layers, neurons=neurons, signs=signs)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def places(neurons: Neurons) -> list[tuple[int, int]]:
    return list(zip(neurons.layers.tolist(), neurons.neurons.tolist(), strict=True))


# Cosines and groups


def test_cosines_are_those_of_the_plain_weights(
    case: tuple[str, PreTrainedModel, LensModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model, lens = case
    direction = noise(lens.d_model)
    monkeypatch.setattr(value_vectors, "_ROWS", 7)
    found = probe_cosines(lens, direction)
    assert found.dtype == np.float64
    assert found.shape == (LAYERS, D_MLP[name])
    for layer in range(LAYERS):
        rows = value_rows(model, layer)
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(direction)
        assert found[layer] == pytest.approx(rows @ direction / norms, abs=1e-12)
    assert probe_cosines(lens, 1e3 * direction) == pytest.approx(found, abs=1e-12)


def test_a_model_whose_rows_are_not_written_is_refused() -> None:
    lens = load_lens_model(random_model("gemma2"), self_check=False)
    with pytest.raises(HookError, match=r"does not write m·W_out \+ b_out"):
        probe_cosines(lens, noise(lens.d_model))


def test_a_direction_of_another_width_is_refused(llama: LensModel) -> None:
    for call in (
        lambda: probe_cosines(llama, noise(31)),
        lambda: tokens_promoted(llama, tiny_tokenizer(), noise(31)),
    ):
        with pytest.raises(ShapeError, match=r"found length 31, expected d_model 32 of"):
            call()
    with pytest.raises(ShapeError, match="5 columns and a probe of length 4"):
        value_vector_svd(noise(3, 5), noise(4))


def test_the_closest_go_by_cosine_and_in_gated_models_by_its_size() -> None:
    cosines = np.array([[0.2, -0.9, 0.5], [0.5, 0.1, -0.3]])
    plain = closest_value_vectors(cosines, 3, gated=False)
    assert plain.group == "attribute"
    assert places(plain) == [(0, 2), (1, 0), (0, 0)]
    assert plain.signs.tolist() == [1, 1, 1]
    gated = closest_value_vectors(cosines, 4, gated=True, group="shuffled_probe")
    assert gated.group == "shuffled_probe"
    assert places(gated) == [(0, 1), (0, 2), (1, 0), (1, 2)]
    assert gated.signs.tolist() == [-1, 1, 1, -1]
    # Without a gate even the last one keeps its sign: the neuron never writes −v.
    every = closest_value_vectors(cosines, 6, gated=False)
    assert places(every)[-1] == (0, 1)
    assert every.signs.tolist() == [1] * 6


@settings(deadline=None)
@given(
    arrays.arrays(np.float64, (3, 5), elements=st.floats(-1, 1)), st.integers(1, 15), st.booleans()
)
def test_no_neuron_that_is_left_out_is_closer(cosines: np.ndarray, count: int, gated: bool) -> None:
    found = closest_value_vectors(cosines, count, gated=gated)
    assert len(set(places(found))) == count
    oriented = found.signs * cosines[found.layers, found.neurons]
    left = np.ones_like(cosines, dtype=bool)
    left[found.layers, found.neurons] = False
    rest = np.abs(cosines[left]) if gated else cosines[left]
    assert (np.diff(oriented) <= 0).all()
    assert not rest.size or oriented.min() >= rest.max()
    opposite = closest_value_vectors(-cosines, count, gated=True)
    if gated:
        assert places(opposite) == places(found)
        assert (opposite.signs == np.where(oriented == 0, found.signs, -found.signs)).all()


@pytest.mark.parametrize("count", [0, 7])
def test_more_neurons_than_there_are_are_refused(count: int) -> None:
    with pytest.raises(ShapeError, match=f"asked for {count}, expected 1 to 6"):
        closest_value_vectors(noise(2, 3), count, gated=False)
    with pytest.raises(ShapeError, match=f"asked for {count}, expected 1 to 6"):
        random_neurons(2, 3, count, seed=0)


def test_random_neurons_are_distinct_seeded_and_leave_out_others() -> None:
    first, again, other = (random_neurons(4, 50, 60, seed) for seed in (0, 0, 1))
    assert first.group == "random"
    assert places(first) == places(again) != places(other)
    assert len(set(places(first))) == 60
    assert first.signs.tolist() == [1] * 60
    rest = random_neurons(4, 50, 140, 5, group="other", exclude=first)
    assert rest.group == "other"
    assert set(places(rest)) | set(places(first)) == {(i, j) for i in range(4) for j in range(50)}
    with pytest.raises(ShapeError, match="asked for 141, expected 1 to 140"):
        random_neurons(4, 50, 141, 5, exclude=first)


def test_random_neurons_come_from_every_layer_alike() -> None:
    drawn = [random_neurons(4, 25, 10, seed).layers for seed in range(400)]
    counts = np.bincount(np.concatenate(drawn), minlength=4)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_random_neurons_take_the_sign_that_chosen_ones_may_take() -> None:
    cosines = np.array([[0.2, -0.9], [-0.5, 0.0]])
    every = group((0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1))
    assert oriented_to(every, cosines, gated=True).signs.tolist() == [1, -1, -1, 1]
    assert oriented_to(every, cosines, gated=False).signs.tolist() == [1, 1, 1, 1]


def test_oriented_rows_keep_the_order_of_the_group(
    case: tuple[str, PreTrainedModel, LensModel],
) -> None:
    _, model, lens = case
    chosen = group((1, 5, 1), (0, 3, -1), (1, 2, -1), (0, 40, 1))
    found = oriented_value_vectors(lens, chosen)
    expected = [
        sign * value_rows(model, layer)[neuron]
        for layer, neuron, sign in zip(chosen.layers, chosen.neurons, chosen.signs, strict=True)
    ]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.stack(expected))


# Singular vectors


def test_the_decomposition_is_that_of_unit_rows() -> None:
    rows = noise(12, 6) * np.arange(1, 13)[:, None]
    found = value_vector_svd(rows, noise(6, seed=1))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.linalg.svd(unit, compute_uv=False)
    assert found.singular_values == pytest.approx(values / np.sqrt(12), abs=1e-12)
    assert found.share == pytest.approx(found.singular_values**2, abs=1e-12)
    for direction, value in zip(found.directions, values, strict=True):
        assert unit.T @ unit @ direction == pytest.approx(value**2 * direction, abs=1e-10)


def test_a_planted_direction_is_found_whatever_sign_lapack_gives() -> None:
    planted = unit_rows(noise(24, seed=2))
    lengths = np.random.default_rng(3).uniform(0.1, 9, size=(40, 1))
    rows = lengths * (planted + 0.1 * noise(40, 24))
    probe = planted + 0.1 * noise(24, seed=4)
    for sign in (1, -1):
        found = value_vector_svd(rows, sign * probe)
        assert cosine(found.directions[0], sign * planted) > 0.99
        assert (found.cosines >= 0).all()
        assert found.cosines[0] == pytest.approx(cosine(found.directions[0], sign * probe))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), arrays.arrays(bool, 9))
def test_signs_and_lengths_of_the_rows_orient_nothing(seed: int, flips: np.ndarray) -> None:
    rows, probe = noise(9, 5, seed=seed), noise(5, seed=seed + 1)
    lengths = np.random.default_rng(seed).uniform(0.1, 9, size=9)
    first = value_vector_svd(rows, probe)
    other = value_vector_svd(rows * (np.where(flips, -1, 1) * lengths)[:, None], probe)
    assert other.singular_values == pytest.approx(first.singular_values, abs=1e-10)
    gap = np.abs(np.diff(first.singular_values**2)).min()
    sure = np.abs(first.cosines).min() > 1e-5 and gap > 1e-5
    if sure:
        assert other.directions == pytest.approx(first.directions, abs=1e-8)
        assert (first.cosines > 0).all()


def test_the_mean_row_orients_what_the_probe_cannot() -> None:
    rows = np.zeros((20, 8))
    rows[:, :3] = np.array([3.0, 2.0, 1.0]) + 0.1 * noise(20, 3)
    probe = np.eye(8)[7] + 1e-9 * np.eye(8)[0]
    for sign in (1, -1):
        found = value_vector_svd(sign * rows, probe)
        assert found.directions[0] @ (sign * rows.mean(axis=0)) > 0
        assert abs(found.cosines[0]) < 1e-6


def test_one_vector_is_no_group() -> None:
    with pytest.raises(ShapeError, match="at least 2"):
        value_vector_svd(noise(1, 4), noise(4))


# Tokens


def test_values_are_raw_unembedding_times_raw_rows(
    case: tuple[str, PreTrainedModel, LensModel],
) -> None:
    _, model, lens = case
    row = value_rows(model, 1)[4]
    (vector,) = oriented_value_vectors(lens, group((1, 4, 1)))
    head: Any = model.get_output_embeddings()
    W_U = head.weight.detach().double().numpy()
    table = tokens_promoted(lens, tiny_tokenizer(), vector, VOCABULARY)
    found = table[table["effect"] == "promoted"].set_index("token_id")["value"].sort_index()
    named = slice(0, len(tiny_tokenizer()))
    assert found.to_numpy() == pytest.approx((W_U @ row - (W_U @ row).mean())[named], abs=1e-10)
    # The fault that this excludes: the gain of the final norm folded into W_U alone.
    gain = backbone_parts(model)[1].weight.detach().double().numpy()
    folded = (W_U * gain) @ row
    assert not np.allclose(found.to_numpy(), (folded - folded.mean())[named], atol=0.1)


def test_many_vectors_at_once_give_what_each_gives(
    case: tuple[str, PreTrainedModel, LensModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, lens = case
    tokenizer, vectors = tiny_tokenizer(), noise(6, lens.d_model)
    words = frozenset({"the", "was", "went", "and", "he"})
    tables = [promoted_and_suppressed(lens, tokenizer, vector, 10) for vector in vectors]
    promoted = [table[table["effect"] == "promoted"] for table in tables]
    for rows in (7, 64, 10_000):
        monkeypatch.setattr(value_vectors, "_ROWS", rows)
        found = promoted_token_ids(lens, vectors, len(tokenizer), 10)
        assert found.tolist() == [list(table["token_id"]) for table in promoted]
        shares = promoted_share(lens, tokenizer, vectors, words)
        assert shares.tolist() == [listed_share(table["token"], words) for table in promoted]
    assert 0 < shares.max() < 1


def test_equal_logits_come_in_the_order_of_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).integers(0, 4, size=600)
    lens: Any = SimpleNamespace(W_U=torch.from_numpy(logits[None].astype(float)))
    expected = sorted(range(600), key=lambda token: (-logits[token], token))[:200]
    for rows in (16, 10_000):
        monkeypatch.setattr(value_vectors, "_ROWS", rows)
        assert promoted_token_ids(lens, np.ones((1, 1)), 600, 200).tolist() == [expected]


@pytest.mark.parametrize("rows", [7, 10_000])
def test_columns_that_pad_the_unembedding_take_no_places(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = tiny_tokenizer(), random_model(tie_word_embeddings=False)
    head: Any = model.get_output_embeddings()
    vector = noise(head.weight.shape[1])
    padded = range(len(tokenizer), VOCABULARY)
    assert len(padded) == 4
    with torch.no_grad():
        head.weight[padded] = 9 * torch.from_numpy(vector).to(head.weight.dtype)
    lens = load_lens_model(model, self_check=False)
    monkeypatch.setattr(value_vectors, "_ROWS", rows)
    by_hand = np.argsort(-(head.weight.detach().double().numpy() @ vector))
    assert set(by_hand[:4]) == set(padded)  # what would come first
    (ids,) = promoted_token_ids(lens, vector[None], len(tokenizer), 10)
    assert ids.tolist() == by_hand[4:14].tolist()
    # A tokenizer that names more than the model has changes nothing.
    assert promoted_token_ids(lens, vector[None], 999, 10).tolist() == [by_hand[:10].tolist()]
    words = frozenset(str(tokenizer.decode([i])).strip().casefold() for i in ids)
    table = tokens_promoted(lens, tokenizer, vector, 10, words=words)
    promoted = table[table["effect"] == "promoted"]
    assert promoted["token_id"].tolist() == ids.tolist()
    (share,) = promoted_share(lens, tokenizer, vector[None], words)
    assert share == promoted["listed"].mean()
    assert share == np.mean([is_listed(str(tokenizer.decode([i])), words) for i in ids])
    assert share > 0.6


@pytest.mark.parametrize(
    ("token", "listed"),
    [
        (" hurt", True),
        ("hurt", True),
        (" Hurt\n", True),
        ("HURT", True),
        ("\u00a0hurt", True),
        ("hur", False),
        (" hurts", False),
        ("hurt!", False),
        ("", False),
        (" ", False),
        ("!", False),
        (":(", False),
        ("straße", True),
        ("STRASSE", True),
    ],
)
def test_only_whole_words_are_listed(token: str, listed: bool) -> None:
    assert is_listed(token, frozenset({"hurt", "!", ":(", "", "strasse"})) == listed


def test_the_share_counts_every_token() -> None:
    assert listed_share([" hurt", "!", "ing", " sad"], frozenset({"hurt", "sad"})) == 0.5
    assert np.isnan(listed_share([], frozenset({"hurt"})))


# Tables


@pytest.fixture(scope="module")
def planted() -> tuple[LensModel, np.ndarray, frozenset[str]]:
    """A GPT-2 whose first eight neurons of layer 1 promote six words, and a probe along them."""
    model = random_model("gpt2", tie_word_embeddings=False)
    tokenizer = tiny_tokenizer()
    ids = [i for i in range(VOCABULARY) if len(tokenizer.decode([i]).strip()) >= 3][:6]
    words = frozenset(tokenizer.decode([i]).strip().casefold() for i in ids)
    head: Any = model.get_output_embeddings()
    probe = head.weight.detach()[ids].mean(0)
    mlp: Any = backbone_parts(model)[0][1].mlp
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        spread = torch.randn(8, probe.numel(), generator=generator)
        mlp.c_proj.weight[:8] = probe + 0.1 * probe.norm() * spread / probe.numel() ** 0.5
    return load_lens_model(model, self_check=False), probe.double().numpy(), words


def test_planted_value_vectors_are_found_and_beat_their_controls(
    planted: tuple[LensModel, np.ndarray, frozenset[str]],
) -> None:
    lens, probe, words = planted
    neurons = closest_value_vectors(probe_cosines(lens, probe), 8, gated=False)
    assert sorted(places(neurons)) == [(1, i) for i in range(8)]
    table = value_vector_table(
        lens, tiny_tokenizer(), probe, noise(lens.d_model), neurons, words, seed=0
    )
    assert list(table.columns) == [
        *("group", "rank", "layer", "neuron", "sign", "cosine", "norm", "listed_share")
    ]
    shares = table.groupby("group")["listed_share"].mean()
    assert shares["attribute"] > 0.4 > 0.2 > shares["random"]  # six words: 0.6 at most
    assert shares["shuffled_probe"] < 0.2
    attribute, random, shuffled = (
        table[table["group"] == name] for name in ("attribute", "random", "shuffled_probe")
    )
    for part in (attribute, random, shuffled):
        assert list(part["rank"]) == list(range(1, 9))
    found = set(zip(random["layer"], random["neuron"], strict=True))
    assert not found & set(places(neurons))
    # Choosing makes cosines high for nothing: the control shows it.
    assert shuffled["cosine"].min() > random["cosine"].mean() + 0.1
    tokens = token_table(lens, tiny_tokenizer(), probe, neurons, words, seed=0)
    best = tokens[(tokens["vector"] == "SVD.U[0]") & (tokens["effect"] == "promoted")]
    assert best.sort_values("rank")["listed"].iloc[:3].all()
    assert best["cosine"].iloc[0] > 0.98


def test_rows_of_the_tables_are_what_they_say(llama: LensModel) -> None:
    tokenizer, words = tiny_tokenizer(), frozenset({"the", "was", "he"})
    probe, shuffled = 7 * noise(llama.d_model), noise(llama.d_model, seed=1)
    cosines = probe_cosines(llama, probe)
    neurons = closest_value_vectors(cosines, 20, gated=True)
    assert set(neurons.signs.tolist()) == {1, -1}
    table = value_vector_table(llama, tokenizer, probe, shuffled, neurons, words, seed=3)
    plain = random_model()
    for row in table.itertuples():
        vector = row.sign * value_rows(plain, row.layer)[row.neuron]
        own = shuffled if row.group == "shuffled_probe" else probe
        assert row.cosine == pytest.approx(cosine(vector, own), abs=1e-12)
        assert row.norm == pytest.approx(np.linalg.norm(vector))
        promoted = tokens_promoted(llama, tokenizer, vector, 10, words=words)
        share = promoted[promoted["effect"] == "promoted"]["listed"].mean()
        assert row.listed_share == pytest.approx(share)
    # In a gated model the control may take the better sign too.
    assert (table["cosine"] >= 0).all()
    tokens = token_table(llama, tokenizer, probe, neurons, words, seed=3)
    random = table[table["group"] == "random"].iloc[0]
    drawn = tokens[tokens["vector"] == "random_value_vector"]
    assert set(drawn["layer"]) == {random["layer"]} and set(drawn["neuron"]) == {random["neuron"]}
    assert drawn["cosine"].iloc[0] == pytest.approx(random["cosine"])
    again = random_group(llama, neurons, cosines, 3).first(1)
    assert places(again) == [(random["layer"], random["neuron"])]


def test_the_table_of_tokens_has_every_vector_at_unit_length(llama: LensModel) -> None:
    tokenizer, words = tiny_tokenizer(), frozenset({"the", "was", "he"})
    probe = 7 * noise(llama.d_model)
    neurons = closest_value_vectors(probe_cosines(llama, probe), 20, gated=True)
    table = token_table(llama, tokenizer, probe, neurons, words, seed=3)
    assert list(table.columns) == [
        *("vector", "kind", "effect", "rank", "token_id", "token", "value", "listed"),
        *("cosine", "layer", "neuron"),
    ]
    names = [value_vector_name(layer, neuron) for layer, neuron in places(neurons.first(4))]
    single = [f"SVD.U[{place}]" for place in range(3)]
    assert list(dict.fromkeys(table["vector"])) == [
        *("probe", *names, *single, "random_value_vector", "random")
    ]
    kinds = table.drop_duplicates("vector")["kind"]
    assert list(kinds) == ["probe"] + ["value_vector"] * 4 + ["svd"] * 3 + ["random"] * 2
    assert (table.groupby(["vector", "effect"])["rank"].count() == 12).all()
    assert table["listed"].dtype == bool
    vector = oriented_value_vectors(llama, neurons.first(1))[0]
    expected = promoted_and_suppressed(llama, tokenizer, vector / np.linalg.norm(vector))
    here = table[table["vector"] == names[0]].reset_index(drop=True)
    pd.testing.assert_frame_equal(here[list(expected.columns)], expected)
    assert here["cosine"].iloc[0] == pytest.approx(cosine(vector, probe), abs=1e-12)
    assert set(here["layer"]) == {int(neurons.layers[0])}
    assert table[table["vector"] == "probe"]["cosine"].iloc[0] == pytest.approx(1)
    assert (table[table["kind"].isin(["probe", "svd"])]["layer"] == -1).all()


def test_the_table_of_components_has_both_groups_and_a_probe_of_nothing(llama: LensModel) -> None:
    tokenizer, words = tiny_tokenizer(), frozenset({"the", "was", "he"})
    probe, shuffled = noise(llama.d_model), noise(llama.d_model, seed=1)
    neurons = closest_value_vectors(probe_cosines(llama, probe), 20, gated=True)
    table = svd_table(llama, tokenizer, probe, neurons, words, 3)
    assert list(table.columns) == [
        *("group", "component", "singular_value", "share", "cosine", "listed_share")
    ]
    assert list(table["group"]) == ["attribute"] * 16 + ["random"] * 16
    assert list(table["component"]) == [*range(16)] * 2
    first = value_vector_svd(oriented_value_vectors(llama, neurons), probe)
    assert list(table["singular_value"][:16]) == first.singular_values[:16].tolist()
    assert list(table["cosine"][:16]) == first.cosines[:16].tolist()
    assert (table["cosine"] >= -1e-6).all()
    expected = promoted_share(llama, tokenizer, first.directions[:16], words)
    assert list(table["listed_share"][:16]) == expected.tolist()
    # Vectors chosen along any direction have a first component along it.
    more = svd_table(llama, tokenizer, probe, neurons, words, 3, shuffled_direction=shuffled)
    pd.testing.assert_frame_equal(more[:32], table)
    tops = more[more["component"] == 0].set_index("group")["cosine"]
    assert min(tops["attribute"], tops["shuffled_probe"]) > max(0.6, 2 * tops["random"])
    few = svd_table(llama, tokenizer, probe, neurons.first(5), words, 3)
    assert (few.groupby("group")["component"].count() == 5).all()


def test_a_pretrained_model_speaks_along_its_words(stories_pair: ModelPair) -> None:
    lens, tokenizer = stories_pair.base, stories_pair.tokenizer
    words = frozenset({"he", "she", "they", "we", "you", "it", "his", "her", "my"})
    ids = [i for i in range(lens.d_vocab) if is_listed(str(tokenizer.decode([i])), words)]
    assert len(ids) >= 9
    W_U = lens.W_U.double().numpy()
    probe = W_U[:, ids].mean(axis=1) - W_U.mean(axis=1)
    others = np.random.default_rng(0).choice(lens.d_vocab, size=len(ids), replace=False)
    shuffled = W_U[:, others].mean(axis=1) - W_U.mean(axis=1)
    neurons = closest_value_vectors(probe_cosines(lens, probe), 32, gated=lens.gated_mlp)
    first, again = (
        value_vector_table(lens, tokenizer, probe, shuffled, neurons, words, seed=0)
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(first, again)
    shares = first.groupby("group")["listed_share"].mean()
    assert shares["attribute"] > 2 * shares["random"]
    assert shares["attribute"] > 2 * shares["shuffled_probe"]
    tokens, tokens_again = (
        token_table(lens, tokenizer, probe, neurons, words, seed=0) for _ in range(2)
    )
    pd.testing.assert_frame_equal(tokens, tokens_again)
    top = tokens[(tokens["rank"] <= len(ids)) & (tokens["effect"] == "promoted")]
    listed = top.groupby("vector", sort=False)["listed"].mean()
    assert listed.index[1] == value_vector_name(*places(neurons)[0])
    assert listed.iloc[1] > 0.4 > 0.2 > listed["random"]
    components = svd_table(lens, tokenizer, probe, neurons, words, 0)
    best = components[components["component"] == 0].set_index("group")
    assert best["cosine"]["attribute"] > 0.7 > best["cosine"]["random"]
