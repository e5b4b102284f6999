"""Every entry point on cuda:0 against the CPU in float32; skipped where there is no GPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from dsteer_tl.lens_model import LoadOptions
from dsteer_tl.lens_model.memory import HostCopies, is_out_of_memory, release_memory
from dsteer_tl.pair import ModelPair
from tests.devices.entry_points import WORK

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: these checks have to run on one"
)

#: Relative (L2): float32 sums in another order, and the rounding of half precision.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.12, "float16": 0.02}
WRITTEN = tuple(name for name in WORK if "generation" in name)


@cache
def pair_on(device: str, dtype: str, base: Path, policy: Path) -> ModelPair:
    return ModelPair.load(base, policy, options=LoadOptions(device=device, dtype=dtype))


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_cuda_gives_the_numbers_of_the_cpu(
    dtype: str, name: str, tiny_folders: tuple[Path, Path]
) -> None:
    expected = WORK[name](pair_on("cpu", "float32", *tiny_folders))
    found = WORK[name](pair_on("cuda:0", dtype, *tiny_folders))
    assert np.isfinite(found).all()
    if dtype != "float32" and name in WRITTEN:
        return
    assert np.linalg.norm(found - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


def test_a_device_map_of_every_gpu(tiny_folders: tuple[Path, Path]) -> None:
    pair = ModelPair.load(*tiny_folders, options=LoadOptions(device_map="auto"))
    expected = WORK["shifts"](pair_on("cpu", "float32", *tiny_folders))
    assert pair.base.device.type == "cuda"
    assert np.linalg.norm(WORK["shifts"](pair) - expected) <= 1e-3 * np.linalg.norm(expected)


def test_copies_hold_what_the_device_held_when_they_were_started() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    with HostCopies() as copies:
        kept, expected = [], []
        for _ in range(20):
            x = torch.randn(1000, 1000, generator=generator, device="cuda", dtype=torch.bfloat16)
            y = x @ x
            kept.append(copies.to_host(y))
            expected.append(y.float())
            del x, y  # its memory may be given to the next one
    for found, value in zip(kept, expected, strict=True):
        assert found.is_pinned() and found.dtype == torch.float32
        assert torch.equal(found, value.cpu())


def test_what_cuda_raises_when_memory_ends_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)
    release_memory()
    assert torch.ones(3, device="cuda").sum() == 3
