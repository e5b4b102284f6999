"""The sweep stages of a run: one a suite, then the tables over all suites."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dsteer_tl.behavior.settings import HELD_OUT
from dsteer_tl.behavior.suite_sweep import (
    SuiteContext,
    available_families,
    measure_suite,
    unanswered,
)
from dsteer_tl.errors import DataError
from dsteer_tl.experiment.run_directory import StageReport
from dsteer_tl.experiment.suites import (
    SuiteData,
    held_out_prompts,
    held_out_suite,
    named_suite,
    suite_path,
    train_classifier,
)
from dsteer_tl.experiment.sweep_inputs import SweepInputs
from dsteer_tl.experiment.sweep_vectors import SweepVectors
from dsteer_tl.files import hash_content, hash_file, read_json, replacing, write_json
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences import load_prompts
from dsteer_tl.steering.plan import SweepPlan
from dsteer_tl.steering.sweep import SweepResult, execute, plan_sweep
from dsteer_tl.steering.token_choice import Decoding

logger = logging.getLogger(__name__)

#: Tables over all suites of a run.
SWEEP_TABLES = ("sweep", "sweep_metrics", "completions")
_FORMAT = 1
_SOURCE = "source.json"


def run_sweeps(inputs: SweepInputs, only: Sequence[str] = ()) -> list[StageReport]:
    """Sweep every suite that is not up to date, then put the tables together.

    Args:
        inputs: What is swept.
        only: Names of the suites to sweep; empty for all of the configuration.

    Raises:
        DataError: None of the suites can be had; where some can, the others are named in the log.
        DsteerError: Steering fails its check.
    """
    vectors = SweepVectors(inputs)
    reports: list[StageReport] = []
    failures: list[DataError] = []
    for entry in inputs.configuration.suites:
        if only and suite_path(entry)[0] not in only:
            continue
        try:
            reports.append(_suite_stage(inputs, vectors, entry))
        except DataError as error:  # the others do not depend on it
            logger.warning("suite %s NOT RUN: %s", suite_path(entry)[0], error)
            failures.append(error)
    if failures and not reports:
        raise failures[0]
    return [*reports, _table_stage(inputs)]


def _suite_stage(inputs: SweepInputs, vectors: SweepVectors, entry: str) -> StageReport:
    name, path = suite_path(entry)
    settings = asdict(inputs.configuration)
    del settings["suites"]
    content = [
        _FORMAT,
        settings,
        hash_file(path) if path is not None and path.is_file() else [name, str(path)],
        _captured(inputs),
        [inputs.beta, inputs.seed, inputs.anthropic_hh],
        available_families(inputs.configuration),
        _unanswered(inputs.directory / f"sweep/{name}/{_SOURCE}"),
        hash_file(Path(inputs.configuration.other_pair)) if inputs.configuration.other_pair else "",
    ]
    return inputs.directory.stage(
        f"sweep/{name}", content, lambda: _sweep_suite(inputs, vectors, name, path), divided=True
    )


def _unanswered(source: Path) -> int:
    """Questions that a judge's server left open when the suite was scored: ask them again."""
    if not source.is_file():
        return 0
    reports = (read_json(source).get("judge") or {}).values()
    return sum(unanswered(report.get("failed") or {}) for report in reports)


def _captured(inputs: SweepInputs) -> str:
    return hash_content([inputs.keys, inputs.directory.output_hashes("capture")])


@dataclass(frozen=True, slots=True, eq=False)
class _Planned:
    """A suite with its plan."""

    data: SuiteData
    plan: SweepPlan


def describe_sweeps(inputs: SweepInputs) -> list[str]:
    """What every suite of the configuration would run, one line each; nothing is generated.

    Raises:
        DsteerError: A suite cannot be had.
    """
    vectors = SweepVectors(inputs, calibrate=False)
    return [
        _planned(inputs, vectors, *suite_path(entry)).plan.describe()
        for entry in inputs.configuration.suites
    ]


def _planned(inputs: SweepInputs, vectors: SweepVectors, name: str, path: Path | None) -> _Planned:
    configuration, pair = inputs.configuration, inputs.load_pair()
    if name == HELD_OUT:
        data = _held_out(inputs, pair)
    else:
        seen = (*inputs.pairs_of(inputs.halves[0]), *inputs.training_pairs)
        data = named_suite(
            pair, name, path, configuration, without=frozenset(item.prompt for item in seen)
        )
    plan = plan_sweep(
        pair,
        data.prompts,
        generated=vectors.generated,
        sequences=data.sequences,
        scored=vectors.scored,
        decoding=Decoding(
            max_new_tokens=configuration.max_new_tokens,
            temperature=configuration.temperature,
            top_p=configuration.top_p,
            seed=configuration.seed,
        ),
        rows=configuration.rows,
        suite=name,
    )
    return _Planned(data, plan)


def _sweep_suite(
    inputs: SweepInputs, vectors: SweepVectors, name: str, path: Path | None
) -> list[Path]:
    """Plan by the main process, run by all, measure by the main one."""
    processes, folder = inputs.directory.processes, inputs.directory / f"sweep/{name}"

    def plan() -> _Planned:
        if not vectors.scored:
            raise DataError(
                "there is nothing to steer by: base and policy differ at none of the sites "
                f"{', '.join(inputs.configuration.sites)}; set sweep.sites, or sweep.suites=[] for "
                "none"
            )
        return _planned(inputs, vectors, name, path)

    planned = processes.done_by_main(plan)
    logger.info("%s", planned.plan.describe())
    # The parts stay: another metric or a judge asked for later generates nothing again.
    result = execute(
        planned.plan,
        inputs.load_pair(),
        folder=folder / "parts",
        progress=inputs.progress,
        processes=processes,
    )
    return processes.done_by_main(lambda: _measured(inputs, name, planned, result))


def _measured(inputs: SweepInputs, name: str, planned: _Planned, result: SweepResult) -> list[Path]:
    """What texts and scores give, as tables of the suite."""
    configuration, folder = inputs.configuration, inputs.directory / f"sweep/{name}"
    estimating, judging = (inputs.pairs_of(half) for half in inputs.halves)
    classifier = train_classifier(estimating, judging, inputs.training_pairs, inputs.seed)
    context = SuiteContext(
        suite=name,
        references=planned.data.references,
        classifier=classifier,
        anthropic_hh=inputs.anthropic_hh,
        questions=planned.data.questions,
        beta=inputs.beta,
        cache=inputs.directory / "cache",
        progress=inputs.progress,
    )
    tables = measure_suite(result, context, configuration)
    written = []
    for table, frame in (
        ("completions", tables.completions),
        ("sweep", tables.sweep),
        ("sweep_metrics", tables.metrics),
    ):
        with replacing(folder / f"{table}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
        written.append(folder / f"{table}.parquet")
    write_json(
        folder / _SOURCE,
        _plain(
            {
                "captured": _captured(inputs),
                "configuration": asdict(configuration),
                "plan": planned.plan.describe(),
                "classifier": None if classifier is None else asdict(classifier.report),
                "judge": {role: asdict(report) for role, report in tables.judge.items()},
            }
        ),
    )
    return [*written, folder / _SOURCE]


def _plain(value: Any) -> Any:
    """For JSON: arrays as lists, what is not a number as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _held_out(inputs: SweepInputs, pair: ModelPair) -> SuiteData:
    judging = inputs.halves[1]
    if inputs.pairs is not None:
        return held_out_suite(pair, inputs.pairs_of(judging), inputs.configuration)
    texts = load_prompts(inputs.prompts) if inputs.prompts is not None else ()
    return held_out_prompts(pair, [texts[index] for index in judging], inputs.configuration)


def _table_stage(inputs: SweepInputs) -> StageReport:
    directory, names = inputs.directory, _current_suites(inputs)
    hashes = {name: directory.output_hashes(f"sweep/{name}") for name in names}

    def run() -> list[Path]:
        written = []
        for table in SWEEP_TABLES:
            frames = [
                pd.read_parquet(directory / f"sweep/{name}/{table}.parquet") for name in names
            ]
            kept = [frame for frame in frames if len(frame)]
            joined = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()
            written.append(directory.write_table(table, joined))
        return written

    return directory.stage("tables/sweep", hashes, run)


def _current_suites(inputs: SweepInputs) -> list[str]:
    """Finished suites whose vectors come from the residuals that are captured now."""
    directory = inputs.directory
    finished = [
        name.removeprefix("sweep/")
        for name in directory.manifest["stages"]
        if name.startswith("sweep/")
    ]
    kept = []
    for name in finished:
        source = directory / f"sweep/{name}/{_SOURCE}"
        if source.is_file() and read_json(source).get("captured") == _captured(inputs):
            kept.append(name)
        else:
            logger.info("suite %s belongs to another policy and is left out", name)
    return kept
