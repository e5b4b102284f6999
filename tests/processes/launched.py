"""What the tests launch in several processes, and the launches.

``python -m tests.processes.launched FOLDER`` starts every launch one after the other, by the agent
behind ``torchrun``, and writes what each process found to ``FOLDER/found.json``. Processes are
forked, so that torch is loaded once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dsteer_tl import capture
from dsteer_tl.capture import CaptureConfiguration, capture_shifts
from dsteer_tl.command_settings import parse_settings
from dsteer_tl.errors import DataError
from dsteer_tl.experiment.configuration import build_configuration
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.experiment.stages import Experiment
from dsteer_tl.processes import processes
from dsteer_tl.sites import FINAL
from dsteer_tl.steering import sweep as sweep_module
from dsteer_tl.steering.plan import SweepPlan, SweepSequence
from dsteer_tl.steering.sweep import execute, plan_sweep
from dsteer_tl.steering.teacher_forced import Setting
from dsteer_tl.steering.token_choice import Decoding
from tests.models import policy_of, random_model, save_checkpoint
from tests.runs import QUICK, pairs
from tests.steering.tiny_steering import SEQUENCES, at, bias
from tests.tiny_pairs import probes, tiny_pair

PROMPTS = ("Once upon a time", "The old man", "She", "He said no")
#: One sequence a shard, so that every process has several.
CONFIGURATION = CaptureConfiguration(shard_sequences=1, progress=False)


def plan_of(scale: float = 1.0) -> SweepPlan:
    curves = tuple(
        Setting.by_norm(item, (0.0, scale)) for item in (at(FINAL), bias(), at("resid_post.0"))
    )
    return plan_sweep(
        tiny_pair(),
        PROMPTS,
        generated={"interpolate": curves, "invert": curves[:1]},
        sequences=[SweepSequence(item=0, side="chosen", tokens=row) for row in SEQUENCES],
        scored={"interpolate": curves, "invert": curves[:1]},
        decoding=Decoding(max_new_tokens=3, temperature=0.8),
        rows=6,
    )


def state(folder: Path) -> dict[str, list[int]]:
    """Files by name, each with what changes when it is written again."""
    found = sorted(
        path for path in folder.rglob("*") if path.suffix in (".safetensors", ".parquet")
    )
    return {
        path.relative_to(folder).as_posix(): [path.stat().st_ino, path.stat().st_mtime_ns]
        for path in found
    }


class Calls:
    """Counts the calls of a function of a module, and may kill the process at one of them."""

    def __init__(self, module: Any, name: str, die_at: int | None = None) -> None:
        self.count, self._die_at, self._do = 0, die_at, getattr(module, name)
        setattr(module, name, self)

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        if self.count == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        return self._do(*arguments, **settings)


def measure(folder: Path, dies_in: str = "") -> dict[str, Any]:
    """Capture and sweep; the second process may be killed at its second shard or part."""
    who = processes()
    second = 1 if who.index == 1 else None
    shards = Calls(capture, "capture_shard", second if dies_in == "capture" else None)
    parts = Calls(sweep_module, "completion_rows", second if dies_in == "sweep" else None)
    scores = Calls(sweep_module, "scored_rows")
    checks = Calls(sweep_module, "check_steering")
    found = capture_shifts(
        tiny_pair(),
        probes(),
        folder=folder / "capture",
        configuration=CONFIGURATION,
        processes=who,
    )
    # The plan of the main process is run by all: another one here must not show.
    plan = plan_of(1.0 if who.is_main else 3.0)
    result = execute(plan, tiny_pair(), folder=folder / "parts", progress=False, processes=who)
    own = folder / f"process-{who.index}"
    own.mkdir(exist_ok=True)
    result.completions.to_parquet(own / "completions.parquet")
    result.scored.to_parquet(own / "scored.parquet")
    shifts = pd.DataFrame(
        {
            f"{site} {kind} {place}": pd.Series(column)
            for site in found.sites
            for kind in found.kinds
            for place, column in enumerate(found.shifts(site, kind).T)
        }
    )
    shifts.to_parquet(own / "shifts.parquet")
    return {
        "index": who.index,
        "count": who.count,
        "shards": shards.count,
        "generated": parts.count,
        "scored": scores.count,
        "checks": checks.count,
    }


def stages(folder: Path) -> dict[str, Any]:
    """A stage of the main process, one of all, one that fails, and what comes after."""
    who = processes()
    directory = RunDirectory(folder, who)
    done: list[str] = []

    def alone() -> list[Path]:
        done.append("alone")
        directory.describe({"name": "described"})
        # What a stage calls waits for nobody unless it is handed the processes.
        capture_shifts(
            tiny_pair(), probes()[:2], folder=folder / "alone", configuration=CONFIGURATION
        )
        execute(plan_of(), tiny_pair(), folder=folder / "alone" / "parts", progress=False)
        return [directory.write_table("alone", pd.DataFrame({"x": [who.index]}))]

    def together() -> list[Path]:
        done.append("together")
        (folder / f"part-{who.index}.txt").write_text("part")
        who.wait()
        return sorted(folder.glob("part-*.txt"))

    def fails() -> list[Path]:
        done.append("fails")
        raise DataError(f"no such prompts, says process {who.index}")

    reports = [
        # Only the inputs of the main process count.
        directory.stage("alone", [who.index], alone),
        directory.stage("alone", [7 * who.index], alone),
        directory.stage("together", [1], together, divided=True),
    ]
    directory.keep_tables(["alone"])
    try:
        directory.stage("fails", [1], fails)
    except DataError as error:
        said = str(error)
        directory.drop("fails")
    reports.append(directory.stage("together", [1], together, divided=True))
    return {
        "done": done,
        "said": said,
        "reports": [[report.name, report.ran, report.seconds] for report in reports],
        "outputs": directory.output_hashes("together"),
    }


def breaks(folder: Path) -> None:
    """A stage of the main process ends with an error that is not of the family."""

    def run() -> list[Path]:
        raise OSError("the disk is on fire")

    RunDirectory(folder, processes()).stage("breaks", [1], run)


def analyze(folder: Path) -> dict[str, Any]:
    """A whole run up to its tables, as every process of ``dsteer analyze`` calls it."""
    settings = [
        *QUICK,
        *("measurement.coefficients=[0.0, 1.0]", "measurement.ranks=[1]", "sweep.draws=5"),
        *("measurement.gradient_pairs=2", "measurement.patching_pairs=2", "measurement.draws=10"),
        *("audit.attribution=false", "audit.multiverse=false", "measurement.random_weights=false"),
        # The second one cannot be had: all processes must leave it out and go on.
        *("sweep.suites=[held_out, 'none=/nowhere/none.txt']", "sweep.kl_matched=[random]"),
        *("sweep.vectors=[v_star, random]", "sweep.generated=[v_star, random]"),
    ]
    models = {name: str(folder.parent / "models" / name) for name in ("base", "policy")}
    pairs = {"preferences": {"sources": [str(folder.parent / "pairs.jsonl")]}}
    configuration = build_configuration(parse_settings(settings), models, pairs)
    experiment = Experiment(configuration, folder, progress=False)
    first, again = experiment.run(), experiment.run()
    return {
        "first": [[report.name, report.ran] for report in first],
        "again": [report.name for report in again if report.ran],
    }


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """In each process: threads as with any other number of them."""
    torch.set_num_threads(1)
    return function(*arguments)


def launch(count: int, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What each process returned, or how the launch failed; as ``torchrun --standalone``."""
    configuration = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.05,
        start_method="fork",
    )
    try:
        found = elastic_launch(configuration, _call)(function, arguments)
    except ChildFailedError as error:
        failures = error.failures.values()
        return {"failed": {str(item.local_rank): item.exitcode for item in failures}}
    return {str(rank): result for rank, result in sorted(found.items())}


def main(folder: Path) -> None:
    logging.disable(logging.ERROR)  # the agent says at length that a process was killed
    torch.set_num_threads(1)
    base = random_model()
    save_checkpoint(base, folder / "models" / "base")
    save_checkpoint(policy_of(base, scale=0.2), folder / "models" / "policy")
    rows = "".join(json.dumps(pair) + "\n" for pair in pairs())
    (folder / "pairs.jsonl").write_text(rows, "utf-8")
    tiny_pair()  # loaded before the processes are forked
    killed, found = folder / "killed", {}
    found["one"] = launch(1, measure, folder / "one")
    found["dead in capture"] = launch(2, measure, killed, "capture")
    found["after capture"] = state(killed)
    found["dead in sweep"] = launch(2, measure, killed, "sweep")
    found["after sweep"] = state(killed)
    found["two"] = launch(2, measure, killed)
    found["after all"] = state(killed)
    found["three"] = launch(3, measure, folder / "three")
    found["stages"] = launch(3, stages, folder / "stages")
    found["breaks"] = launch(2, breaks, folder / "breaks")
    for count, name in ((1, "run of one"), (2, "run of two")):
        found[name] = launch(count, analyze, folder / name)
    (folder / "found.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
