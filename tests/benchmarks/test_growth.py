"""How time and memory grow with the prompts, with rows kept on disk and with moments alone.

Collected only when asked for: `pytest tests/benchmarks`. Prompts come from a `ProbeTable`.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from datasets import IterableDataset

from dsteer_tl.capture import CaptureConfiguration, capture_shifts
from dsteer_tl.experiment.run_directory import hardware
from dsteer_tl.pair import ModelPair
from dsteer_tl.streaming.accumulation import accumulate_shifts
from dsteer_tl.streaming.probe_table import ProbeTable, probe_table_from_prompts
from tests.benchmarks.results import REPETITIONS, timed_in_turn, write_result
from tests.benchmarks.test_spectra import peak_mib
from tests.models import policy_of, random_model, tiny_tokenizer

COUNTS = (100, 300, 1000, 3000, 10_000)
QUIET = CaptureConfiguration(progress=False)
WORDS = ("the", "old", "man", "saw", "a", "river", "and", "she", "was", "happy", "blue", "dog")
WAYS = ("capture", "moments")


def texts(count: int) -> Iterator[dict[str, str]]:
    """Prompts of 5 to 25 words."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield {"prompt": " ".join(generator.choice(WORDS, int(generator.integers(5, 26))))}


def small_pair() -> ModelPair:
    """Two random Llamas of 2 layers and 32 dimensions."""
    base = random_model()
    return ModelPair.load(base, policy_of(base), tokenizer=tiny_tokenizer())


def table(pair: ModelPair, count: int, folder: Path) -> ProbeTable:
    """Prompts on disk."""
    source = IterableDataset.from_generator(texts, gen_kwargs={"count": count})
    return probe_table_from_prompts(
        pair.tokenizer, source, folder / f"probes-{count}", n_ctx=pair.base.n_ctx
    )


def run(way: str, pair: ModelPair, probes: ProbeTable, folder: Path) -> int:
    """Measure every site into an empty folder; how many rows there were."""
    rmtree(folder, ignore_errors=True)
    if way == "capture":
        return capture_shifts(pair, probes, folder=folder, configuration=QUIET).count("last_prompt")
    return (
        accumulate_shifts(pair, probes, folder=folder, configuration=QUIET).at("h", "last_prompt").n
    )


def straightness(seconds: list[float]) -> tuple[float, float]:
    """R² of a straight line through seconds over prompts, and the exponent of the last decade."""
    line = np.polyval(np.polyfit(COUNTS, seconds, 1), COUNTS)
    residual = float(np.sum((np.array(seconds) - line) ** 2))
    total = float(np.sum((np.array(seconds) - np.mean(seconds)) ** 2))
    last = COUNTS.index(COUNTS[-1] // 10)
    return 1 - residual / total, math.log10(seconds[-1] / seconds[last])


@pytest.mark.parametrize("way", WAYS)
def test_time_is_linear_in_the_prompts(way: str, tmp_path: Path) -> None:
    pair = small_pair()
    tables = [table(pair, count, tmp_path) for count in COUNTS]

    def measured(probes: ProbeTable) -> Callable[[], None]:
        def function() -> None:
            assert run(way, pair, probes, tmp_path / way) == len(probes)

        return function

    functions = [measured(probes) for probes in tables]
    functions[1]()  # warm-up
    times = timed_in_turn(functions, REPETITIONS)
    seconds, cpu = (
        [statistics.median(own[clock] for own in found) for found in times] for clock in (0, 1)
    )
    r2, exponent = straightness(seconds)
    cpu_r2, cpu_exponent = straightness(cpu)
    assert math.isfinite(r2)
    write_result(
        f"growth_{way}",
        {
            "ratio": round(r2, 6),
            "target": 0.99,
            "direction": ">=",
            "unit": "R² of seconds over prompts",
            "cpu_ratio": round(cpu_r2, 6),
            "exponent": round(exponent, 3),
            "cpu_exponent": round(cpu_exponent, 3),
            "prompts": list(COUNTS),
            "seconds": [round(value, 4) for value in seconds],
            "cpu_seconds": [round(value, 4) for value in cpu],
            "repetitions": REPETITIONS,
            "hardware": hardware(),
        },
    )


def peak_of(way: str, count: int, folder: Path) -> dict[str, float]:
    """Peak memory of a process that tokenises so many prompts and measures them."""
    pair = small_pair()
    loaded = peak_mib()
    assert run(way, pair, table(pair, count, folder), folder / way) == count
    return {"loaded_mib": loaded, "peak_mib": peak_mib()}


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peaks are read from /proc")
@pytest.mark.parametrize("way", WAYS)
def test_memory_does_not_grow_with_the_prompts(way: str, tmp_path: Path) -> None:
    found = []
    for count in (COUNTS[-1] // 10, COUNTS[-1]):
        child = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.test_growth", way, str(count), str(tmp_path)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(child.stdout.splitlines()[-1]))
    ratio = found[1]["peak_mib"] / found[0]["peak_mib"]
    write_result(
        f"growth_memory_{way}",
        {
            "ratio": round(ratio, 4),
            "target": 1.10,
            "direction": "<=",
            "unit": "peak memory at ten times the prompts",
            "prompts": [COUNTS[-1] // 10, COUNTS[-1]],
            "peak_mib": [round(own["peak_mib"], 1) for own in found],
            "loaded_mib": [round(own["loaded_mib"], 1) for own in found],
            "hardware": hardware(),
        },
    )
    assert ratio <= 1.10


if __name__ == "__main__":
    sys.stdout.write(json.dumps(peak_of(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
