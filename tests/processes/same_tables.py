"""``python -m tests.processes.same_tables ONE OTHER``: whether two runs have the same tables."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

TOLERANCE = 1e-6


def require_same_tables(one: Path, other: Path) -> list[str]:
    """Names of the tables that both runs have; an error says where they differ."""
    names = [
        sorted(path.relative_to(run).as_posix() for path in run.glob("tables/*.parquet"))
        for run in (one, other)
    ]
    assert names[0] and names[0] == names[1], names
    for name in names[0]:
        ours, theirs = (pd.read_parquet(run / name) for run in (one, other))
        pd.testing.assert_frame_equal(theirs, ours, rtol=0, atol=TOLERANCE)
    return names[0]


if __name__ == "__main__":
    found = require_same_tables(*(Path(name) for name in sys.argv[1:3]))
    sys.stdout.write(f"{len(found)} tables are the same\n")
