"""The exact terms of the margin against plain transformers in float64 and planted changes."""

from __future__ import annotations

import copy
import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import PreTrainedModel

from dsteer_tl.attribution import margin_terms as core
from dsteer_tl.attribution.margin_ledger import (
    ResponseStates,
    changed_rows,
    norm_readout,
    read_responses,
)
from dsteer_tl.attribution.margin_terms import TERMS, ChangedRows, margin_terms, shapley
from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.controls import random_direction
from dsteer_tl.errors import HookError, ShapeError
from dsteer_tl.measurements import MeasurementConfiguration
from dsteer_tl.measurements.margin_tables import SCOPES, margin_pairs, margin_tables
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences import EncodedPair
from tests.models import ARCHITECTURES, backbone_parts, policy_of, random_model, tiny_tokenizer
from tests.test_pair import make_adapter
from tests.tiny_pairs import encoded_pairs, probes, tiny_pair

#: RMSNorm, LayerNorm with biases, soft-capping with gains 1 + γ, b_U, norms after attention.
NORMS = ("llama", "gpt2", "gemma2", "phi", "neox", "olmo2")
SITE = "resid_post.1"
QUICK = MeasurementConfiguration(draws=40, token_budget=256)

Pair = tuple[ModelPair, PreTrainedModel, PreTrainedModel]


@torch.no_grad()
def everything_moved(base: PreTrainedModel, scale: float = 0.05) -> PreTrainedModel:
    """A policy whose every weight differs: blocks, final norm and unembedding."""
    policy = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(3)
    for _, parameter in sorted(policy.named_parameters()):
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))
    return policy


def hooked(base: PreTrainedModel, policy: PreTrainedModel) -> Pair:
    """Both in float64, hooked, with plain copies beside them."""
    base, policy = base.double(), policy.double()
    pair = ModelPair.load(
        copy.deepcopy(base), copy.deepcopy(policy), tokenizer=tiny_tokenizer(), self_check=False
    )
    return pair, base, policy


@cache
def moved_pair(architecture: str) -> Pair:
    base = random_model(architecture)
    return hooked(base, everything_moved(base))


def states_of(pair: ModelPair) -> ResponseStates:
    return read_responses(pair, encoded_pairs(), (SITE, "h"), token_budget=200, progress=False)


def split(pair: ModelPair, direction: np.ndarray, **options: Any) -> tuple[ResponseStates, Any]:
    states = states_of(pair)
    base = norm_readout(pair.base, states, "base")
    policy = norm_readout(pair.policy, states, "policy")
    half = np.zeros(len(states.pair), dtype=int)
    rows = changed_rows(states, SITE, base, policy, direction[None], half)
    return states, margin_terms(rows, base, policy, **options)


@torch.no_grad()
def plain_log_probability(model: PreTrainedModel, prompt: Any, completion: Any) -> np.ndarray:
    logits = model(torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return rows.gather(1, torch.tensor(completion)[:, None])[:, 0].numpy()


def plain_change(base: PreTrainedModel, policy: PreTrainedModel) -> np.ndarray:
    """Change of ln p of every token, by pair, side and offset."""
    return np.concatenate(
        [
            plain_log_probability(policy, item.prompt_ids, ids)
            - plain_log_probability(base, item.prompt_ids, ids)
            for item in encoded_pairs()
            for ids in (item.chosen_ids, item.rejected_ids)
        ]
    )


@pytest.mark.parametrize("architecture", NORMS)
def test_terms_sum_to_the_change_of_plain_transformers(architecture: str) -> None:
    pair, base, policy = moved_pair(architecture)
    states, found = split(pair, random_direction(32, 5))
    expected = plain_change(base, policy)
    # Norms of transformers compute in float32, rotary embeddings too.
    size = 1e-5 * np.abs(expected).max()
    assert size > 1e-6
    np.testing.assert_allclose(found.terms.sum(axis=0), expected, rtol=0, atol=size)
    change = states.log_probabilities["policy"] - states.log_probabilities["base"]
    np.testing.assert_allclose(change, expected, rtol=0, atol=size)
    if architecture == "gpt2":
        np.testing.assert_allclose(found.terms.sum(axis=0), expected, rtol=0, atol=1e-10)
    # Every term has something to say.
    assert (np.abs(found.terms).mean(axis=1) > 1e-4).all()


@torch.no_grad()
def naive_corners(
    base: PreTrainedModel, policy: PreTrainedModel, direction: np.ndarray, row: int
) -> np.ndarray:
    """The 16 combinations at one token of the first chosen response, norm written out."""
    item = encoded_pairs()[0]
    ids = torch.tensor([[*item.prompt_ids, *item.chosen_ids]])
    kept = []
    for model in (base, policy):
        _, norm, _ = backbone_parts(model)
        hook = norm.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0][0]))
        model(ids, use_cache=False)
        hook.remove()
    at = len(item.prompt_ids) - 1 + row
    first, second = (x[at].numpy() for x in kept)
    layered = isinstance(backbone_parts(base)[1], torch.nn.LayerNorm)
    along = ((second - first) @ direction) * direction

    def scale(x: np.ndarray) -> float:
        x = x - x.mean() if layered else x
        return float(np.sqrt(np.mean(x * x) + (1e-5 if layered else 1e-6)))

    values = []
    for corner in range(16):
        x = first + bool(corner & 1) * along + bool(corner & 2) * (second - first - along)
        model = policy if corner & 8 else base
        _, norm, head = backbone_parts(model)
        x = (x - x.mean() if layered else x) / scale(second if corner & 4 else first)
        h = x * norm.weight.numpy() + (norm.bias.numpy() if layered else 0.0)
        logits = torch.tensor(h @ head.weight.numpy().T)
        values.append(float(logits.log_softmax(-1)[item.chosen_ids[row]]))
    return np.array(values)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_terms_are_shapley_values_of_the_norm_written_out(architecture: str) -> None:
    pair, base, policy = moved_pair(architecture)
    direction = random_direction(32, 6)
    _, found = split(pair, direction)
    for row in (0, 3):
        values = naive_corners(base, policy, direction, row)
        expected = orders(values)
        size = np.abs(values[15] - values[0])
        np.testing.assert_allclose(found.terms[:, row], expected, rtol=0, atol=1e-5 * size)


def orders(values: np.ndarray) -> np.ndarray:
    """Mean gain of each player over all orders, one by one."""
    found = np.zeros(4)
    everyone = list(itertools.permutations(range(4)))
    for order in everyone:
        there = 0
        for player in order:
            found[player] += values[there | 1 << player] - values[there]
            there |= 1 << player
    return found / len(everyone)


worths = arrays(np.float64, 16, elements=st.floats(-10, 10))


@given(worths)
def test_shapley_is_the_mean_over_orders_and_sums_to_the_whole(values: np.ndarray) -> None:
    found = shapley(values[:, None])[:, 0]
    np.testing.assert_allclose(found, orders(values), atol=1e-9)
    assert found.sum() == pytest.approx(values[15] - values[0], abs=1e-9)


@given(worths, st.integers(0, 3), st.integers(0, 3))
def test_shapley_treats_players_alike(values: np.ndarray, one: int, two: int) -> None:
    def swapped(coalition: int) -> int:
        bits = [bool(coalition & 1 << player) for player in range(4)]
        bits[one], bits[two] = bits[two], bits[one]
        return sum(bit << player for player, bit in enumerate(bits))

    found = shapley(values[:, None])[:, 0]
    other = shapley(values[[swapped(coalition) for coalition in range(16)], None])[:, 0]
    expected = found.copy()
    expected[[one, two]] = found[[two, one]]
    np.testing.assert_allclose(other, expected, atol=1e-9)


def test_shapley_needs_sixteen_coalitions() -> None:
    with pytest.raises(ShapeError, match="found 8 coalitions, expected the 16"):
        shapley(np.zeros((8, 1)))


def only(found: Any, *names: str) -> None:
    """All of the change belongs to these terms."""
    assert np.abs(found.terms.sum(axis=0)).max() > 1e-3
    for name, term in zip(TERMS, found.terms, strict=True):
        size = float(np.abs(term).max())
        assert size > 1e-4 if name in names else size < 1e-5, name


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_changed_gain_is_readout_alone(architecture: str) -> None:
    base = random_model(architecture)
    policy = copy.deepcopy(base)
    with torch.no_grad():
        backbone_parts(policy)[1].weight.mul_(1.2).add_(torch.tensor(random_direction(32, 8)))
    only(split(hooked(base, policy)[0], random_direction(32, 0))[1], "readout")


@pytest.mark.parametrize(("architecture", "part"), [("gpt2", 1), ("phi", 1), ("phi", 2)])
def test_a_changed_bias_of_the_norm_or_of_the_logits_is_readout_alone(
    architecture: str, part: int
) -> None:
    base = random_model(architecture)
    policy = copy.deepcopy(base)
    with torch.no_grad():
        bias = backbone_parts(policy)[part].bias
        bias.add_(torch.tensor(2 * random_direction(len(bias), 8)))
    only(split(hooked(base, policy)[0], random_direction(32, 0))[1], "readout")


def test_a_changed_epsilon_is_scale_alone() -> None:
    base = random_model("llama")
    policy = copy.deepcopy(base)
    backbone_parts(policy)[1].variance_epsilon = 3.0
    pair = ModelPair.load(
        copy.deepcopy(base).double(),
        policy.double(),
        tokenizer=tiny_tokenizer(),
        self_check=False,
    )
    only(split(pair, random_direction(32, 0))[1], "scale")


def planted_bias() -> tuple[ModelPair, np.ndarray]:
    """A policy that adds one vector to every state at the end of the last block."""
    base = random_model("gpt2")
    policy = copy.deepcopy(base)
    vector = 2.0 * torch.tensor(random_direction(32, 1))
    with torch.no_grad():
        backbone_parts(policy)[0][-1].mlp.c_proj.bias.add_(vector)
    return hooked(base, policy)[0], vector.numpy()


def test_a_constant_vector_is_along_it_and_scale_alone() -> None:
    pair, vector = planted_bias()
    unit = vector / np.linalg.norm(vector)
    only(split(pair, unit)[1], "along", "scale")
    beside = np.zeros(32)
    beside[:2] = unit[1], -unit[0]
    only(split(pair, beside / np.linalg.norm(beside))[1], "off", "scale")


def test_nothing_moved_gives_nothing() -> None:
    base = random_model("llama")
    _, found = split(hooked(base, copy.deepcopy(base))[0], random_direction(32, 0))
    assert not found.terms.any()


def test_random_directions_are_split_as_the_direction_is() -> None:
    pair, *_ = moved_pair("gemma2")
    direction = random_direction(32, 2)
    _, found = split(pair, direction, random=np.stack([direction, random_direction(32, 3)]))
    np.testing.assert_allclose(found.random[0], found.terms[:2], atol=1e-4)
    np.testing.assert_allclose(found.equal[0, 0], found.terms[0], atol=1e-4)
    assert np.abs(found.random[1] - found.terms[:2]).max() > 1e-2
    _, other = split(pair, random_direction(32, 3))
    np.testing.assert_allclose(found.random[1], other.terms[:2], atol=1e-4)


def test_a_random_movement_has_the_length_of_the_one_it_replaces() -> None:
    """With a policy that moves along u alone, a movement along u in its place changes nothing."""
    pair, vector = planted_bias()
    unit = vector / np.linalg.norm(vector)
    beside = np.zeros(32)
    beside[:2] = unit[1], -unit[0]
    _, found = split(pair, beside / np.linalg.norm(beside), random=unit[None])
    np.testing.assert_allclose(found.equal[0, 1], found.terms[1], atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_blocks_change_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, *_ = moved_pair(architecture)
    directions = random_direction(32, 1), random_direction(32, 2)[None]
    whole = split(pair, directions[0], random=directions[1])[1]
    # 45 of 160 tokens and 30 rows at a time.
    monkeypatch.setattr(core, "_BLOCK_WEIGHTS", 45 * 32)
    monkeypatch.setattr(core, "_BLOCK_LOGITS", 45 * 30)
    parts = split(pair, directions[0], random=directions[1])[1]
    np.testing.assert_allclose(parts.terms, whole.terms, atol=1e-12)
    np.testing.assert_allclose(parts.random, whole.random, atol=1e-4)


def test_rows_come_by_pair_side_and_offset_whatever_the_batches() -> None:
    pair = moved_pair("llama")[0]
    one, two = (
        read_responses(pair, encoded_pairs(), (SITE,), token_budget=budget, progress=False)
        for budget in (40, 4000)
    )
    for field in ("pair", "side", "offset", "place", "tokens"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    np.testing.assert_allclose(one.shift(SITE), two.shift(SITE), atol=1e-4)
    expected = [
        (index, side, offset, token)
        for index, item in enumerate(encoded_pairs())
        for side, ids in enumerate((item.chosen_ids, item.rejected_ids))
        for offset, token in enumerate(ids)
    ]
    found = zip(
        *(getattr(one, f).tolist() for f in ("pair", "side", "offset", "tokens")), strict=True
    )
    assert list(found) == expected


def test_places_are_shared_divergence_and_later() -> None:
    items = [EncodedPair((5, 6), (7, 8, 9, 9), (7, 3)), EncodedPair((5,), (7, 8), (7, 8, 9))]
    states = read_responses(moved_pair("llama")[0], items, ("h",), token_budget=99, progress=False)
    by = {
        (pair, side): states.place[(states.pair == pair) & (states.side == side)].tolist()
        for pair in (0, 1)
        for side in (0, 1)
    }
    assert by == {(0, 0): [0, 1, 2, 2], (0, 1): [0, 1], (1, 0): [0, 0], (1, 1): [0, 0, 2]}


def test_no_completion_is_refused() -> None:
    with pytest.raises(ShapeError, match="1 pairs have no token in their completions"):
        read_responses(moved_pair("llama")[0], [EncodedPair((1,), (), ())], ("h",), token_budget=9)


def test_rows_that_do_not_match_are_refused() -> None:
    rows = torch.zeros(3, 4)
    with pytest.raises(ShapeError, match=r"found 3 rows of the base and .*'half': 2"):
        ChangedRows(
            base=rows,
            policy=rows,
            base_scale=rows[:, 0],
            policy_scale=rows[:, 0],
            tokens=torch.zeros(3).long(),
            directions=rows[:1],
            half=torch.zeros(2).long(),
        )


def test_an_end_that_cannot_be_rebuilt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair("qwen2")
    states = states_of(pair)
    norm_readout(pair.base, states, "base")
    with monkeypatch.context() as patch:
        patch.setattr(type(pair.base), "norm_parameters", {"weight": torch.ones(32)})
        with pytest.raises(HookError, match=r"final norm of base .* is off by 0\.\d+ of h"):
            norm_readout(pair.base, states, "base")
    wrong = pair.base.readout.to(dtype=torch.float32)
    object.__setattr__(wrong, "scale", 1.01)
    monkeypatch.setattr(pair.base, "readout", wrong)
    with pytest.raises(HookError, match=r"logits of base .* are off by 0\.0\d+ of their size"):
        norm_readout(pair.base, states, "base")


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - set(NORMS)))
def test_every_architecture_can_be_rebuilt_in_float32(architecture: str) -> None:
    states, found = split(tiny_pair(architecture), random_direction(32, 0))
    change = states.log_probabilities["policy"] - states.log_probabilities["base"]
    np.testing.assert_allclose(found.terms.sum(axis=0), change, atol=1e-4)


def test_an_adapter_on_and_off_is_a_pair(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    base = random_model()
    merged = make_adapter(base, folder)
    pair = ModelPair.from_adapter(copy.deepcopy(base), folder, tokenizer=tiny_tokenizer())
    _, found = split(pair, random_direction(32, 0))
    expected = plain_change(base, merged)
    np.testing.assert_allclose(found.terms.sum(axis=0), expected, atol=1e-3)
    assert not found.terms[3].any()


@cache
def captured(architecture: str) -> tuple[ModelPair, ShiftSet]:
    pair = moved_pair(architecture)[0]
    quiet = CaptureConfiguration(progress=False)
    return pair, capture_shifts(pair, probes(), configuration=quiet)


@cache
def both_tables(architecture: str) -> dict[str, Any]:
    pair, shift_set = captured(architecture)
    return margin_tables(pair, shift_set, encoded_pairs(), QUICK, progress=False)


def test_the_tables_hold_the_margin_of_plain_transformers() -> None:
    _, base, policy = moved_pair("gpt2")
    found = both_tables("gpt2")
    ledger, terms = found["margin_ledger"], found["margin_terms"].set_index(["scope", "term"])
    np.testing.assert_allclose(ledger["total"], plain_change(base, policy), atol=1e-6)
    assert ledger["error"].abs().max() < 1e-6
    np.testing.assert_allclose(ledger[list(TERMS)].sum(axis=1), ledger["total"], atol=1e-12)
    margins = []
    for item in encoded_pairs():
        chosen, rejected = (
            plain_log_probability(policy, item.prompt_ids, ids).sum()
            - plain_log_probability(base, item.prompt_ids, ids).sum()
            for ids in (item.chosen_ids, item.rejected_ids)
        )
        margins.append(chosen - rejected)
    assert terms.loc[("response", "total"), "value"] == pytest.approx(np.mean(margins), abs=1e-6)
    for term in (*TERMS, "total"):
        parts = [terms.loc[(scope, term), "value"] for scope in ("divergence", "later")]
        # Shared tokens have the same terms on both sides.
        assert terms.loc[("response", term), "value"] == pytest.approx(sum(parts), abs=1e-6)
    for scope in SCOPES:
        shares = terms.loc[scope]["share"]
        assert shares[list(TERMS)].sum() == pytest.approx(1.0) == shares["total"]
    assert (terms["low"] <= terms["value"]).all()
    assert (terms["value"] <= terms["high"]).all()
    nulls = terms["null"].unstack()
    assert nulls[["along", "off"]].notna().all().all()
    assert nulls[["scale", "readout", "total"]].isna().all().all()
    assert (terms["n"] == len(encoded_pairs())).all()
    # Two pairs a place have different verbs: every prompt is its own.
    assert ledger["prompt"].nunique() == 8


def test_columns_and_seeds() -> None:
    found = both_tables("gpt2")
    assert list(found["margin_ledger"].columns) == [
        *("pair", "prompt", "side", "offset", "place", "token_id", "token"),
        *("along", "off", "scale", "readout", "total", "error"),
    ]
    assert list(found["margin_terms"].columns) == [
        *("scope", "term", "value", "low", "high", "share", "share_low", "share_high"),
        *("null", "null_low", "null_high"),
        *("null_equal", "null_equal_low", "null_equal_high", "n"),
    ]
    pair, shift_set = captured("gpt2")
    again = margin_tables(pair, shift_set, encoded_pairs(), QUICK, progress=False)
    for name, table in found.items():
        assert table.equals(again[name])


def test_policies_that_only_move_their_blocks_have_no_readout_term() -> None:
    base = random_model("llama")
    pair = hooked(base, policy_of(base, scale=0.05))[0]
    shift_set = capture_shifts(pair, probes(), configuration=CaptureConfiguration(progress=False))
    found = margin_tables(pair, shift_set, encoded_pairs(), QUICK, progress=False)
    terms = found["margin_terms"].set_index(["scope", "term"])["value"]
    assert terms[("response", "readout")] == 0
    assert abs(terms[("response", "off")]) > 1e-3


@settings(max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 6))
def test_pairs_are_taken_from_the_first_on_as_long_as_they_are_cheap(
    lengths: list[int], fewest: int
) -> None:
    items = [EncodedPair((1,), (2,) * length, (3,) * length) for length in lengths]
    d_vocab = 2**28 // 60
    found = margin_pairs(items, d_vocab, MeasurementConfiguration(gradient_pairs=fewest))
    assert found >= min(fewest, len(items))
    if found > fewest:
        assert 2 * sum(lengths[:found]) * d_vocab <= 2**28
    if fewest <= found < len(items):
        assert 2 * sum(lengths[: found + 1]) * d_vocab > 2**28
