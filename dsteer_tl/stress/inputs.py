"""What the stress tests are given: the pair of a run, its data, its recipe and a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dsteer_tl.capture import ShiftSet
from dsteer_tl.lens_model import Backend, LensModel, LoadOptions
from dsteer_tl.measurements import MeasurementConfiguration
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from dsteer_tl.preferences import PreferenceSet
from dsteer_tl.stress.settings import StressConfiguration
from dsteer_tl.training import TrainingConfiguration


@dataclass(frozen=True, kw_only=True)
class StressInputs:
    """Everything that a stress test may read; models are loaded when a test first needs them.

    Attributes:
        base: Directory, hub id or ``tales``.
        load_pair: Gives base and policy.
        preferences: The pairs of the run with their split, or None where there are only prompts.
        measured: The pairs that the run measures: held out, cut to size; None as before.
        training: The recipe of the policy; None where the policy was given and not trained here.
        shift_set: Captured residuals of base and policy on `measured`.
        load_probes: Gives the sequences that were captured.
        scorer: Name of the scorer that ranked the pairs.
        measurement: How finely shifts are measured.
        settings: Which tests, and how large.
        folder: Where variants of the policy are kept, one folder each.
        options: How the base is loaded.
        load_controls: Gives null models by name, as far as the run has them.
        backend: Which class hooks the models.
        progress: Show progress bars.
    """

    base: str
    load_pair: Callable[[], ModelPair]
    preferences: PreferenceSet | None
    measured: PreferenceSet | None
    training: TrainingConfiguration | None
    shift_set: ShiftSet
    load_probes: Callable[[], Sequence[Probe]]
    scorer: str
    measurement: MeasurementConfiguration
    settings: StressConfiguration
    folder: Path
    options: LoadOptions
    load_controls: Callable[[], Mapping[str, LensModel]] = dict
    backend: Backend = "bridge"
    progress: bool = True

    @cached_property
    def pair(self) -> ModelPair:
        """Base and policy."""
        return self.load_pair()

    @cached_property
    def probes(self) -> Sequence[Probe]:
        """The sequences that were captured."""
        return self.load_probes()
