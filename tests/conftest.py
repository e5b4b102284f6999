"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Never ask a hub from a test: what a test needs is made by it or lies on disk.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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
        pytest.skip(f"no real data at {folder}: set DSTEER_SHARED to a folder with data/ and models/")
    return folder


@pytest.fixture(scope="session")
def stories260k(shared_folder: Path) -> Path:
    """A pretrained 260k-parameter Llama checkpoint."""
    return shared_folder / "models" / "stories260k"
