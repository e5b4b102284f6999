"""The stages of a run, in the order of the data: preferences → policy → capture → tables → claims.

Each stage leaves files that the next one reads; models are loaded only if a stage needs them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dsteer_tl.capture import CaptureConfiguration, capture_shifts
from dsteer_tl.errors import DataError, PairError, RunError
from dsteer_tl.experiment.configuration import CONTINUATIONS, to_yaml
from dsteer_tl.experiment.continued_text import continued_text_keys
from dsteer_tl.experiment.gathering import gather_preferences
from dsteer_tl.experiment.loaded_run import LoadedRun
from dsteer_tl.experiment.other_captures import OTHER_CAPTURES, capture_others
from dsteer_tl.experiment.run_directory import StageReport, hardware, versions
from dsteer_tl.experiment.source_identity import source_identity
from dsteer_tl.experiment.stressing import StressRun, run_stress, stress_tables
from dsteer_tl.experiment.study import STUDY_TABLES, run_study
from dsteer_tl.experiment.study_inputs import StudyInputs
from dsteer_tl.experiment.sweep_inputs import SweepInputs
from dsteer_tl.experiment.sweeping import SWEEP_TABLES, describe_sweeps, run_sweeps
from dsteer_tl.files import hash_file, replacing
from dsteer_tl.measurements import (
    AUDIT_TABLES,
    GRADIENT_TABLES,
    PAIR_TABLES,
    TABLES,
    MeasurementInputs,
)
from dsteer_tl.preferences import encode_pair, load_prompts
from dsteer_tl.training import train_dpo

logger = logging.getLogger(__name__)

Build = Callable[[MeasurementInputs], pd.DataFrame]


class Experiment(LoadedRun):
    """One run: its stages, and what is loaded so far."""

    def run(self) -> list[StageReport]:
        """Run every stage up to the tables; finished ones are left as they are.

        Raises:
            DsteerError: Something is wrong with settings, data, models or the disk.
        """
        self._write_settings()
        reports = [self._preferences_stage()]
        if not self.configuration.policy:
            reports.append(self._training_stage())
        reports.append(self._capture_stage())
        names = self._table_names(TABLES)
        trained = () if self.configuration.policy else ("training", "formation")
        hashes = self.shift_set.hashes
        differ = hashes["base"] != hashes["policy"]
        audited = self._table_names(AUDIT_TABLES) if self._attributed and differ else ()
        swept = SWEEP_TABLES if differ and self.configuration.sweep.suites else ()
        studied = STUDY_TABLES if differ and self.configuration.toxicity.enabled else ()
        stress = StressRun.of(self, self._capture_inputs())
        kept = (*audited, *swept, *studied, *(stress_tables(stress) if differ else ()))
        self.directory.keep_tables([*names, *trained, *kept])
        reports += [self._table_stage(name, TABLES) for name in names]
        reports += [self._table_stage(name, AUDIT_TABLES) for name in audited]
        if swept:
            reports += run_sweeps(SweepInputs.of(self, self._capture_inputs()))
        if studied:
            reports += run_study(StudyInputs.of(self, self._models()))
        if differ and self.configuration.stress.tests:
            reports += run_stress(stress)
        if differ and self.configuration.audit.multiverse:
            reports.append(self._other_captures_stage())
        else:
            self.directory.drop(OTHER_CAPTURES)
        self._describe()
        return reports

    def sweep(self, only: Sequence[str] = ()) -> list[StageReport]:
        """Run the sweeps alone, on the residuals that this run has captured.

        Args:
            only: Names of the suites to sweep; empty for all of the configuration.

        Raises:
            RunError: The run has no captured residuals.
            DsteerError: A suite cannot be had, or steering fails its check.
        """
        self._require_capture()
        reports = run_sweeps(SweepInputs.of(self, self._capture_inputs()), only)
        # Now that they could be run: a suite that cannot be had would stop every later sweep.
        self._write_settings()
        return reports

    def describe_sweeps(self) -> list[str]:
        """What the sweeps would run and cost, one line a suite.

        Raises:
            RunError: The run has no captured residuals.
        """
        self._require_capture()
        return describe_sweeps(SweepInputs.of(self, self._capture_inputs()))

    def stress(self, only: Sequence[str] = ()) -> list[StageReport]:
        """Run the stress tests alone, on the residuals that this run has captured.

        Args:
            only: Tests that were asked for by name; what they lack is an error.

        Raises:
            RunError: The run has no captured residuals.
            PairError: Base and policy hold the same weights.
            DsteerError: A test that was asked for cannot run.
        """
        self._require_capture()
        if self.shift_set.hashes["base"] == self.shift_set.hashes["policy"]:
            raise PairError(
                f"base and policy of {self.directory.path} have the same weights: there is no "
                "shift to stress"
            )
        reports = run_stress(StressRun.of(self, self._capture_inputs()), only)
        # Now that they could be run: a test that cannot would stop every later one.
        self._write_settings()
        return reports

    def _require_capture(self) -> None:
        if "capture" not in self.directory.manifest["stages"]:
            raise RunError(
                f"{self.directory.path} has no captured residuals to take vectors from: finish the "
                "run first, with dsteer reproduce or dsteer analyze"
            )

    def study(self) -> list[StageReport]:
        """Run the stages up to the policy and then the toxicity study, without the rest.

        Raises:
            DsteerError: Something is wrong with settings, data, models or the disk.
        """
        self._write_settings()
        reports = [self._preferences_stage()]
        if not self.configuration.policy:
            reports.append(self._training_stage())
        reports += run_study(StudyInputs.of(self, self._models()))
        self._describe()
        return reports

    def train(self) -> list[StageReport]:
        """Run the stages up to the policy.

        Raises:
            DsteerError: Something is wrong with settings, data, models or the disk.
        """
        self._write_settings()
        return [self._preferences_stage(), self._training_stage()]

    def _describe(self) -> None:
        captured = "capture" in self.directory.manifest["stages"]
        self.directory.describe(
            {
                "name": self.configuration.name,
                "models": {
                    "base": {"source": self.configuration.base},
                    "policy": {"source": self.configuration.policy or "trained in this run"},
                    "weights": self.shift_set.hashes if captured else {},
                },
                "versions": versions(),
                "hardware": hardware(),
                "seeds": {
                    "preferences": self.configuration.preferences.seed,
                    "sampling": self.configuration.preferences.sampling.seed,
                    "training": self.configuration.training.seed,
                    "measurement": self.configuration.measurement.seed,
                    "toxicity": self.configuration.toxicity.seed,
                    "stress": self.configuration.stress.seed,
                },
            }
        )

    def _write_settings(self) -> None:
        path = self.directory / "config.yaml"
        with replacing(path) as temporary:
            temporary.write_text(to_yaml(self.configuration), "utf-8")
        self.directory.describe({"config": hash_file(path)})

    # Stages.

    @cached_property
    def _base_identity(self) -> str:
        return source_identity(self.configuration.base, self.options.revision)

    def _preferences_stage(self) -> StageReport:
        settings = self.configuration.preferences
        inputs = [asdict(settings), self._base_identity, bool(self.configuration.policy)]
        inputs.append(
            [
                hash_file(Path(s))
                for s in (*settings.sources, settings.prompts)
                if s and Path(s).is_file()
            ]
        )
        if CONTINUATIONS in settings.sources:
            inputs.append(continued_text_keys(self.configuration))
        return self.directory.stage("preferences", inputs, self._write_preferences)

    def _write_preferences(self) -> list[Path]:
        settings = self.configuration.preferences
        if settings.prompts:
            load_prompts(Path(settings.prompts))
            return []
        preferences = gather_preferences(self.configuration, self.options, progress=self.progress)
        path = self.directory / "preferences.jsonl"
        preferences.save(path)
        return [path, path.with_name("preferences.dropped.json")]

    def _training_stage(self) -> StageReport:
        inputs = [
            asdict(self.configuration.training),
            self._base_identity,
            asdict(self.configuration.model),
            self.directory.output_hashes("preferences"),
        ]
        return self.directory.stage("training", inputs, self._train)

    def _train(self) -> list[Path]:
        if self.preferences is None:
            raise DataError("there are prompts but no pairs to train on: set policy")
        result = train_dpo(
            self.configuration.base,
            self.preferences,
            self.directory / "policy",
            self.configuration.training,
            options=self.options,
            progress=self.progress,
        )
        return [
            *(path for path in result.policy.rglob("*") if path.is_file()),
            self.directory.write_table("training", result.training),
            self.directory.write_table("formation", result.formation),
        ]

    def _models(self) -> list[Any]:
        policy = (
            source_identity(self.configuration.policy, self.policy_options.revision)
            if self.configuration.policy
            else self.directory.output_hashes("training")
        )
        return [self._base_identity, policy, asdict(self.configuration.model)]

    def _capture_inputs(self) -> list[Any]:
        settings = self.configuration.measurement
        prompts = self.configuration.preferences.prompts
        return [
            *self._models(),
            hash_file(Path(prompts)) if prompts else self.directory.output_hashes("preferences"),
            [settings.position_kinds, settings.response_limit, settings.pairs],
            [settings.random_weights, settings.seed, self.configuration.preferences.overlong],
        ]

    def _capture_stage(self) -> StageReport:
        return self.directory.stage("capture", self._capture_inputs(), self._capture)

    def _capture(self) -> list[Path]:
        settings = self.configuration.measurement
        pair = self.pair  # refused here, with a reason, if the two models are no pair
        folder = self.directory / "capture"
        capture_shifts(
            pair,
            self.probes,
            controls=self.controls(),
            folder=folder,
            configuration=CaptureConfiguration(
                token_budget=settings.token_budget, progress=self.progress
            ),
        )
        return [path for path in folder.iterdir() if path.is_file()]

    @property
    def _attributed(self) -> bool:
        return self.configuration.audit.attribution

    def _table_names(self, tables: Mapping[str, Build]) -> tuple[str, ...]:
        if "divergence" in self.shift_set.kinds:
            return tuple(tables)
        return tuple(name for name in tables if name not in PAIR_TABLES)

    def _table_stage(self, name: str, tables: Mapping[str, Build]) -> StageReport:
        inputs = [
            name,
            self._capture_inputs(),
            self.directory.output_hashes("capture"),
            asdict(self.configuration.measurement),
            self.configuration.training.beta if name in GRADIENT_TABLES else None,
        ]

        def run() -> list[Path]:
            return [self.directory.write_table(name, tables[name](self._measurement_inputs))]

        return self.directory.stage(f"tables/{name}", inputs, run)

    def _other_captures_stage(self) -> StageReport:
        inputs = [
            self._capture_inputs(),
            self.directory.output_hashes("capture"),
            asdict(self.configuration.measurement),
            self.configuration.audit.unrelated_prompts,
        ]
        return self.directory.stage(
            OTHER_CAPTURES, inputs, lambda: capture_others(self, self._measurement_inputs)
        )

    @cached_property
    def _measurement_inputs(self) -> MeasurementInputs:
        pairs = self.measured_pairs
        return MeasurementInputs(
            load_pair=lambda: self.pair,
            shift_set=self.shift_set,
            load_probes=lambda: self.probes,
            load_encoded=lambda: [encode_pair(self.pair.tokenizer, item) for item in pairs or ()],
            configuration=self.configuration.measurement,
            beta=self.configuration.training.beta,
            checkpoints=self.checkpoints,
            load_controls=self.controls,
            progress=self.progress,
        )
