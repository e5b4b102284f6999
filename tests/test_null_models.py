from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsteer_tl import null_models
from dsteer_tl.errors import PairError
from dsteer_tl.lens_model import LoadOptions, load_model
from dsteer_tl.null_models import random_weights_model
from tests.models import is_block, policy_of, random_model, save_checkpoint


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    base = random_model(tie_word_embeddings=True)
    policy = policy_of(base)
    return save_checkpoint(base, folder / "base"), save_checkpoint(policy, folder / "policy")


def weights(
    checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, seed: int
) -> dict[str, Tensor]:
    """The null model's tensors as they go into the hooked model."""
    kept: list[Any] = []
    monkeypatch.setattr(null_models, "load_lens_model", lambda model, **_: kept.append(model))
    random_weights_model(*checkpoints, seed=seed)
    return {name: tensor.detach() for name, tensor in kept[0].named_parameters()}


def test_every_change_keeps_its_norm_and_loses_its_direction(
    checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    null = weights(checkpoints, monkeypatch, seed=0)
    base, policy = (
        dict(load_model(path, LoadOptions()).requires_grad_(False).named_parameters())
        for path in checkpoints
    )
    assert null.keys() == base.keys()
    cosines = []
    for name, tensor in null.items():
        if is_block(name):
            ours, theirs = tensor - base[name], policy[name] - base[name]
            assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=1e-4), name
            cosines.append(torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0).abs())
        else:
            assert torch.equal(tensor, base[name]), name
    assert torch.stack(cosines).mean() < 0.2


def test_one_seed_gives_one_model(
    checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again, other = (weights(checkpoints, monkeypatch, seed) for seed in (3, 3, 4))
    changed = [name for name in first if is_block(name)]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in changed)


def test_models_of_different_shapes_have_no_change(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    for name, changes in {
        "wide": {"intermediate_size": 64},
        "deep": {"num_hidden_layers": 1},
    }.items():
        other = save_checkpoint(random_model(**changes), tmp_path / name)
        with pytest.raises(PairError, match="only between a model and its own fine-tune"):
            random_weights_model(checkpoints[0], other, seed=0)


def test_base_and_policy_are_loaded_each_in_its_own_way(
    checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def load(source: Path, options: LoadOptions) -> Any:
        asked[source] = options.revision
        return load_model(source, LoadOptions())

    monkeypatch.setattr(null_models, "load_model", load)
    random_weights_model(
        *checkpoints,
        seed=0,
        options=LoadOptions(revision="first"),
        policy_options=LoadOptions(revision="second"),
    )
    assert asked == dict(zip(checkpoints, ("first", "second"), strict=True))


def test_the_null_model_is_hooked_and_checked(checkpoints: tuple[Path, Path]) -> None:
    model = random_weights_model(*checkpoints, seed=0)
    assert model.name == "random weights"
    assert model.n_layers == 2
