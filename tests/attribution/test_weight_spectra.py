"""Spectra of weight changes: planted ranks and directions, and names of many architectures."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from dsteer_tl.attribution.weight_spectra import (
    KEPT,
    SHIFT,
    expected_cosine,
    matrix_kind,
    matrix_spectrum,
    weight_spectra_table,
)
from dsteer_tl.errors import PairError, ShapeError
from tests.measurements.synthetic import capture, constant, normal
from tests.models import backbone_parts, policy_of, random_model, save_checkpoint
from tests.test_pair import make_adapter

SITES = ("resid_post.0", "resid_post.1", "h")
D = 32


def shift_set(shifts: np.ndarray) -> Any:
    return capture(normal(len(shifts), D, seed=9), shifts, kind="response", sites=SITES)


def saved(base: PreTrainedModel, policy: PreTrainedModel, folder: Path) -> tuple[Path, Path]:
    return save_checkpoint(base, folder / "base"), save_checkpoint(policy, folder / "policy")


@pytest.mark.parametrize(
    ("architecture", "part"), [("llama", "mlp.down_proj"), ("gpt2", "mlp.c_proj")]
)
def test_a_planted_rank_one_change_has_its_direction(
    architecture: str, part: str, tmp_path: Path
) -> None:
    """In GPT-2's Conv1D columns write into the stream, in Linear rows do."""
    base = random_model(architecture)
    policy = copy.deepcopy(base)
    weight = backbone_parts(policy)[0][1].get_submodule(part).weight
    shifts = constant(d_model=D, seed=1)
    v, read = (
        torch.tensor(shifts[0]).float(),
        torch.tensor(normal(48 if part == "mlp.down_proj" else 128, seed=2)).float(),
    )
    with torch.no_grad():
        weight.add_(torch.outer(v, read) if part == "mlp.down_proj" else torch.outer(read, v))
    table = weight_spectra_table(*saved(base, policy, tmp_path), shift_set(shifts), seed=0)
    rows = table[table["kind"] != SHIFT]
    assert set(rows["kind"]) == {"mlp_out"}
    assert set(rows["layer"]) == {1}
    first = rows[rows["index"] == 1].iloc[0]
    assert first["tensor"].endswith(f"1.{part}.weight")
    assert first["singular_value"] == pytest.approx(float(v.norm() * read.norm()), rel=1e-4)
    assert first["v_star_cos"] == pytest.approx(1.0, abs=1e-4)
    for name in ("share", "effective_rank", "stable_rank"):
        assert first[name] == pytest.approx(1.0, abs=1e-4)
    assert first["null_v_star_cos"] == expected_cosine(D)
    assert first["null_effective_rank"] > 20
    assert first["columns"] == D
    # ΔH is the same vector everywhere.
    activations = table[table["kind"] == SHIFT]
    assert list(activations["tensor"].unique()) == ["ΔH resid_post.0", "ΔH resid_post.1"]
    assert activations["effective_rank"].to_numpy() == pytest.approx(1.0, abs=1e-4)
    top = activations[activations["index"] == 1]
    assert top["v_star_cos"].to_numpy() == pytest.approx(1.0, abs=1e-6)


def test_every_trained_matrix_against_numpy(tmp_path: Path) -> None:
    base = random_model("llama")
    policy = policy_of(base, scale=0.1)
    table = weight_spectra_table(
        *saved(base, policy, tmp_path), shift_set(normal(40, D, seed=3)), seed=0
    )
    moved = dict(policy.named_parameters())
    changes = {
        name: (moved[name] - old).detach().double().numpy()
        for name, old in base.named_parameters()
        if old.ndim == 2 and not torch.equal(moved[name], old)
    }
    weights = table[table["kind"] != SHIFT]
    assert list(weights["tensor"].unique()) == list(changes)
    assert "model.embed_tokens.weight" not in changes
    v = normal(40, D, seed=3).mean(axis=0)
    for name, change in changes.items():
        rows = weights[weights["tensor"] == name]
        left, sigma, _ = np.linalg.svd(change, full_matrices=False)
        kept = min(KEPT, len(sigma))
        share = sigma**2 / np.sum(sigma**2)
        assert list(rows["index"]) == list(range(1, kept + 1))
        np.testing.assert_allclose(rows["singular_value"], sigma[:kept], rtol=1e-5)
        np.testing.assert_allclose(rows["share"], share[:kept], rtol=1e-5)
        rank = math.exp(-np.sum(share * np.log(share)))
        assert rows["effective_rank"].to_numpy() == pytest.approx(rank, rel=1e-5)
        assert rows["stable_rank"].to_numpy() == pytest.approx(1 / share[0], rel=1e-5)
        if rows["kind"].iloc[0] in ("attention_output", "mlp_out"):
            cosines = np.abs(left.T @ v)[:kept] / np.linalg.norm(v)
            np.testing.assert_allclose(rows["v_star_cos"], cosines, atol=1e-4)
        else:
            assert rows["v_star_cos"].isna().all()
            assert rows["null_v_star_cos"].isna().all()
        # A random change of full rank is what the null says.
        null = rows["null_effective_rank"].iloc[0]
        assert rows["effective_rank"].iloc[0] == pytest.approx(null, rel=0.15)
    again = weight_spectra_table(
        tmp_path / "base", tmp_path / "policy", shift_set(normal(40, D, seed=3)), seed=0
    )
    assert table.equals(again)


def test_an_adapter_has_the_rank_of_its_matrices(tmp_path: Path) -> None:
    base = save_checkpoint(random_model(), tmp_path / "base")
    make_adapter(random_model(), tmp_path / "adapter", r=3)
    table = weight_spectra_table(base, tmp_path / "adapter", shift_set(constant(d_model=D)), seed=0)
    weights = table[table["kind"] != SHIFT]
    assert weights["tensor"].nunique() == 14
    assert (weights["effective_rank"] <= 3.01).all()
    assert weights.loc[weights["index"] > 3, "share"].max() < 1e-6


def test_where_a_norm_follows_writers_have_no_direction_in_the_stream(tmp_path: Path) -> None:
    base = random_model("olmo2")
    table = weight_spectra_table(
        *saved(base, policy_of(base), tmp_path), shift_set(constant(d_model=D)), seed=0
    )
    assert table.loc[table["kind"] != SHIFT, "v_star_cos"].isna().all()


def test_trained_embeddings_count_and_untrained_weights_are_refused(tmp_path: Path) -> None:
    base = random_model()
    policy = copy.deepcopy(base)
    shifts = shift_set(constant(d_model=D))
    folders = saved(base, policy, tmp_path)
    with pytest.raises(PairError, match=r"no weight matrix of .* differs"):
        weight_spectra_table(*folders, shifts, seed=0)
    with torch.no_grad():
        policy.get_input_embeddings().weight.mul_(1.1)
    save_checkpoint(policy, tmp_path / "policy")
    table = weight_spectra_table(*folders, shifts, seed=0)
    weights = table[table["kind"] != SHIFT]
    assert set(weights["kind"]) == {"embedding"}
    assert set(weights["layer"]) == {-1}
    assert weights["v_star_cos"].isna().all()


@pytest.mark.parametrize(
    ("architecture", "kinds"),
    [
        ("llama", "query key value output mlp_in mlp_gate mlp_out"),
        ("gpt2", "input output mlp_in mlp_out"),
        ("neox", "input output mlp_in mlp_out"),
        ("phi", "query key value output mlp_in mlp_out"),
        ("phi3", "input output mlp_in mlp_out"),
        ("gemma2", "query key value output mlp_in mlp_gate mlp_out"),
    ],
)
def test_kinds_of_matrices_by_name(architecture: str, kinds: str) -> None:
    expected = {kind if "mlp" in kind else f"attention_{kind}" for kind in kinds.split()}
    names = [n for n, p in random_model(architecture).named_parameters() if p.ndim == 2]
    found = {matrix_kind(name) for name in names}
    assert found - {"embedding", "unembedding"} == expected
    assert "embedding" in found
    assert matrix_kind("model.layers.0.mlp.experts.3.w1.weight") == "other"


def test_the_expected_cosine_is_that_of_random_directions() -> None:
    for d in (2, 3, 64):
        draws = normal(200_000 // d, d, seed=d)
        cosines = np.abs(draws[:, 0]) / np.linalg.norm(draws, axis=1)
        assert expected_cosine(d) == pytest.approx(cosines.mean(), rel=0.03)
    assert expected_cosine(2) == pytest.approx(2 / math.pi)
    assert expected_cosine(3) == pytest.approx(0.5)


def test_a_matrix_of_zeros_has_no_spectrum() -> None:
    with pytest.raises(ShapeError, match="found a matrix of zeros"):
        matrix_spectrum(np.zeros((3, 3)))
