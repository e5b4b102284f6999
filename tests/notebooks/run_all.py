"""Run all scripts of `analyses/` as notebooks: ``python -m tests.notebooks.run_all RUN``.

One line a notebook; the exit code is 1 where one failed. Scripts that are left out are listed with
the reason. With ``--only NAME …`` just those are run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.notebooks.notebooks import NOT_RUN, Executed, execute, linked_run, scripts


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _run(path: Path, run: Path, timeout: int) -> Executed:
    with tempfile.TemporaryDirectory(prefix="dsteer-notebook-") as temporary:
        linked_run(run, Path(temporary))
        return execute(path, Path(temporary), timeout=timeout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.notebooks.run_all", description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run directory")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these scripts alone")
    parser.add_argument("--workers", type=int, default=2, help="notebooks at a time (default 2)")
    parser.add_argument("--timeout", type=int, default=600, help="seconds a cell (default 600)")
    given = parser.parse_args(arguments)
    if not (given.run / "manifest.json").is_file():
        parser.error(f"{given.run} is no run directory: it has no manifest.json")
    names = {path.stem: path for path in scripts()}
    unknown = sorted(set(given.only) - set(names))
    if unknown:
        parser.error(f"no script {', '.join(unknown)} in analyses/")
    chosen = list(given.only) or [name for name in names if name not in NOT_RUN]
    for name in [] if given.only else sorted(set(names) & set(NOT_RUN)):
        _say(f"left out  {name}: {NOT_RUN[name]}")
    failed = 0
    with ThreadPoolExecutor(max_workers=given.workers) as pool:
        for found in pool.map(lambda name: _run(names[name], given.run, given.timeout), chosen):
            failed += bool(found.error)
            _say(f"{'FAILED' if found.error else 'ok':<8}  {found.name}  {found.seconds:.1f} s"
                 + (f"  {found.error}" if found.error else ""))  # fmt: skip
    _say(f"{len(chosen) - failed} of {len(chosen)} notebooks ran without an error")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
