from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dsteer_tl.errors import DataError, HookError, ShapeError
from dsteer_tl.lens_model import load_lens_model
from dsteer_tl.toxicity import component_reading
from dsteer_tl.toxicity.component_reading import (
    GENERATED,
    LAST_PROMPT,
    RESPONSE,
    ComponentBatch,
    continuation_probes,
    double_precision,
    read_components,
)
from tests.models import random_model
from tests.toxicity.plain_components import (
    CONTINUATIONS,
    PROMPTS,
    SEQUENCES,
    models_of,
    plain_components,
)

PLACES = ("resid_pre.0", "resid_mid.1", "attn_out.0", "mlp_post.0", "mlp_post.1", "resid_post.1")


def test_positions_of_a_prompt_and_its_continuation():
    (probe,) = continuation_probes([(5, 6, 7)], [(8, 9, 10)])
    assert probe.ids == (5, 6, 7, 8, 9, 10)
    # Three tokens are written: after the prompt's last, and after each but the last of its own.
    assert probe.positions == {GENERATED: (2, 3, 4), LAST_PROMPT: (2,), RESPONSE: (3, 4)}


@pytest.mark.parametrize("continuation", [(), (8,)])
def test_continuations_without_a_next_token_have_no_response_rows(continuation: tuple[int, ...]):
    (probe,) = continuation_probes([(5, 6)], [continuation])
    assert probe.positions == {GENERATED: (1,), LAST_PROMPT: (1,), RESPONSE: ()}


def test_detail_is_capped_evenly_and_the_generated_positions_are_not():
    probes = continuation_probes(
        [(1, 2)] * 9, [tuple(range(12))] * 9, response_limit=3, detailed_prompts=3
    )
    assert [index for index, probe in enumerate(probes) if LAST_PROMPT in probe.positions] == [
        0,
        4,
        8,
    ]
    assert probes[4].positions[RESPONSE] == (2, 7, 12)
    assert all(len(probe.positions[GENERATED]) == 12 for probe in probes)


def test_texts_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="2 prompts and 1 continuations"):
        continuation_probes([(1,), (2,)], [(3,)])
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        continuation_probes([(1,), ()], [(3,), (4,)])


def read(token_budget: int = 4096, architecture: str = "gpt2") -> list[ComponentBatch]:
    pair = models_of(architecture)
    return list(
        read_components(
            {"base": pair.lens_base, "policy": pair.lens_policy},
            continuation_probes(PROMPTS, CONTINUATIONS, response_limit=2),
            {"base": PLACES, "policy": PLACES[1:2]},
            token_budget=token_budget,
            progress=False,
        )
    )


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "llama"])
def test_rows_are_what_plain_transformers_computes_at_those_tokens(architecture: str):
    pair = models_of(architecture)
    base = plain_components(pair.base, SEQUENCES)
    policy = plain_components(pair.policy, SEQUENCES)
    seen = []
    for batch in read(token_budget=12, architecture=architecture):
        where = list(zip(batch.prompts.tolist(), batch.positions.tolist(), strict=True))
        seen += where
        for place in PLACES:
            expected = np.stack([base[prompt].at(place)[position] for prompt, position in where])
            np.testing.assert_allclose(batch.states["base"][place], expected, atol=2e-4)
        expected = np.stack([policy[prompt].at(PLACES[1])[position] for prompt, position in where])
        np.testing.assert_allclose(batch.states["policy"][PLACES[1]], expected, atol=2e-4)
    # Every token that was written, once.
    written = [max(len(continuation), 1) for continuation in CONTINUATIONS]
    assert sorted(seen) == [
        (prompt, len(PROMPTS[prompt]) - 1 + step)
        for prompt, count in enumerate(written)
        for step in range(count)
    ]


def test_kinds_pick_their_rows():
    (batch,) = read()
    for kind, expected in (
        (LAST_PROMPT, {(i, len(prompt) - 1) for i, prompt in enumerate(PROMPTS)}),
        # Two of the three, none, two of five, none, both, two of four.
        (RESPONSE, {(0, 3), (0, 5), (2, 5), (2, 9), (4, 4), (4, 5), (5, 3), (5, 6)}),
    ):
        rows = batch.rows(kind)
        assert set(zip(batch.prompts[rows], batch.positions[rows], strict=True)) == expected
        place = batch.at("base", "mlp_post.1", kind)
        torch.testing.assert_close(place, batch.states["base"]["mlp_post.1"][torch.tensor(rows)])
    assert len(batch.rows("no_such_kind")) == 0


def test_what_is_gathered_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch):
    (whole,) = read()
    width = sum(tensor.shape[1] for model in whole.states.values() for tensor in model.values())
    most = 7
    monkeypatch.setattr(component_reading, "_GATHERED", most * width)
    parts = read()
    assert len(parts) > 1 and all(len(part.prompts) <= most for part in parts)
    # All rows of a prompt stay together.
    prompts = [set(part.prompts.tolist()) for part in parts]
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == len(PROMPTS)
    joined = np.concatenate([part.states["base"]["mlp_post.1"] for part in parts])
    np.testing.assert_allclose(joined, whole.states["base"]["mlp_post.1"], atol=2e-5)


def test_a_limit_below_one_prompt_still_reads_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(component_reading, "_GATHERED", 1)
    assert [len(set(part.prompts.tolist())) for part in read()] == [1] * len(PROMPTS)


def test_damaged_states_and_overlong_texts_are_refused():
    broken = random_model("llama", seed=3)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[3] = 3e38  # overflows in the sum
    lens = load_lens_model(copy.deepcopy(broken), self_check=False)
    probes = continuation_probes(PROMPTS, CONTINUATIONS)
    with pytest.raises(ShapeError, match=r"at resid_post\.1 are NaN or infinite"):
        list(
            read_components(
                {"base": lens},
                probes,
                {"base": ("resid_mid.1", "resid_post.1")},
                token_budget=99,
                progress=False,
            )
        )
    lens = models_of("llama").lens_base
    overlong = continuation_probes([(1,) * 60], [(2,) * 10])
    with pytest.raises(DataError, match="70 tokens, more than the context"):
        list(
            read_components({"base": lens}, overlong, {"base": ()}, token_budget=9, progress=False)
        )
    with pytest.raises(HookError, match=r"mlp_post\.2"):
        list(
            read_components(
                {"base": lens}, probes, {"base": ("mlp_post.2",)}, token_budget=9, progress=False
            )
        )


def test_double_precision_keeps_the_numbers():
    half = torch.tensor([1.0, 1 / 3], dtype=torch.bfloat16)
    assert double_precision(half).dtype == torch.float64
    assert double_precision(half).tolist() == half.tolist()
