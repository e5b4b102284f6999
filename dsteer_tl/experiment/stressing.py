"""The stress stages of a run: one a test, and the table that says which tests could not run."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dsteer_tl.claims.open_questions import OPEN
from dsteer_tl.errors import ConfigurationError, DsteerError
from dsteer_tl.experiment.judging import judge_run
from dsteer_tl.experiment.loaded_run import LoadedRun
from dsteer_tl.experiment.run_directory import RunDirectory, StageReport
from dsteer_tl.experiment.suites import suite_path
from dsteer_tl.files import hash_content, hash_file, read_json, write_json
from dsteer_tl.manifest import MANIFEST
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.models import model_verdict_table
from dsteer_tl.stress.settings import STRESS_TESTS

logger = logging.getLogger(__name__)

_FORMAT = 1
#: Table over all tests: which were measured, and why the others were not.
STATUS = "stress_tests"
#: Second table of the test ``models``: the verdict of every row in every run.
MODEL_VERDICTS = "stress_model_verdicts"
_MEASURED, _NOT_RUN = "measured", "NOT RUN"
_WRITING = ("max_new_tokens", "temperature")
#: Settings that each test reads beside ``prompts`` and ``seed``; others leave it up to date.
_READS: Mapping[str, tuple[str, ...]] = {
    "embeddings": ("max_steps",),
    "heterogeneous": ("axes", "max_steps"),
    "models": ("runs",),
    "encodings": ("encodings", *_WRITING),
    "turns": ("dialogues", "turns", *_WRITING),
    "prompts": ("benign", "harmful", "max_new_tokens"),
    "causes": ("transfer", "max_steps"),
    "losses": ("losses", "max_steps"),
    "sensitivity": ("betas", "shares", "max_steps"),
}
#: Settings that name files or folders.
_FILES = ("dialogues", "benign", "harmful", "transfer", "runs")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StressRun:
    """The stress tests of one run.

    Attributes:
        directory: The run.
        inputs: What the tests read.
        keys: What the run's captured residuals depend on.
    """

    directory: RunDirectory
    inputs: StressInputs
    keys: Any

    @classmethod
    def of(cls, run: LoadedRun, keys: Any) -> StressRun:
        """The stress tests of a run.

        Args:
            run: The run.
            keys: What its captured residuals depend on.
        """
        settings = run.configuration
        return cls(
            directory=run.directory,
            keys=[keys, run.directory.output_hashes("capture")],
            inputs=StressInputs(
                base=settings.base,
                load_pair=lambda: run.pair,
                preferences=run.preferences,
                measured=run.measured_pairs,
                training=None if settings.policy else settings.training,
                shift_set=run.shift_set,
                load_probes=lambda: run.probes,
                scorer=settings.preferences.scorer,
                measurement=settings.measurement,
                settings=settings.stress,
                folder=run.directory / "stress",
                options=run.options,
                load_controls=run.controls,
                backend=settings.model.backend,
                progress=run.progress,
            ),
        )

    @property
    def captured(self) -> str:
        """Hash of what every test starts from."""
        return hash_content(self.keys)


def run_stress(run: StressRun, only: Sequence[str] = ()) -> list[StageReport]:
    """Run every stress test of the configuration that is not up to date.

    A test that lacks its data is NOT RUN with the reason, and the others go on.

    Args:
        run: The run.
        only: Tests that the user asked for by name: what they lack is an error.

    Raises:
        ConfigurationError: There is no such test, or one that was asked for lacks a setting.
        DsteerError: A test that was asked for cannot run.
    """
    names = run.inputs.settings.tests
    unknown = [name for name in (*names, *only) if name not in STRESS_TESTS]
    if unknown:
        raise ConfigurationError(
            f"there is no stress test {unknown[0]!r}: expected one of {', '.join(STRESS_TESTS)}"
        )
    reports = []
    for name in (test for test in STRESS_TESTS if test in names):
        try:
            reports.append(_stage(run, name))
        except DsteerError as error:
            if name in only:
                raise
            logger.warning("stress test %s NOT RUN: %s", name, error)
            # What it measured under other settings or on another policy is no answer any more.
            run.directory.drop(f"stress/{name}")
            _mark(run, name, _NOT_RUN, str(error))
    return [*reports, _status_stage(run)]


def stress_tables(run: StressRun) -> tuple[str, ...]:
    """Tables of the tests that stand, or will: asked for now, or measured on the same residuals."""
    kept = [
        name
        for name in STRESS_TESTS
        if name in run.inputs.settings.tests or _is_of_this_capture(run, name)
    ]
    verdicts = (MODEL_VERDICTS,) if "models" in kept else ()
    return (STATUS, *(f"stress_{name}" for name in kept), *verdicts)


def _is_of_this_capture(run: StressRun, name: str) -> bool:
    marker = _marker(run, name)
    return marker.is_file() and read_json(marker).get("captured") == run.captured


def _marker(run: StressRun, name: str) -> Path:
    return run.inputs.folder / f"{name}.json"


def _mark(run: StressRun, name: str, status: str, reason: str = "") -> None:
    if run.directory.processes.is_main:
        write_json(
            _marker(run, name), {"status": status, "reason": reason, "captured": run.captured}
        )


def _build(name: str) -> Callable[[StressInputs], pd.DataFrame]:
    """The function of a test; its packages are loaded when it runs."""
    module = importlib.import_module(f"dsteer_tl.stress.{_MODULES.get(name, name)}")
    function: Callable[[StressInputs], pd.DataFrame] = getattr(module, f"{name}_table")
    return function


#: Tests that train: TRL's trainers divide their batches among all processes of a launch.
_TRAINING = ("embeddings", "heterogeneous", "causes", "losses", "sensitivity")
#: Tests whose module is not called as they are.
_MODULES = {"prompts": "harmful_prompts"}


def _stage(run: StressRun, name: str) -> StageReport:
    inputs, directory = run.inputs, run.directory
    if name in _TRAINING and directory.processes.count > 1:
        raise ConfigurationError(
            f"the stress test {name} trains policies one after the other, here in "
            f"{directory.processes.count} processes: run dsteer stress {directory.path} "
            f"--test {name} without a launcher"
        )
    reads = {key: getattr(inputs.settings, key) for key in ("prompts", "seed", *_READS[name])}
    keys = [
        _FORMAT,
        reads,
        run.keys,
        asdict(inputs.measurement),
        None if inputs.training is None else asdict(inputs.training),
        inputs.scorer,
        [_hash(entry) for key in _FILES if key in reads for entry in _entries(reads[key])],
    ]

    verdicts = _own_verdicts(directory) if name == "models" else {}
    if verdicts:
        keys.append(verdicts)

    def work() -> list[Path]:
        written = [directory.write_table(f"stress_{name}", _build(name)(inputs))]
        if name == "models":
            table = model_verdict_table(inputs, verdicts=verdicts)
            written.append(directory.write_table(MODEL_VERDICTS, table))
        return written

    report = directory.stage(f"stress/{name}", keys, work)
    _mark(run, name, _MEASURED)
    return report


def _own_verdicts(directory: RunDirectory) -> dict[int, str]:
    """Verdicts on the tables as they are now: ``claims.json`` is written after the stress tests."""
    return {
        result.id: result.verdict.value
        for result in judge_run(directory)
        if not result.source.startswith(OPEN)
    }


def _entries(setting: str | tuple[str, ...]) -> tuple[str, ...]:
    return (setting,) if isinstance(setting, str) else tuple(setting)


def _hash(entry: str) -> str:
    """Of a file's content; of a run's manifest; of the name where it is neither."""
    path = suite_path(entry)[1] or Path(entry)
    if (path / MANIFEST).is_file():
        path = path / MANIFEST
    return hash_file(path) if path.is_file() else entry


def _status_stage(run: StressRun) -> StageReport:
    rows = []
    for name in STRESS_TESTS:
        marker = _marker(run, name)
        found = read_json(marker) if _is_of_this_capture(run, name) else {}
        rows.append(
            {
                "test": name,
                "status": found.get("status", _NOT_RUN),
                "reason": found.get("reason", "not asked for"),
            }
        )

    def work() -> list[Path]:
        return [run.directory.write_table(STATUS, pd.DataFrame(rows))]

    return run.directory.stage("stress/tests", rows, work)
