"""Judging a run on its stored tables: the ledger, and the ledger under other choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from dsteer_tl.claims import Ledger, judge
from dsteer_tl.claims.multiverse import multiverse
from dsteer_tl.claims.views import stored_views
from dsteer_tl.experiment.configuration import build_configuration, file_settings
from dsteer_tl.experiment.other_captures import read_others
from dsteer_tl.experiment.run_directory import RunDirectory, StageReport
from dsteer_tl.files import write_json

#: Table of the ledger under every choice.
MULTIVERSE = "multiverse"
_FORMAT = 1


def _differences(directory: RunDirectory) -> tuple[tuple[str, ...], bool]:
    """Properties in which base and policy differ, and whether their weights do not."""
    checks = directory.manifest.get("preflight", ())
    failed = {item["name"] for item in checks if not item["passed"]}
    return tuple(sorted(failed - {"context", "weights"})), "weights" in failed


def _measured(directory: RunDirectory) -> dict[str, pd.DataFrame]:
    """The tables that claims read: all but what judging itself has written."""
    tables = directory.tables()
    tables.pop(MULTIVERSE, None)
    return tables


def judge_run(directory: RunDirectory) -> Ledger:
    """Judge every claim on the tables of a run; nothing is written."""
    differences, identical = _differences(directory)
    return judge(_measured(directory), differences, identical=identical)


def claim_stage(directory: RunDirectory) -> Ledger:
    """Judge every claim on the tables of a run and write ``claims.json``."""
    results = judge_run(directory)
    content = [result.to_json() for result in results]

    def run() -> list[Path]:
        path = directory / "claims.json"
        write_json(path, content)
        return [path]

    directory.stage("claims", content, run)
    return results


def multiverse_stage(directory: RunDirectory) -> StageReport:
    """Judge every claim under every choice that the run has stored: the table ``multiverse``."""
    name = f"tables/{MULTIVERSE}"
    stages: dict[str, Any] = directory.manifest["stages"]
    read = {key: entry["outputs"] for key, entry in stages.items() if _is_read(key)}

    def run() -> list[Path]:
        differences, identical = _differences(directory)
        settings = build_configuration(file_settings(directory / "config.yaml"))
        views = stored_views(
            _measured(directory), read_others(directory), precision=settings.model.dtype
        )
        table = multiverse(views, differences, identical=identical)
        return [directory.write_table(MULTIVERSE, table)]

    return directory.stage(name, [_FORMAT, read, stages["claims"]["outputs"]], run)


def _is_read(stage: str) -> bool:
    prefixes = ("tables/", "toxicity/", "stress/", MULTIVERSE, "training")
    return stage.startswith(prefixes) and stage != f"tables/{MULTIVERSE}"
