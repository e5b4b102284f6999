"""`Experiment` settings: dataclasses, presets, YAML files, and their merging and validation.

The order of precedence is preset < file < flag. The merged settings are validated as a whole and
written into the run directory as they were used.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from dsteer_tl.behavior.settings import SweepConfiguration
from dsteer_tl.errors import ConfigurationError
from dsteer_tl.experiment.model_settings import ModelConfiguration as ModelConfiguration
from dsteer_tl.experiment.ranges import check_ranges
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.preferences import SamplingConfiguration
from dsteer_tl.stress.settings import StressConfiguration
from dsteer_tl.toxicity.continuation_pairs import ContinuationConfiguration
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.training.configuration import TrainingConfiguration

ON_POLICY = "on-policy"
CONTINUATIONS = "continuations"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceConfiguration:
    """Where preference pairs or prompts come from.

    Attributes:
        sources: Files or hub ids, put together; ``on-policy`` samples pairs from the base, and
            ``continuations`` lets it continue running text, with and without the attribute of
            the toxicity study.
        layout: How to read the sources; ``auto`` looks at them.
        prompts: A file of prompts without responses, instead of pairs.
        scorer: Ranks on-policy completions: ``vader`` or ``length``.
        sampling: How on-policy completions are sampled.
        continuations: How running text is continued.
        hub_split: Split of a hub data set.
        held_out_share: Share of prompts kept from training. All pairs are held out where the
            policy is given and nothing is trained.
        limit: At most so many pairs; 0 for all.
        overlong: ``drop`` (and count) or ``error`` for sequences longer than the context.
        seed: Seed of split and limit.
    """

    sources: tuple[str, ...] = (ON_POLICY,)
    layout: str = "auto"
    prompts: str = ""
    scorer: str = "vader"
    sampling: SamplingConfiguration = field(default_factory=SamplingConfiguration)
    continuations: ContinuationConfiguration = field(default_factory=ContinuationConfiguration)
    hub_split: str = "train"
    held_out_share: float = 0.25
    limit: int = 0
    overlong: Literal["drop", "error"] = "drop"
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a run takes, for people to decide before they start it.

    Attributes:
        hardware: The machine that the figures are for.
        minutes: Wall-clock minutes.
        memory: Peak memory, and of what.
        measured: Whether the figures come from a run or from arithmetic.
    """

    hardware: str = ""
    minutes: float = 0.0
    memory: str = ""
    measured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfiguration:
    """What is measured on top of the papers' own statistics.

    Attributes:
        attribution: Who writes the shift: margin ledger, components, patching, weight changes.
        multiverse: Judge every claim again under other choices: precision, prompts, sites.
        unrelated_prompts: Prompts of running text for the multiverse.
    """

    attribution: bool = True
    multiverse: bool = True
    unrelated_prompts: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentConfiguration:
    """Everything that decides the numbers of a run.

    Attributes:
        name: Name of the run.
        description: One sentence for people.
        base: Directory, hub id, or ``tales`` for the model inside the package.
        policy: The same for the policy; empty to train it from the base.
        model: How checkpoints are loaded.
        preferences: Pairs or prompts.
        training: How the policy is trained, if it is.
        measurement: What is measured.
        sweep: The behaviour sweeps: coefficients, vectors, prompts and metrics.
        toxicity: The case study of Lee et al. 2024.
        audit: Attribution and the multiverse of choices.
        stress: Where the picture of one vector breaks.
        expectation: Time and memory to expect.
    """

    name: str = "run"
    description: str = ""
    base: str = "tales"
    policy: str = ""
    model: ModelConfiguration = field(default_factory=ModelConfiguration)
    preferences: PreferenceConfiguration = field(default_factory=PreferenceConfiguration)
    training: TrainingConfiguration = field(default_factory=TrainingConfiguration)
    measurement: MeasurementConfiguration = field(default_factory=MeasurementConfiguration)
    sweep: SweepConfiguration = field(default_factory=SweepConfiguration)
    toxicity: ToxicityConfiguration = field(default_factory=ToxicityConfiguration)
    audit: AuditConfiguration = field(default_factory=AuditConfiguration)
    stress: StressConfiguration = field(default_factory=StressConfiguration)
    expectation: Expectation = field(default_factory=Expectation)


Settings = Mapping[str, Any]


@cache
def preset_names() -> tuple[str, ...]:
    """The presets that ship with the package."""
    folder = resources.files("dsteer_tl") / "presets"
    return tuple(
        sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".yaml"))
    )


def preset_settings(name: str) -> Settings:
    """The settings that a preset states.

    Raises:
        ConfigurationError: There is no such preset.
    """
    if name not in preset_names():
        raise ConfigurationError(
            f"there is no preset {name!r}: expected one of {', '.join(preset_names())}"
        )
    text = (resources.files("dsteer_tl") / "presets" / f"{name}.yaml").read_text("utf-8")
    return _parse(text, f"preset {name}")


def file_settings(path: Path) -> Settings:
    """The settings of a YAML file.

    Raises:
        ConfigurationError: The file is missing or no YAML mapping.
    """
    if not path.is_file():
        raise ConfigurationError(f"there is no configuration file {path}")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as UTF-8 text: {error}") from error
    return _parse(text, str(path))


def _parse(text: str, where: str) -> Settings:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{where} holds {type(content).__name__}, expected a mapping such as 'base: tales'"
        )
    return content


def merge(*layers: Settings) -> dict[str, Any]:
    """Nested mappings put over each other; later ones win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = merge(value) if isinstance(value, Mapping) else value
    return merged


def build_configuration(*layers: Settings) -> ExperimentConfiguration:
    """Merge settings and validate the whole.

    Raises:
        ConfigurationError: An unknown setting (with the nearest known one) or a wrong value.
    """
    merged = merge(*layers)
    _check_names(merged, ExperimentConfiguration, "")
    return validate(merged)


def validate(settings: Settings | ExperimentConfiguration) -> ExperimentConfiguration:
    """Check types and ranges of settings.

    Raises:
        ConfigurationError: Names the setting, the value found and what was expected.
    """
    from pydantic import TypeAdapter, ValidationError

    content = (
        dataclasses.asdict(settings)
        if isinstance(settings, ExperimentConfiguration)
        else dict(settings)
    )
    try:
        found = TypeAdapter(ExperimentConfiguration).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f"setting {place!r} is {first['input']!r}: {first['msg'].lower()}"
        ) from error
    except ConfigurationError:
        raise
    check_ranges(found)
    return found


def _check_names(settings: Settings, kind: type, place: str) -> None:
    known = {item.name: item for item in dataclasses.fields(kind)}
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {place}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigurationError(f"unknown setting {place + str(key)!r}: {hint}")
        default = known[key].default_factory
        if isinstance(default, type) and dataclasses.is_dataclass(default):
            if not isinstance(value, Mapping):
                raise ConfigurationError(
                    f"setting {place + key!r} is {value!r}, expected a mapping of settings"
                )
            _check_names(value, default, f"{place}{key}.")


def to_yaml(configuration: ExperimentConfiguration) -> str:
    """The resolved settings as YAML, in the order of the dataclasses."""
    return yaml.safe_dump(
        _plain(dataclasses.asdict(configuration)), sort_keys=False, allow_unicode=True
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
