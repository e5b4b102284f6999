"""Timing within one run, and where its ratios go.

`DSTEER_BENCHMARKS` names another file for the results, `DSTEER_REPETITIONS` another number of
repetitions: for trying a benchmark out without touching the published figures.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dsteer_tl.experiment.run_directory import hardware

RESULTS = Path(
    os.environ.get("DSTEER_BENCHMARKS")
    or Path(__file__).resolve().parents[2] / "figures" / "benchmarks.json"
)
REPETITIONS = int(os.environ.get("DSTEER_REPETITIONS") or 5)

#: Seconds on the clock, and of CPU time.
Seconds = tuple[float, float]
#: Does its work once and says how long that took, in this process or in another.
Timer = Callable[[], Seconds]

NOT_RUN = "NOT RUN"


def timed(function: Callable[[], Any]) -> Seconds:
    """Seconds on the clock, and of CPU time: the latter leaves out waiting for other programs."""
    clock, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - clock, time.process_time() - cpu


def timed_in_turn(
    functions: Sequence[Callable[[], Any]], repetitions: int = REPETITIONS
) -> list[list[Seconds]]:
    """The seconds of each function, repetition by repetition.

    Every second repetition goes through them backwards, so that none always finds the caches warm.
    """
    return times_in_turn([partial(timed, function) for function in functions], repetitions)


def times_in_turn(timers: Sequence[Timer], repetitions: int = REPETITIONS) -> list[list[Seconds]]:
    """As `timed_in_turn`, for work that times itself."""
    found: list[list[Seconds]] = [[] for _ in timers]
    for repetition in range(repetitions):
        order = range(len(timers))
        for index in reversed(order) if repetition % 2 else order:
            found[index].append(timers[index]())
    return found


def ratio_entry(
    above: Sequence[Seconds], below: Sequence[Seconds], *, target: float, direction: str
) -> dict[str, Any]:
    """Median and single ratios of the times of two things done in turn."""
    ratios, cpu_ratios = (
        [one[clock] / other[clock] for one, other in zip(above, below, strict=True)]
        for clock in (0, 1)
    )
    return {
        "ratio": round(statistics.median(ratios), 4),
        "target": target,
        "direction": direction,
        "repetitions": len(ratios),
        "ratios": [round(value, 4) for value in ratios],
        "cpu_ratio": round(statistics.median(cpu_ratios), 4),
        "cpu_ratios": [round(value, 4) for value in cpu_ratios],
        "hardware": hardware(),
    }


def value_entry(values: Sequence[float], *, target: float, direction: str) -> dict[str, Any]:
    """Median and single values of something that is no time, as memory or an error."""
    return {
        "ratio": significant(statistics.median(values)),
        "target": target,
        "direction": direction,
        "repetitions": len(values),
        "ratios": [significant(value) for value in values],
        "hardware": hardware(),
    }


def significant(value: float) -> float:
    """A number to four significant digits, so that small ones keep theirs."""
    return float(f"{value:.4g}")


def not_run_entry(reason: str, *, target: float, direction: str) -> dict[str, Any]:
    """What stands in the place of a ratio where there is none."""
    return {"status": NOT_RUN, "reason": reason, "target": target, "direction": direction}


def median_seconds(times: Sequence[Seconds]) -> float:
    """Median seconds on the clock."""
    return statistics.median(clock for clock, _ in times)


def read_results(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Every entry by name; none where there is no file."""
    found: dict[str, dict[str, Any]] = {}
    return json.loads(path.read_text("utf-8")) if path.is_file() else found


def write_result(name: str, entry: dict[str, Any], path: Path = RESULTS) -> None:
    """Put one entry into the file and leave the others."""
    content = read_results(path) | {name: entry}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
