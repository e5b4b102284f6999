"""Peak memory of one kind of work, in a process of its own.

``python -m tests.benchmarks.memory_probe WORK PROMPTS floor|BACKEND`` prints the resident memory
in bytes after loading and the most of it while working.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dsteer_tl.positions import Probe
from tests.benchmarks.works import WORKS, captured, floor, ragged_probes

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """``VmRSS``, what is resident now, or ``VmHWM``, the most since `forget_peak`; in bytes."""
    lines = _STATUS.read_text("utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Give back what is free, and begin to look for the peak from here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5", "ascii")


def measure(work_name: str, prompts: int, what: str) -> dict[str, Any]:
    """Load, warm up on two prompts, then work through all of them."""
    (work,) = [work for work in WORKS if work.name == work_name]

    def run(probes: Sequence[Probe]) -> object:
        raise NotImplementedError

    if what == "floor":
        models = work.models()
        vocabulary = models["base"].config.vocab_size
        run = partial(floor, models, keep=False)
    else:
        pair = work.pair(what)  # type: ignore[arg-type]
        vocabulary = pair.base.d_vocab
        run = partial(captured, pair)
    probes = ragged_probes(prompts, vocabulary)
    run(probes[:2])
    forget_peak()
    loaded = resident("VmRSS")
    kept = run(probes)
    found = {"loaded": loaded, "peak": resident("VmHWM")}
    del kept
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])) + "\n")
