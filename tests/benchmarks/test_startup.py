"""How long the import and the help take, as shares of half a second.

Collected only when asked for: `pytest tests/benchmarks`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks.results import REPETITIONS, value_entry, write_result

LIMIT = 0.5
REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).parent / "dsteer"
COMMANDS = {
    "interpreter": [sys.executable, "-c", "pass"],
    "import": [sys.executable, "-c", "import dsteer_tl"],
    "help": [str(PROGRAM), "--help"],
}


def seconds_of(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def test_startup() -> None:
    if not PROGRAM.is_file():
        pytest.fail(f"no {PROGRAM.name} beside {Path(sys.executable).name}: install the package")
    for command in COMMANDS.values():
        seconds_of(command)
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPETITIONS):
        for name, command in COMMANDS.items():
            seconds[name].append(seconds_of(command))
    bare = sorted(seconds.pop("interpreter"))[REPETITIONS // 2]
    for name, found in seconds.items():
        entry = value_entry([one / LIMIT for one in found], target=1.0, direction="<=")
        write_result(
            f"startup_{name}",
            entry
            | {
                "seconds": round(entry["ratio"] * LIMIT, 4),
                "limit_seconds": LIMIT,
                "bare_interpreter_seconds": round(bare, 4),
            },
        )
