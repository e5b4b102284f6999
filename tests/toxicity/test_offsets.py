from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.controls import bootstrap_mean
from dsteer_tl.cosines import cosines_to_mean, leave_one_out_cosines
from dsteer_tl.errors import ShapeError
from dsteer_tl.toxicity.component_reading import continuation_probes, read_components
from dsteer_tl.toxicity.offsets import (
    ShiftRows,
    offset_table,
    residual_places,
    sign_flipped_cosines,
)
from tests.toxicity.plain_components import (
    CONTINUATIONS,
    PROMPTS,
    SEQUENCES,
    models_of,
    plain_components,
)
from tests.toxicity.synthetic_batches import batch_of


def synthetic(
    shift: np.ndarray, *, other: np.ndarray | None = None, prompts: np.ndarray | None = None
) -> ShiftRows:
    """Rows of one place, two batches."""
    base = np.random.default_rng(9).standard_normal(shift.shape)
    prompts = np.arange(len(shift)) if prompts is None else prompts
    kinds = np.full(len(shift), "last_prompt", dtype=object)
    models = ["policy"] if other is None else ["policy", "random_weights"]
    rows = ShiftRows(["resid_mid.3"], models)
    for part in np.array_split(np.arange(len(shift)), 2):
        states = {"base": {"resid_mid.3": base[part]}}
        for model, delta in zip(models, (shift, other), strict=False):
            assert delta is not None
            states[model] = {"resid_mid.3": (base + delta)[part]}
        rows.add(batch_of(states, prompts[part], kinds[part]))
    return rows


def test_a_constant_offset_has_cosine_one_and_its_flips_have_none():
    offset = np.zeros((40, 16))
    offset[:, 2] = 3.0
    noise = np.random.default_rng(1).standard_normal((40, 16))
    table = offset_table(synthetic(offset, other=noise), draws=100, seed=0).set_index("control")
    assert list(table.index) == ["policy", "sign_flipped", "random_weights"]
    assert set(table["place"]) == {"resid_mid"} and set(table["layer"]) == {3}
    assert table.loc["policy", "cosine"] == pytest.approx(1)
    assert table.loc["policy", "norm"] == pytest.approx(3, rel=1e-6)
    assert table.loc["sign_flipped", "low"] < 0 < table.loc["sign_flipped", "high"]
    assert abs(table.loc["sign_flipped", "cosine"]) < 0.15
    assert abs(table.loc["random_weights", "cosine"]) < 0.15
    assert (table["rows"] == 40).all() and (table["prompts"] == 40).all()


def test_noise_that_agrees_with_itself_does_not_agree_with_others():
    noise = np.random.default_rng(0).standard_normal((20, 400))
    assert cosines_to_mean(noise).mean() > 0.2
    table = offset_table(synthetic(noise), draws=50, seed=0).set_index("control")
    assert abs(table.loc["policy", "cosine"]) < 0.03


def test_rows_of_one_prompt_do_not_vouch_for_each_other():
    generator = np.random.default_rng(0)
    directions = np.repeat(generator.standard_normal((10, 200)), 4, axis=0)
    prompts = np.repeat(np.arange(10), 4)
    table = offset_table(synthetic(directions, prompts=prompts), draws=50, seed=0)
    assert abs(table["cosine"][0]) < 0.1
    assert table["rows"][0] == 40 and table["prompts"][0] == 10


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3))
def test_flips_are_those_of_whole_prompts(seed: int, offset: float):
    generator = np.random.default_rng(seed)
    rows = offset + generator.standard_normal((14, 6))
    prompts = generator.permutation(np.repeat(np.arange(7), 2))
    found = sign_flipped_cosines(rows, prompts, draws=5, seed=seed)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(5, 7))
    expected = [
        leave_one_out_cosines(rows * sign[prompts][:, None], prompts).mean() for sign in signs
    ]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_parallel_shifts_that_cancel_stay_finite():
    rows = np.zeros((3, 4))
    rows[:, 0] = [1, 1, 2]
    found = sign_flipped_cosines(rows, [0, 1, 2], draws=64, seed=0)
    # Signs + + −: the first sees 1 − 2, the second too, the third 1 + 1, all the wrong way.
    assert set(np.round(found, 12)) <= {1.0, -1.0, 0.0, np.round(1 / 3, 12), np.round(-1 / 3, 12)}
    assert -1.0 in found and 1.0 in found
    assert sign_flipped_cosines(np.zeros((3, 4)), [0, 1, 2], draws=3, seed=0).tolist() == [0, 0, 0]
    with pytest.raises(ShapeError, match="1 group"):
        sign_flipped_cosines(rows, [0, 0, 0], draws=3, seed=0)


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "llama"])
def test_offsets_of_models_are_those_of_plain_transformers(architecture: str):
    pair, places = models_of(architecture), residual_places(2)
    assert places == ("resid_mid.0", "resid_post.0", "resid_mid.1", "resid_post.1")
    rows = ShiftRows(places, ["policy"])
    probes = continuation_probes(PROMPTS, CONTINUATIONS, response_limit=3)
    for batch in read_components(
        {"base": pair.lens_base, "policy": pair.lens_policy},
        probes,
        {"base": places, "policy": places},
        token_budget=16,
        progress=False,
    ):
        rows.add(batch)
    table = offset_table(rows, draws=200, seed=3)
    assert len(table) == 4 * 2 * 2
    base = plain_components(pair.base, SEQUENCES)
    policy = plain_components(pair.policy, SEQUENCES)
    for line in table[table["control"] == "policy"].to_dict("records"):
        place, kind = f"{line['place']}.{line['layer']}", line["position_kind"]
        where = [(probe.prompt, p) for probe in probes for p in probe.positions[kind]]
        before = np.array([base[prompt].at(place)[p] for prompt, p in where])
        shifts = np.array([policy[prompt].at(place)[p] for prompt, p in where]) - before
        norms, prompts = np.linalg.norm(shifts, axis=1), np.array([prompt for prompt, _ in where])
        cosines = leave_one_out_cosines(shifts, prompts)
        interval = bootstrap_mean(cosines, prompts, draws=200, seed=3)
        assert line["rows"] == len(where) and line["prompts"] == len(set(prompts.tolist()))
        assert line["cosine"] == pytest.approx(interval.value, abs=2e-5)
        assert line["low"] == pytest.approx(interval.low, abs=2e-5)
        assert line["high"] == pytest.approx(interval.high, abs=2e-5)
        assert line["norm"] == pytest.approx(norms.mean(), rel=1e-5)
        relative = (norms / np.linalg.norm(before, axis=1)).mean()
        assert line["relative_norm"] == pytest.approx(relative, rel=1e-5)


def test_kinds_of_fewer_than_two_prompts_are_left_out():
    shift = np.ones((2, 3))
    rows = synthetic(shift)
    rows.add(
        batch_of(
            {model: {"resid_mid.3": np.ones((3, 3))} for model in ("base", "policy")},
            np.array([5, 5, 5]),
            np.full(3, "response", dtype=object),
        )
    )
    assert set(offset_table(rows, draws=9, seed=0)["position_kind"]) == {"last_prompt"}
    with pytest.raises(ShapeError, match="fewer than 2 prompts"):
        offset_table(synthetic(np.ones((1, 3))), draws=9, seed=0)
