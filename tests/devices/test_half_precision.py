"""bfloat16 and float16 from capture to perplexity, against the same models in float32.

The tolerances are relative (L2 over all numbers of an entry point) and of the size of the rounding
of the weights, 2⁻⁸ in bfloat16 and 2⁻¹¹ in float16, times what a few layers make of it. What is a
difference of the two models keeps their rounding and loses their size.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from dsteer_tl.lens_model import LoadOptions
from dsteer_tl.pair import ModelPair
from tests.devices.entry_points import KIND, WORK, captured

TOLERANCE = {"bfloat16": 0.05, "float16": 0.008}
DIFFERENCE_TOLERANCE = {"bfloat16": 0.12, "float16": 0.02}
#: Shifts, and projections whose directions are estimated from them.
DIFFERENCES = ("shifts", "contributions")
#: What is written may differ from the first near tie on.
WRITTEN = tuple(name for name in WORK if "generation" in name)


@cache
def pair_in(dtype: str, base: Path, policy: Path) -> ModelPair:
    return ModelPair.load(base, policy, options=LoadOptions(dtype=dtype))


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_half_precision_is_finite_and_near_float32(
    dtype: str, name: str, tiny_folders: tuple[Path, Path]
) -> None:
    wide, half = (WORK[name](pair_in(kind, *tiny_folders)) for kind in ("float32", dtype))
    assert np.isfinite(half).all()
    assert half.dtype in (np.float32, np.float64)
    if name in WRITTEN:
        return
    assert half.shape == wide.shape
    difference = np.linalg.norm(half - wide) / np.linalg.norm(wide)
    allowed = DIFFERENCE_TOLERANCE if name in DIFFERENCES else TOLERANCE
    assert difference <= allowed[dtype]
    if name != "neurons":  # a tolerance that everything passes by far would test nothing
        assert difference > 0


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_shifts_are_differences_in_more_than_the_models_precision(
    dtype: str, tiny_folders: tuple[Path, Path]
) -> None:
    pair = pair_in(dtype, *tiny_folders)
    found = captured(pair)
    for site in found.sites:
        base, policy = (found.residuals(name, site, KIND) for name in ("base", "policy"))
        assert base.dtype == policy.dtype == np.float32
        shifts = found.shifts(site, KIND)
        assert np.array_equal(shifts, policy.astype(np.float64) - base.astype(np.float64))
        if dtype == "bfloat16":  # whose differences are mostly no numbers of that precision
            rounded = torch.from_numpy(shifts).bfloat16().double().numpy()
            assert not np.array_equal(rounded, shifts)
