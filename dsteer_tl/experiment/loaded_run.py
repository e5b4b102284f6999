"""What a run has loaded: models, pairs, probes and residuals, each at most once and when asked."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

from dsteer_tl.capture import ShiftSet
from dsteer_tl.experiment.configuration import ExperimentConfiguration
from dsteer_tl.experiment.probing import build_probes
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.lens_model import LensModel, LoadOptions
from dsteer_tl.lens_model.adapter import is_adapter
from dsteer_tl.measurements import Checkpoints
from dsteer_tl.measurements.other_captures import Precision
from dsteer_tl.null_models import random_weights_model
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from dsteer_tl.preferences import PreferenceSet
from dsteer_tl.processes import Processes
from dsteer_tl.processes import processes as launched_processes

logger = logging.getLogger(__name__)


class LoadedRun:
    """Settings, a directory, and what is loaded so far.

    Args:
        configuration: What is measured.
        folder: The run directory.
        progress: Show progress bars, in the main process.
        processes: Those that share the run; by default all of this launch.
    """

    def __init__(
        self,
        configuration: ExperimentConfiguration,
        folder: Path,
        *,
        progress: bool = True,
        processes: Processes | None = None,
    ) -> None:
        self.configuration = configuration
        self.processes = launched_processes() if processes is None else processes
        self.directory = RunDirectory(folder, self.processes)
        self.progress = progress and self.processes.is_main

    @cached_property
    def options(self) -> LoadOptions:
        """How the base is loaded."""
        return self._on_own_device(self.configuration.model.revision)

    def _on_own_device(self, revision: str) -> LoadOptions:
        """The settings of the models, on the GPU of this process where several share the run."""
        found = self.configuration.model.load_options(revision)
        if found.device == "cuda" and self.processes.count > 1 and found.device_map is None:
            return replace(found, device=f"cuda:{self.processes.local_index}")
        return found

    @cached_property
    def policy_source(self) -> str:
        """Directory or hub id of the policy."""
        return self.configuration.policy or str(self.directory / "policy")

    @cached_property
    def policy_options(self) -> LoadOptions:
        """How the policy is loaded."""
        given = self.configuration.model.policy_revision if self.configuration.policy else ""
        return self._on_own_device(given)

    @cached_property
    def pair(self) -> ModelPair:
        """Base and policy, hooked and checked."""
        pair = self._load_pair()
        for item in pair.preflight.differences:
            logger.info("base and policy differ in %s: %s", item.name, item.detail)
        self.directory.describe({"preflight": [asdict(item) for item in pair.preflight.items]})
        return pair

    def _load_pair(self) -> ModelPair:
        return ModelPair.load(
            self.configuration.base,
            self.policy_source,
            backend=self.configuration.model.backend,
            options=self.options,
            policy_options=self.policy_options,
        )

    @property
    def checkpoints(self) -> Checkpoints:
        """Where the weights of both models lie."""
        return Checkpoints(
            base=self.configuration.base,
            policy=self.policy_source,
            options=self.options,
            policy_options=self.policy_options,
        )

    def controls(self) -> dict[str, LensModel]:
        """Null models by name, as far as the settings ask for them and the policy allows."""
        settings = self.configuration.measurement
        found = self.random_weights(settings.seed) if settings.random_weights else None
        return {} if found is None else {"random_weights": found}

    def in_precision(self, dtype: Precision) -> tuple[ModelPair, dict[str, LensModel]]:
        """Both models and their controls, in the precision of the run or loaded again."""
        if dtype == self.options.dtype:
            return self.pair, self.controls()
        other = type(self)(
            replace(self.configuration, model=replace(self.configuration.model, dtype=dtype)),
            self.directory.path,
            progress=self.progress,
            processes=self.processes,
        )
        # What differs between both models was said of the run's own precision.
        return other._load_pair(), other.controls()

    def random_weights(self, seed: int) -> LensModel | None:
        """The base with random weight changes of the policy's size; None for an adapter."""
        if is_adapter(self.policy_source):
            return None
        return random_weights_model(
            self.configuration.base,
            self.policy_source,
            seed=seed,
            backend=self.configuration.model.backend,
            options=self.options,
            policy_options=self.policy_options,
        )

    @cached_property
    def preferences(self) -> PreferenceSet | None:
        """The pairs of this run, or None where there are only prompts."""
        if self.configuration.preferences.prompts:
            return None
        return PreferenceSet.load(self.directory / "preferences.jsonl")

    @cached_property
    def measured_pairs(self) -> PreferenceSet | None:
        """Held-out pairs, or all of them where nothing was trained."""
        if self.preferences is None:
            return None
        pairs = self.preferences if self.configuration.policy else self.preferences.held_out
        limit = self.configuration.measurement.pairs
        return pairs.limit(limit, self.configuration.measurement.seed) if limit else pairs

    @cached_property
    def probes(self) -> tuple[Probe, ...]:
        """Token sequences and positions to read."""
        return build_probes(
            self.pair.tokenizer, self.measured_pairs, self.configuration, self.pair.base
        )

    @cached_property
    def shift_set(self) -> ShiftSet:
        """The captured residuals."""
        return ShiftSet.open(self.directory / "capture")
