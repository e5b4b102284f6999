"""Everything in `entry_points` on a device that refuses to mix, in a process of its own.

Once torch knows the device it is there for the whole process, and other libraries would take it for
an accelerator. Writes one JSON object: for each placement and entry point the numbers or the error.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from dsteer_tl.lens_model import LoadOptions
from dsteer_tl.pair import ModelPair
from tests.devices import second_device
from tests.devices.entry_points import WORK

#: The second layer, the final norm and the unembedding lie on another device than the rest.
SPLIT = {
    "model.embed_tokens": "second:0",
    "model.rotary_emb": "second:0",
    "model.layers.0": "second:0",
    "model.layers.1": "second:1",
    "model.norm": "second:1",
    "lm_head": "second:1",
}
PLACEMENTS = {
    "cpu": LoadOptions(),
    "one device": LoadOptions(device="second"),
    "two devices": LoadOptions(device_map=SPLIT),
}


def mixing(name: str) -> list[str]:
    """Errors of work that no two devices can do."""
    x = torch.ones(3).to(name)
    assert (x + 1).cpu().tolist() == [2, 2, 2]
    found = []
    for work in (lambda: x + torch.ones(3), lambda: x + x.to(f"{name}:1"), x.numpy):
        try:
            work()
        except (RuntimeError, TypeError) as error:
            found.append(str(error))
    return found


def run(base: Path, policy: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"mixing": mixing(second_device.register())}
    for placement, options in PLACEMENTS.items():
        pair = ModelPair.load(base, policy, options=options)
        devices = {
            str(weight.device) for weight in (pair.base.W_U, *pair.base.norm_parameters.values())
        }
        found[placement] = {"devices": sorted({str(pair.base.device), *devices}), "results": {}}
        for name, work in WORK.items():
            try:
                result: Any = work(pair).tolist()
            except Exception as error:
                frames = [
                    f"{Path(frame.filename).name}:{frame.lineno} {frame.line}"
                    for frame in traceback.extract_tb(error.__traceback__)
                    if "dsteer_tl" in frame.filename
                ]
                result = f"{type(error).__name__}: {error}; in {' < '.join(reversed(frames[-3:]))}"
            found[placement]["results"][name] = result
    return found


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[2]))))
