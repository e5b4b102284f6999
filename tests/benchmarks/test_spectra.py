"""Spectra of rows that would not fit into memory: how much memory, and how exact.

Collected only when asked for: `pytest tests/benchmarks`. Layers are independent of each other, so
that the ratio is that of any number of them; `DSTEER_BENCHMARK_LAYERS=32` runs the whole of what
the target names, and the entry says how many there were.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dsteer_tl.experiment.run_directory import hardware
from dsteer_tl.gram_accumulator import GramAccumulator

D_MODEL = 4096
FEW, MANY = 10_000, 100_000
LAYERS = int(os.environ.get("DSTEER_BENCHMARK_LAYERS") or 3)
LAYERS_OF_THE_TARGET = 32
RANK = 64
BLOCK = 1000
#: Singular values compared, and rows that a full decomposition can hold.
LEADING, SUBSAMPLE = 32, 4608


def blocks(layer: int, count: int) -> Iterator[np.ndarray]:
    """Float32 rows with a mean, 64 directions of falling size, and isotropic noise."""
    generator = np.random.default_rng(layer)
    directions = generator.standard_normal((RANK, D_MODEL), dtype=np.float32) / np.sqrt(D_MODEL)
    directions *= (1.0 / np.arange(1, RANK + 1, dtype=np.float32))[:, None]
    mean = generator.standard_normal(D_MODEL, dtype=np.float32) / np.float32(np.sqrt(D_MODEL))
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        factors = generator.standard_normal((size, RANK), dtype=np.float32)
        noise = generator.standard_normal((size, D_MODEL), dtype=np.float32)
        noise *= np.float32(0.1 / np.sqrt(D_MODEL))
        yield mean + factors @ directions + noise


def peak_mib() -> float:
    """The most that was resident in this program.

    The ``ru_maxrss`` of getrusage begins with what the parent had and so says nothing here.
    """
    status = Path("/proc/self/status").read_text("utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def stream(rows: int, layers: int) -> dict[str, float]:
    """Accumulate every layer at once; peak memory and seconds of this process."""
    started, cpu = time.perf_counter(), time.process_time()
    accumulators = [GramAccumulator(D_MODEL) for _ in range(layers)]
    for together in zip(*(blocks(layer, rows) for layer in range(layers)), strict=True):
        for accumulator, block in zip(accumulators, together, strict=True):
            accumulator.update(block)
    assert all(accumulator.count == rows for accumulator in accumulators)
    return {
        "peak_mib": peak_mib(),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
    }


def in_a_process(rows: int) -> dict[str, float]:
    """`stream` in a process of its own, whose peak is that of nothing else."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.test_spectra", str(rows), str(LAYERS)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    measured: dict[str, float] = json.loads(found.stdout)
    return measured


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peaks are read from /proc")
def test_memory_does_not_grow_with_rows() -> None:
    from tests.benchmarks.results import write_result

    few, many = in_a_process(FEW), in_a_process(MANY)
    ratio = many["peak_mib"] / few["peak_mib"]
    write_result(
        "spectra_memory",
        {
            "ratio": round(ratio, 4),
            "target": 1.05,
            "direction": "<=",
            "layers": LAYERS,
            "layers_of_the_target": LAYERS_OF_THE_TARGET,
            "d_model": D_MODEL,
            "rows": [FEW, MANY],
            "peak_mib": [round(few["peak_mib"], 1), round(many["peak_mib"], 1)],
            "seconds_a_layer": round(many["seconds"] / LAYERS, 2),
            "cpu_seconds_a_layer": round(many["cpu_seconds"] / LAYERS, 2),
            "hardware": hardware(),
        },
    )
    assert ratio <= 1.05


def test_leading_singular_values_are_those_of_a_full_decomposition() -> None:
    from tests.benchmarks.results import write_result

    accumulator, kept = GramAccumulator(D_MODEL), []
    for block in blocks(0, SUBSAMPLE):
        accumulator.update(block)
        kept.append(block)
    rows = np.concatenate(kept).astype(np.float64)
    assert len(rows) > D_MODEL
    streamed = accumulator.spectrum(keep=0)
    full = np.linalg.svd(rows, compute_uv=False) / np.sqrt(len(rows))
    errors = np.abs(streamed.singular_values - full) / full
    share = full**2 / np.sum(full**2)
    write_result(
        "spectra_accuracy",
        {
            "ratio": float(errors[:LEADING].max()),
            "target": 1e-4,
            "direction": "<=",
            "unit": "largest relative error of the leading singular values",
            "singular_values": LEADING,
            "all_singular_values": float(errors.max()),
            "entropy_error": abs(streamed.entropy - float(-np.sum(share * np.log(share)))),
            "rows": len(rows),
            "d_model": D_MODEL,
            "hardware": hardware(),
        },
    )
    assert errors[:LEADING].max() <= 1e-4


if __name__ == "__main__":
    sys.stdout.write(json.dumps(stream(int(sys.argv[1]), int(sys.argv[2]))))
