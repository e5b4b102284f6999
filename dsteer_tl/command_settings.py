"""From flags to the settings of a run: preset < file < flag."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsteer_tl.command_flags import Analyze, Reproduce, Stress, Sweep, Toxicity, Train
from dsteer_tl.errors import ConfigurationError

if TYPE_CHECKING:
    from dsteer_tl.experiment.configuration import ExperimentConfiguration


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``training.beta=0.1`` and the like into nested settings; values are read as YAML.

    Raises:
        ConfigurationError: A pair has no ``=``.
    """
    import yaml

    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigurationError(
                f"--set {pair!r}: expected NAME=VALUE, as in training.beta=0.1"
            )
        place = settings
        *parents, last = name.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigurationError(f"--set {pair!r}: {parent!r} was given a value before")
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--set {pair!r}: {value!r} is not a value") from error
    return settings


def resolve(command: Reproduce | Train | Analyze | Toxicity) -> ExperimentConfiguration:
    """The settings of a command that starts from a preset, a file or flags.

    Raises:
        ConfigurationError: A setting is unknown, wrong, or contradicts another.
    """
    from dsteer_tl.experiment.configuration import (
        build_configuration,
        file_settings,
        preset_settings,
    )

    preset = getattr(command, "preset", None)
    layers = [] if preset is None else [preset_settings(preset)]
    if command.config is not None:
        layers.append(file_settings(command.config))
    layers.append(parse_settings(command.set))
    flags: dict[str, Any] = {}
    if command.base is not None:
        flags["base"] = command.base
    if getattr(command, "policy", None) is not None:
        flags["policy"] = command.policy  # type: ignore[union-attr]
    if command.preferences:
        flags["preferences"] = {"sources": list(command.preferences)}
    if isinstance(command, Analyze):
        flags["name"] = command.out.name
        settings = flags.setdefault("preferences", {"sources": []})
        settings["prompts"] = "" if command.prompts is None else str(command.prompts)
        settings["overlong"] = "drop" if command.drop_overlong else "error"
        if bool(command.prompts) == bool(command.preferences):
            raise ConfigurationError("give either --prompts or --preferences, to measure on")
    layers.append(flags)
    return build_configuration(*layers)


def resolve_sweep(command: Sweep) -> ExperimentConfiguration:
    """The settings of a finished run with those of a sweep over them.

    Raises:
        ConfigurationError: A setting is unknown or wrong.
    """
    from dsteer_tl.experiment.configuration import build_configuration, file_settings
    from dsteer_tl.experiment.suites import suite_path

    settings: dict[str, Any] = parse_settings(command.set)
    judge = {"base_url": command.judge, "model": command.judge_model}
    asked = {name: value for name, value in judge.items() if value is not None}
    if asked:
        settings["judge"] = {**settings.get("judge", {}), **asked}
    before = file_settings(command.directory / "config.yaml")
    own = build_configuration(before).sweep.suites
    named = {suite_path(entry)[0]: entry for entry in (*own, *command.suite)}
    settings["suites"] = list(named.values())
    return build_configuration(before, {"sweep": settings})


def resolve_stress(command: Stress) -> ExperimentConfiguration:
    """The settings of a finished run with those of stress tests over them.

    Raises:
        ConfigurationError: A setting or test is unknown or wrong.
    """
    from dsteer_tl.experiment.configuration import build_configuration, file_settings
    from dsteer_tl.stress.settings import STRESS_TESTS

    settings: dict[str, Any] = parse_settings(command.set)
    before = file_settings(command.directory / "config.yaml")
    own = build_configuration(before).stress.tests
    asked = command.test or STRESS_TESTS
    settings.setdefault("tests", list(dict.fromkeys((*own, *asked))))
    return build_configuration(before, {"stress": settings})


def resolve_study(command: Toxicity) -> tuple[ExperimentConfiguration, Path]:
    """The settings of a toxicity study, and the directory of its run.

    Raises:
        ConfigurationError: A setting is unknown or wrong, or a finished run was given another base,
            policy or preferences.
    """
    from dsteer_tl.experiment.configuration import build_configuration, file_settings

    asked: dict[str, Any] = {"toxicity": {"enabled": True}}
    if command.directory is None:
        out = command.out or Path("runs") / command.preset
        return build_configuration(dataclasses.asdict(resolve(command)), asked), out
    given = {
        "--base": command.base,
        "--policy": command.policy,
        "--out": command.out,
        "--preferences": command.preferences or None,
    }
    wrong = [flag for flag, value in given.items() if value is not None]
    if wrong:
        raise ConfigurationError(
            f"{command.directory} is a run with its own models and pairs: leave "
            f"{', '.join(wrong)} away, or leave the directory away to start another run"
        )
    before = file_settings(command.directory / "config.yaml")
    layers = [file_settings(command.config)] if command.config is not None else []
    settings = build_configuration(before, *layers, parse_settings(command.set), asked)
    _require_same_run(build_configuration(before), settings, command.directory)
    return settings, command.directory


def _require_same_run(
    before: ExperimentConfiguration, after: ExperimentConfiguration, folder: Path
) -> None:
    """Refuse another policy beside tables that were measured on the first."""
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    changed = [name for name in old if name != "toxicity" and old[name] != new[name]]
    if changed:
        raise ConfigurationError(
            f"{folder} is a run with settings of its own, of which {', '.join(changed)} would "
            "change: only toxicity.* may, or leave the directory away to start another run"
        )
