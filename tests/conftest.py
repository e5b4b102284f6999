"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Never ask a hub from a test: what a test needs is made by it or lies on disk.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Tables for the terminal wrap at its width, which a worker of xdist does not have.
os.environ.setdefault("COLUMNS", "110")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from dsteer_tl.pair import ModelPair

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder with real data and a real small model; absent outside the development machines."""
    folder = Path(os.environ.get("DSTEER_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(
            f"no real data at {folder}: set DSTEER_SHARED to a folder with data/ and models/"
        )
    return folder


@pytest.fixture(scope="session")
def stories260k(shared_folder: Path) -> Path:
    """A pretrained 260k-parameter Llama checkpoint."""
    return shared_folder / "models" / "stories260k"


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of a tiny random Llama and of a policy made from it, tokenizers included."""
    from tests.models import policy_of, random_model, save_checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    base = random_model()
    policy = policy_of(base)
    return save_checkpoint(base, folder / "base"), save_checkpoint(policy, folder / "policy")


@pytest.fixture(scope="session")
def tiny_pair(tiny_folders: tuple[Path, Path]) -> ModelPair:
    """The same two models, hooked."""
    from dsteer_tl.pair import ModelPair

    return ModelPair.load(*tiny_folders)


@pytest.fixture(scope="session")
def stories_pair(stories260k: Path) -> ModelPair:
    """The pretrained 260k-parameter Llama and a policy made by perturbing its blocks."""
    from dsteer_tl.lens_model import LoadOptions, load_model, load_tokenizer
    from dsteer_tl.pair import ModelPair
    from tests.models import policy_of

    base = load_model(stories260k, LoadOptions())
    tokenizer = load_tokenizer(stories260k, LoadOptions())
    return ModelPair.load(base, policy_of(base), tokenizer=tokenizer)
