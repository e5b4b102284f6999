"""Steering vectors: where they come from, where they may act, and what acting does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor

from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.directions import (
    SteeringVector,
    mean_preference_vector,
    mean_shift_vector,
    preference_directions,
    principal_vector,
)
from dsteer_tl.errors import HookError, ShapeError, SpaceError
from dsteer_tl.lens_model import LensModel, load_lens_model, pad
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import probes_from_prompts
from tests.models import policy_of, random_model, tiny_tokenizer

PROMPTS = ["Once upon a time", "The dog", "She said no because", "He saw the old man", "Rain came"]
BATCH = pad([(3, 4, 5, 6, 7), (8, 9)])


@pytest.fixture(scope="module")
def shift_set(tiny_pair: ModelPair) -> ShiftSet:
    return capture_shifts(
        tiny_pair,
        probes_from_prompts(tiny_pair.tokenizer, PROMPTS, ["last_prompt", "token.1"]),
        configuration=CaptureConfiguration(progress=False),
    )


def some_vector(space: str = "h", size: int = 32, **changes: object) -> SteeringVector:
    values = np.random.default_rng(0).normal(size=size)
    return SteeringVector(values, space, "v", "last_prompt", 5, **changes)  # type: ignore[arg-type]


@torch.no_grad()
def logits(lens: LensModel) -> Tensor:
    return lens.forward(BATCH.ids, BATCH.mask)


# Where they come from


@pytest.mark.parametrize("site", ["resid_post.0", "h"])
@pytest.mark.parametrize("kind", ["last_prompt", "token.1"])
def test_mean_shift(tiny_pair: ModelPair, shift_set: ShiftSet, site: str, kind: str) -> None:
    vector = mean_shift_vector(tiny_pair, shift_set, site, kind)
    rows = [
        shift_set.residuals(model, site, kind).astype(np.float64) for model in ("policy", "base")
    ]
    np.testing.assert_allclose(vector.values, np.mean(rows[0] - rows[1], axis=0), rtol=1e-12)
    assert (vector.space, vector.name, vector.position_kind, vector.rows) == (
        site,
        "v_star",
        kind,
        5,
    )
    assert vector.models == {
        "base": tiny_pair.base.weights_hash,
        "policy": tiny_pair.policy.weights_hash,
    }
    assert vector.readouts == (tiny_pair.base.readout.content_hash(),)
    assert vector.norm == pytest.approx(np.sqrt((vector.values**2).sum()))
    np.testing.assert_allclose(vector.unit * vector.norm, vector.values, rtol=1e-12)


def test_principal_vectors(tiny_pair: ModelPair, shift_set: ShiftSet) -> None:
    shifts = shift_set.shifts("h", "last_prompt")
    gram = np.linalg.eigh(shifts.T @ shifts)[1][:, ::-1]
    for component in (1, 2, 5):
        vector = principal_vector(tiny_pair, shift_set, "h", "last_prompt", component=component)
        assert vector.norm == pytest.approx(1, abs=1e-12)
        assert abs(vector.values @ gram[:, component - 1]) == pytest.approx(1, abs=1e-9)
        assert vector.name == f"u{component}"
    first = principal_vector(tiny_pair, shift_set, "h", "last_prompt")
    assert first.values @ shifts.mean(axis=0) > 0  # points along the mean shift

    centred = principal_vector(tiny_pair, shift_set, "h", "last_prompt", centred=True)
    deviations = shifts - shifts.mean(axis=0)
    variance = np.linalg.eigh(deviations.T @ deviations)[1][:, -1]
    assert abs(centred.values @ variance) == pytest.approx(1, abs=1e-9)
    assert centred.name == "u1_centred"


@pytest.mark.parametrize("component", [0, -1, 6])
def test_components_that_do_not_exist(
    tiny_pair: ModelPair, shift_set: ShiftSet, component: int
) -> None:
    with pytest.raises(ShapeError, match=f"component {component} does not exist: .* 5 components"):
        principal_vector(tiny_pair, shift_set, "h", "last_prompt", component=component)


def test_preference_directions_are_differences_of_columns(tiny_pair: ModelPair) -> None:
    W_U = tiny_pair.base.W_U.double().numpy()
    chosen, rejected = [3, 7, 3], [4, 3, 150]
    found = preference_directions(tiny_pair.base.readout, chosen, rejected)
    assert found.shape == (3, 32) and found.dtype == np.float64
    for row, w, lose in zip(found, chosen, rejected, strict=True):
        np.testing.assert_array_equal(row, W_U[:, w] - W_U[:, lose])
    vector = mean_preference_vector(tiny_pair, np.array(chosen), np.array(rejected))
    np.testing.assert_allclose(vector.values, found.mean(axis=0), rtol=1e-12)
    assert (vector.space, vector.name, vector.position_kind) == (
        "h",
        "mean_preference",
        "divergence",
    )


def test_both_readouts_are_kept_where_they_differ(shift_set: ShiftSet) -> None:
    base = random_model()
    policy = policy_of(base)
    with torch.no_grad():
        policy.lm_head.weight *= 1.1
    pair = ModelPair.load(base, policy, tokenizer=tiny_tokenizer())
    vector = mean_shift_vector(pair, shift_set, "h", "last_prompt")
    assert vector.readouts == (
        pair.base.readout.content_hash(),
        pair.policy.readout.content_hash(),
    )
    vector.require_space(pair.base)
    vector.require_space(pair.policy)


# Values


def test_values_are_a_copy_of_one_finite_row() -> None:
    values = np.ones(4, dtype=np.float32)
    vector = SteeringVector(values, "h", "v", "last_prompt", 1)
    values[0] = 5
    assert vector.values.dtype == np.float64 and vector.values[0] == 1
    for bad in (np.ones((2, 2)), np.array([1.0, np.nan]), np.array([np.inf])):
        with pytest.raises(ShapeError, match="one finite row"):
            SteeringVector(bad, "h", "v", "last_prompt", 1)


def test_the_zero_vector_has_no_direction() -> None:
    with pytest.raises(ShapeError, match="v is the zero vector"):
        _ = SteeringVector(np.zeros(3), "h", "v", "last_prompt", 1).unit


def test_with_values() -> None:
    vector = some_vector(readouts=("abc",))
    other = vector.with_values(-vector.values, "inverse")
    assert (other.name, other.space, other.readouts) == ("inverse", "h", ("abc",))
    np.testing.assert_array_equal(other.values, -vector.values)


# Files


@pytest.mark.parametrize("strided", [False, True])
def test_save_and_load(tmp_path: Path, strided: bool) -> None:
    values = np.random.default_rng(1).normal(size=(32, 5))
    vector = SteeringVector(
        values[:, 2] if strided else values[:, 2].copy(),
        *("resid_post.1", "v_star", "divergence", 17),
        models={"base": "a", "policy": "b"},
        readouts=("c", "d"),
    )
    vector.save(tmp_path / "new" / "v.safetensors")
    found = SteeringVector.load(tmp_path / "new" / "v.safetensors")
    assert found.values.tobytes() == vector.values.tobytes()
    np.testing.assert_array_equal(found.values, values[:, 2])
    for name in ("space", "name", "position_kind", "rows", "models", "readouts"):
        assert getattr(found, name) == getattr(vector, name)


def test_files_that_are_no_vector(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    with pytest.raises(SpaceError, match="cannot read a steering vector from"):
        SteeringVector.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(SpaceError, match="cannot read a steering vector from"):
        SteeringVector.load(path)
    save_file({"values": np.ones(3)}, path)
    with pytest.raises(SpaceError, match="holds no steering vector"):
        SteeringVector.load(path)


# Where they may act


def test_wrong_space(tiny_pair: ModelPair) -> None:
    with pytest.raises(SpaceError, match=r"measured at 'h' and cannot act at 'resid_post\.1'"):
        some_vector().require_space(tiny_pair.base, "resid_post.1")
    some_vector().require_space(tiny_pair.base, "h")
    with pytest.raises(HookError, match="does not exist"):
        some_vector("resid_post.2").require_space(tiny_pair.base)


def test_wrong_width(tiny_pair: ModelPair) -> None:
    with (
        pytest.raises(SpaceError, match=r"v has 16 dimensions, .* has 32"),
        some_vector(size=16).apply(tiny_pair.base),
    ):
        pass


def test_wrong_unembedding(tiny_pair: ModelPair, shift_set: ShiftSet) -> None:
    vector = mean_shift_vector(tiny_pair, shift_set, "h", "last_prompt")
    with (
        pytest.raises(SpaceError, match="measured on another model"),
        vector.apply(load_lens_model(random_model(seed=8))),
    ):
        pass


# What acting does


@pytest.mark.parametrize("space", ["resid_post.0", "resid_post.1", "h"])
def test_coefficient_zero_is_bitwise_the_base(tiny_pair: ModelPair, space: str) -> None:
    before = logits(tiny_pair.base)
    with some_vector(space).apply(tiny_pair.base, coefficient=0) as steered:
        assert torch.equal(logits(steered), before)
    with some_vector(space).apply(tiny_pair.base) as steered:
        assert (logits(steered) - before).abs().max() > 0.1
    assert torch.equal(logits(tiny_pair.base), before)


@pytest.mark.parametrize("coefficient", [-2.0, 0.5, 3.0])
def test_at_h_logits_move_by_the_projections(tiny_pair: ModelPair, coefficient: float) -> None:
    vector = some_vector()
    moved = coefficient * (vector.values @ tiny_pair.base.W_U.double().numpy())
    expected = logits(tiny_pair.base).double() + torch.from_numpy(moved)
    with vector.apply(tiny_pair.base, coefficient) as steered:
        found = logits(steered).double()
    real = BATCH.mask.bool()
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-4)


def test_the_last_block_is_before_the_norm(tiny_pair: ModelPair) -> None:
    """Adding a vector of h at the last resid_post, as published code does, is another thing."""
    vector = some_vector()
    with vector.apply(tiny_pair.base) as steered:
        right = logits(steered)
    wrong = SteeringVector(vector.values, "resid_post.1", "v", "last_prompt", 5)
    with wrong.apply(tiny_pair.base) as steered:
        assert (logits(steered) - right).abs().max() > 0.5


def test_steered_generation(tiny_pair: ModelPair) -> None:
    """A vector along e_t at h makes t the only answer."""
    token = 77
    direction = tiny_pair.base.W_U[:, token].double().numpy()
    vector = SteeringVector(200 * direction, "h", "v", "last_prompt", 1)
    batch = pad([(3, 4, 5), (6,)], side="left")
    with vector.apply(tiny_pair.base) as steered:
        generated = steered.generate(batch.ids, batch.mask, max_new_tokens=4)
    assert set(generated[:, 3:].flatten().tolist()) == {token}


def test_equal_vectors_are_equal_files(tmp_path: Path) -> None:
    """safetensors orders the entries of its metadata by chance."""
    vector = SteeringVector(
        np.arange(4.0), "h", "v", "last_prompt", 3, {"base": "a", "policy": "b"}, ("c", "d")
    )
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        vector.save(file)
    assert len({file.read_bytes() for file in files}) == 1
