"""What the sweep stages of a run read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsteer_tl.behavior.settings import SweepConfiguration
from dsteer_tl.capture import ShiftSet
from dsteer_tl.experiment.loaded_run import LoadedRun
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.experiment.suites import is_anthropic_hh
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from dsteer_tl.preferences import PreferencePair, PreferenceSet


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SweepInputs:
    """What the sweeps of a run read.

    Attributes:
        directory: The run.
        configuration: What is swept.
        load_pair: Loads base and policy, if anything has to run.
        shift_set: Captured residuals, from which the vectors come.
        load_probes: The probes they were captured at.
        pairs: The measured pairs, or None where there are prompts alone.
        training_pairs: Pairs that the policy was trained on.
        prompts: File of prompts, where there are no pairs.
        anthropic_hh: Whether the pairs are Anthropic's HH.
        beta: β of the training.
        seed: Seed that halves the prompts, as in the other measurements.
        keys: What the captured residuals depend on.
        progress: Show progress bars.
    """

    directory: RunDirectory
    configuration: SweepConfiguration
    load_pair: Callable[[], ModelPair]
    shift_set: ShiftSet
    load_probes: Callable[[], tuple[Probe, ...]]
    pairs: PreferenceSet | None
    training_pairs: tuple[PreferencePair, ...]
    prompts: Path | None
    anthropic_hh: bool
    beta: float
    seed: int
    keys: Any
    progress: bool

    @classmethod
    def of(cls, run: LoadedRun, keys: Any) -> SweepInputs:
        """The inputs of a run's sweeps.

        Args:
            run: The run.
            keys: What its captured residuals depend on.
        """
        settings = run.configuration
        trained = run.preferences is not None and not settings.policy
        prompts, sources = settings.preferences.prompts, settings.preferences.sources
        return cls(
            directory=run.directory,
            configuration=settings.sweep,
            load_pair=lambda: run.pair,
            shift_set=run.shift_set,
            load_probes=lambda: run.probes,
            pairs=run.measured_pairs,
            training_pairs=tuple(run.preferences.train) if trained and run.preferences else (),
            prompts=Path(prompts) if prompts else None,
            anthropic_hh=not prompts and all(is_anthropic_hh(source) for source in sources),
            beta=settings.training.beta,
            seed=settings.measurement.seed,
            keys=keys,
            progress=run.progress,
        )

    @property
    def position_kind(self) -> str:
        """The rows that estimate the vectors: the last prompt token, as in the paper."""
        kinds = self.shift_set.kinds
        return "last_prompt" if "last_prompt" in kinds else kinds[0]

    @property
    def halves(self) -> tuple[list[int], list[int]]:
        """Prompts that estimate the vectors, and prompts that are swept.

        Prompts are numbered by the first pair that has them: all pairs of one are on one side.
        """
        estimating, judging = self.shift_set.halves(self.position_kind, self.seed)
        return sorted(estimating), sorted(judging)

    def pairs_of(self, prompts: list[int]) -> tuple[PreferencePair, ...]:
        """All pairs of some prompts; none where there are prompts alone."""
        known = list(self.pairs or ())
        wanted = {known[index].prompt for index in prompts} if known else set()
        return tuple(pair for pair in known if pair.prompt in wanted)
