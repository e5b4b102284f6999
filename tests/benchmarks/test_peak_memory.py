"""Peak memory of capture over the loaded pair, against the floor and the rows that are kept.

``(peak of capture − loaded) / (peak of the floor − loaded + bytes of the rows)``, each in processes
of their own. The floor is the same batches through plain transformers with nothing kept; the rows
are both models' float32 at every site, which any capture must hold until they are written.
Collected only when asked for: `pytest tests/benchmarks`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.results import REPETITIONS, not_run_entry, value_entry, write_result
from tests.benchmarks.works import WORKS, Work, usable_backends

TARGET = 1.10
PROMPTS = 128
#: What is freed goes back at once: glibc would keep some of it, more or less by chance.
ALLOCATOR = os.environ | {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
REPOSITORY = Path(__file__).resolve().parents[2]


def probe(work: Work, what: str) -> int:
    """Bytes above what was loaded, at the peak."""
    command = [sys.executable, "-m", "tests.benchmarks.memory_probe", work.name, str(PROMPTS), what]
    answer = subprocess.run(
        command, cwd=REPOSITORY, env=ALLOCATOR, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return int(found["peak"]) - int(found["loaded"])


@pytest.mark.parametrize("work", WORKS[:1], ids=lambda work: work.name)
def test_peak_memory(work: Work) -> None:
    usable, lacking = usable_backends()
    if not Path("/proc/self/clear_refs").exists():
        lacking |= dict.fromkeys(usable, "peak memory is read from /proc, which Linux has")
        usable = {}
    for backend, reason in lacking.items():
        write_result(
            f"peak_memory_{work.name}_{backend}",
            not_run_entry(reason, target=TARGET, direction="<="),
        )
    configuration = work.make().config
    sites = configuration.num_hidden_layers + 1
    rows = 2 * sites * PROMPTS * configuration.hidden_size * 4
    peaks: dict[str, list[int]] = {what: [] for what in ("floor", *usable)}
    for repetition in range(REPETITIONS):
        order = list(peaks)
        for what in reversed(order) if repetition % 2 else order:
            peaks[what].append(probe(work, what))
    floors = peaks.pop("floor")
    for backend, found in peaks.items():
        ratios = [one / (other + rows) for one, other in zip(found, floors, strict=True)]
        write_result(
            f"peak_memory_{work.name}_{backend}",
            value_entry(ratios, target=TARGET, direction="<=")
            | {
                "prompts": PROMPTS,
                "floor_mib": round(statistics.median(floors) / 2**20, 1),
                "capture_mib": round(statistics.median(found) / 2**20, 1),
                "rows_mib": round(rows / 2**20, 1),
            },
        )
