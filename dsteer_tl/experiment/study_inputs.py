"""What the toxicity study of a run reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dsteer_tl.errors import PairError
from dsteer_tl.experiment.loaded_run import LoadedRun
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.lens_model import Backend, LensModel, LoadOptions
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences import PreferenceSet, load_prompts
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.training.configuration import TrainingConfiguration


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyInputs:
    """What the study reads; models are loaded when a stage first needs them.

    Attributes:
        directory: The run.
        configuration: What is studied.
        base: Directory, hub id or ``tales``.
        policy: Directory or hub id.
        backend: Of the hooked models.
        options: How the base is loaded.
        policy_options: How the policy is loaded.
        load_pair: Loads base and policy, if anything has to run.
        load_random_weights: Loads their null model, or None for an adapter.
        preferences: The pairs of the run with their split, or None where there are prompts alone.
        prompts: Prompts of the measured pairs, or of the run's file, each once.
        training: How the policy was trained, or None where it was given.
        keys: What base and policy depend on.
        progress: Show progress bars.
    """

    directory: RunDirectory
    configuration: ToxicityConfiguration
    base: str
    policy: str
    backend: Backend
    options: LoadOptions
    policy_options: LoadOptions
    load_pair: Callable[[], ModelPair]
    load_random_weights: Callable[[], LensModel | None]
    preferences: PreferenceSet | None
    prompts: tuple[str, ...]
    training: TrainingConfiguration | None
    keys: Any
    progress: bool

    @classmethod
    def of(cls, run: LoadedRun, keys: Any) -> StudyInputs:
        """The inputs of a run's study.

        Args:
            run: The run.
            keys: What base and policy depend on.
        """
        settings = run.configuration
        if run.preferences is None:
            prompts = load_prompts(Path(settings.preferences.prompts))
        else:
            prompts = (run.measured_pairs or run.preferences).prompts
        return cls(
            directory=run.directory,
            configuration=settings.toxicity,
            base=settings.base,
            policy=run.policy_source,
            backend=settings.model.backend,
            options=run.options,
            policy_options=run.policy_options,
            load_pair=lambda: run.pair,
            load_random_weights=lambda: run.random_weights(settings.toxicity.seed),
            preferences=run.preferences,
            prompts=tuple(dict.fromkeys(prompts)),
            training=None if settings.policy else settings.training,
            keys=keys,
            progress=run.progress,
        )

    @cached_property
    def pair(self) -> ModelPair:
        """Base and policy.

        Raises:
            PairError: They are the same weights, so that nothing changed.
        """
        pair = self.load_pair()
        if pair.base.weights_hash == pair.policy.weights_hash:
            raise PairError(
                f"base {pair.base.name} and policy {pair.policy.name} have the same weights: there "
                "is no change to study"
            )
        return pair

    @cached_property
    def random_weights(self) -> LensModel | None:
        """The base with random weight changes of the policy's size; None for an adapter."""
        return self.load_random_weights()

    @property
    def folder(self) -> Path:
        """Where the study keeps what is no table."""
        return self.directory / "toxicity"
