"""The stages that every run has: preferences, training, capture, tables and other captures.

Each leaves files that the next one reads; models are loaded only if a stage needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dsteer_tl.capture import CaptureConfiguration, capture_shifts, captured_files
from dsteer_tl.errors import DataError
from dsteer_tl.experiment.configuration import CONTINUATIONS
from dsteer_tl.experiment.continued_text import continued_text_keys
from dsteer_tl.experiment.gathering import gather_preferences
from dsteer_tl.experiment.loaded_run import LoadedRun
from dsteer_tl.experiment.other_captures import OTHER_CAPTURES, capture_others
from dsteer_tl.experiment.run_directory import StageReport
from dsteer_tl.experiment.source_identity import source_identity
from dsteer_tl.files import hash_file
from dsteer_tl.measurements import GRADIENT_TABLES, PAIR_TABLES, MeasurementInputs
from dsteer_tl.preferences import encode_pair, load_prompts
from dsteer_tl.training import train_dpo

Build = Callable[[MeasurementInputs], pd.DataFrame]


class MainStages(LoadedRun):
    """The stages up to the tables, each run unless it is up to date."""

    @cached_property
    def base_identity(self) -> str:
        """What the base is: its weights on disk, or its place on the hub."""
        return source_identity(self.configuration.base, self.options.revision)

    def preferences_stage(self) -> StageReport:
        """Read or sample the pairs."""
        settings = self.configuration.preferences
        inputs = [asdict(settings), self.base_identity, bool(self.configuration.policy)]
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

    def training_stage(self) -> StageReport:
        """Train the policy, in all processes: the trainer shares its batches among them."""
        inputs = [
            asdict(self.configuration.training),
            self.base_identity,
            asdict(self.configuration.model),
            self.directory.output_hashes("preferences"),
        ]
        return self.directory.stage("training", inputs, self._train, divided=True)

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
        if not self.processes.is_main:
            return []
        return [
            *(path for path in result.policy.rglob("*") if path.is_file()),
            self.directory.write_table("training", result.training),
            self.directory.write_table("formation", result.formation),
        ]

    def model_keys(self) -> list[Any]:
        """What base and policy depend on."""
        policy = (
            source_identity(self.configuration.policy, self.policy_options.revision)
            if self.configuration.policy
            else self.directory.output_hashes("training")
        )
        return [self.base_identity, policy, asdict(self.configuration.model)]

    def capture_keys(self) -> list[Any]:
        """What the captured residuals depend on."""
        settings = self.configuration.measurement
        prompts = self.configuration.preferences.prompts
        return [
            *self.model_keys(),
            hash_file(Path(prompts)) if prompts else self.directory.output_hashes("preferences"),
            [settings.position_kinds, settings.response_limit, settings.pairs],
            [settings.random_weights, settings.seed, self.configuration.preferences.overlong],
        ]

    def capture_stage(self) -> StageReport:
        """Capture the residuals of both models and their controls, each process its share."""
        return self.directory.stage("capture", self.capture_keys(), self._capture, divided=True)

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
            processes=self.processes,
        )
        return captured_files(folder)

    @property
    def attributed(self) -> bool:
        """Whether tables on who writes the shift are asked for."""
        return self.configuration.audit.attribution

    def table_names(self, tables: Mapping[str, Build]) -> tuple[str, ...]:
        """Names of the tables that the captured residuals allow."""
        if "divergence" in self.shift_set.kinds:
            return tuple(tables)
        return tuple(name for name in tables if name not in PAIR_TABLES)

    def table_stage(self, name: str, tables: Mapping[str, Build]) -> StageReport:
        """Build one table."""
        inputs = [
            name,
            self.capture_keys(),
            self.directory.output_hashes("capture"),
            asdict(self.configuration.measurement),
            self.configuration.training.beta if name in GRADIENT_TABLES else None,
        ]

        def run() -> list[Path]:
            return [self.directory.write_table(name, tables[name](self.measurement_inputs))]

        return self.directory.stage(f"tables/{name}", inputs, run)

    def other_captures_stage(self) -> StageReport:
        """Capture what the multiverse judges beside the run's own tables."""
        inputs = [
            self.capture_keys(),
            self.directory.output_hashes("capture"),
            asdict(self.configuration.measurement),
            self.configuration.audit.unrelated_prompts,
        ]
        return self.directory.stage(
            OTHER_CAPTURES, inputs, lambda: capture_others(self, self.measurement_inputs)
        )

    @cached_property
    def measurement_inputs(self) -> MeasurementInputs:
        """What tables are built from."""
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
