"""The results as a Markdown table: `python -m tests.benchmarks.table [FILE]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dsteer_tl.plots.benchmarks import NOT_RUN, Entries, read_entries, short
from tests.benchmarks.results import RESULTS


def markdown_table(entries: Entries) -> str:
    """One row a benchmark: median, range over the repetitions, target, and whether it was met."""
    lines = ["| benchmark | median | repetitions | target | met |", "|---|---|---|---|---|"]
    for row in read_entries(entries):
        target = row.bound if row.target == row.target else "–"
        if row.ratio is None:
            lines.append(
                f"| {row.label} | {NOT_RUN} | {row.reason.replace('|', '/')} | {target} | – |"
            )
            continue
        spread = "–"
        if row.repetitions:
            spread = f"{short(min(row.repetitions))} … {short(max(row.repetitions))}"
        met = "yes" if row.met else "**no**"
        lines.append(f"| {row.label} | {short(row.ratio)} | {spread} | {target} | {met} |")
    return "\n".join(lines)


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    sys.stdout.write(markdown_table(json.loads(path.read_text("utf-8"))) + "\n")
