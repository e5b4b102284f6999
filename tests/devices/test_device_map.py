"""Models placed by a device map, on what there is without a GPU: the CPU, and nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from dsteer_tl.errors import CheckpointError
from dsteer_tl.lens_model import LoadOptions, load_lens_model, load_model
from dsteer_tl.lens_model.checkpoint import hash_weights
from dsteer_tl.pair import ModelPair
from tests.devices.entry_points import WORK
from tests.models import random_model


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_device_map_without_a_gpu_is_the_cpu(
    device_map: Any, tiny_folders: tuple[Path, Path], tiny_pair: ModelPair
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: tests/devices/test_cuda.py has this check")
    pair = ModelPair.load(*tiny_folders, options=LoadOptions(device_map=device_map))
    assert pair.base.weights_hash == tiny_pair.base.weights_hash
    assert np.array_equal(WORK["shifts"](pair), WORK["shifts"](tiny_pair))


def test_weights_that_do_not_fit_are_refused(
    tiny_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    device_map = {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "lm_head": "cpu",
    }
    with pytest.raises(
        CheckpointError, match=r"does not fit: device_map left \d+ weights"
    ) as error:
        load_model(tiny_folders[0], LoadOptions(device_map=device_map))
    assert "model.layers.1" in str(error.value)


def test_hooks_of_accelerate_and_of_the_bridge_work_together() -> None:
    """As a device map over several GPUs does, accelerate's hooks move inputs to each module."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    plain, hooked = random_model(), random_model()
    moved: list[str] = []

    class Counting(AlignDevicesHook):
        def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            moved.append(type(module).__name__)
            return super().pre_forward(module, *args, **kwargs)

    for module in hooked.modules():
        if next(module.parameters(recurse=False), None) is not None:
            add_hook_to_module(module, Counting(execution_device="cpu"))
    expected = load_lens_model(plain)
    found = load_lens_model(hooked)
    ids = torch.arange(6)[None]
    mask = torch.ones_like(ids)
    moved.clear()
    assert torch.equal(found.forward(ids, mask), expected.forward(ids, mask))
    assert moved.count("Linear") == 2 * 7 + 1
    assert found.weights_hash == expected.weights_hash


def test_offloaded_weights_are_recognised() -> None:
    model = random_model()
    before = hash_weights(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert before == hash_weights(random_model())
