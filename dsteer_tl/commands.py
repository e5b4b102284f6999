"""What each command of ``dsteer`` does.

Heavy packages are imported inside the commands, so that ``dsteer --help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsteer_tl.command_flags import (
    Analyze,
    Check,
    Figures,
    Presets,
    Reproduce,
    Sweep,
    Toxicity,
    Train,
)
from dsteer_tl.command_settings import parse_settings, resolve, resolve_study, resolve_sweep

if TYPE_CHECKING:
    from dsteer_tl.experiment.run_directory import StageReport
    from dsteer_tl.experiment.stages import Experiment


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")


def _run(command: Reproduce | Analyze, out: Path) -> None:
    from dsteer_tl.experiment.configuration import to_yaml

    configuration = resolve(command)
    if command.print_config:
        _show(to_yaml(configuration))
        return
    from dsteer_tl.experiment.stages import Experiment

    experiment = Experiment(configuration, out, progress=not command.quiet)
    _judge_and_draw(command, experiment, experiment.run(), "tables, figures and manifest")


def _judge_and_draw(
    command: Reproduce | Analyze | Sweep | Toxicity,
    experiment: Experiment,
    reports: list[StageReport],
    written: str,
) -> None:
    """The last stages of every run: claims and figures; then the ledger and what it took."""
    from dsteer_tl.claims import ledger_text
    from dsteer_tl.experiment.figures import claim_stage, figure_stage

    directory = experiment.directory
    results = claim_stage(directory)
    figures = figure_stage(
        directory,
        images=None if command.images else False,
        require_images=command.require_images,
    )
    ran = [report for report in (*reports, figures) if report.ran]
    seconds = sum(report.seconds for report in ran)
    _show(ledger_text(results))
    _show("")
    _show(
        f"{len(ran)} stages in {seconds:.0f} s, {len(reports) + 1 - len(ran)} up to date; "
        f"{written} in {directory.path}"
    )


def _reproduce(command: Reproduce) -> None:
    _run(command, command.out or Path("runs") / command.preset)


def _analyze(command: Analyze) -> None:
    _run(command, command.out)


def _sweep(command: Sweep) -> None:
    from dsteer_tl.experiment.run_directory import RunDirectory
    from dsteer_tl.experiment.stages import Experiment
    from dsteer_tl.experiment.suites import suite_path

    RunDirectory.open(command.directory)
    configuration = resolve_sweep(command)
    experiment = Experiment(configuration, command.directory, progress=not command.quiet)
    if command.plan:
        for line in experiment.describe_sweeps():
            _show(line)
        return
    reports = experiment.sweep([suite_path(entry)[0] for entry in command.suite])
    _judge_and_draw(command, experiment, reports, "tables and figures")


def _toxicity(command: Toxicity) -> None:
    from dsteer_tl.experiment.configuration import to_yaml
    from dsteer_tl.experiment.run_directory import RunDirectory
    from dsteer_tl.experiment.stages import Experiment

    if command.directory is not None:
        RunDirectory.open(command.directory)
    configuration, out = resolve_study(command)
    if command.print_config:
        _show(to_yaml(configuration))
        return
    experiment = Experiment(configuration, out, progress=not command.quiet)
    _judge_and_draw(command, experiment, experiment.study(), "tables and figures")


def _train(command: Train) -> None:
    from dsteer_tl.experiment.stages import Experiment

    configuration = dataclasses.replace(resolve(command), policy="")
    experiment = Experiment(configuration, command.out, progress=not command.quiet)
    experiment.train()
    _show(f"policy in {command.out / 'policy'}")


def _check(command: Check) -> None:
    from dsteer_tl.experiment.configuration import build_configuration
    from dsteer_tl.lens_model import LoadOptions
    from dsteer_tl.pair import ModelPair

    model = build_configuration(parse_settings(command.set)).model
    options = LoadOptions(
        device=model.device,
        dtype=model.dtype,
        revision=model.revision or None,
        trust_remote_code=model.trust_remote_code,
        device_map=model.device_map or None,
    )
    pair = ModelPair.load(command.base, command.policy, backend=model.backend, options=options)
    for role, lens in (("base", pair.base), ("policy", pair.policy)):
        _show(
            f"{role}: {lens.name} ({lens.backend}), {lens.n_layers} layers, d_model "
            f"{lens.d_model}, vocabulary {lens.d_vocab}, context {lens.n_ctx}: self-check passed"
        )
    for item in pair.preflight.items:
        _show(f"{'same' if item.passed else 'DIFFERS':8}{item.name}: {item.detail}")


def _figures(command: Figures) -> None:
    from dsteer_tl.claims import ledger_text
    from dsteer_tl.experiment.figures import claim_stage, write_run_figures
    from dsteer_tl.experiment.run_directory import RunDirectory

    directory = RunDirectory.open(command.directory)
    results = claim_stage(directory)
    report = write_run_figures(
        directory,
        images=None if command.images else False,
        require_images=command.require_images,
    )
    _show(ledger_text(results))
    _show("")
    _show(f"{len(report.written)} files in {directory / 'figures'}")


def _presets(command: Presets) -> None:
    import yaml

    from dsteer_tl.experiment.configuration import (
        build_configuration,
        preset_names,
        preset_settings,
    )

    if command.name is not None:
        _show(yaml.safe_dump(dict(preset_settings(command.name)), sort_keys=False).rstrip())
        return
    for name in preset_names():
        found = build_configuration(preset_settings(name))
        expected = found.expectation
        _show(f"{name}: {found.description}")
        how = "measured" if expected.measured else "by arithmetic"
        _show(f"    {expected.minutes:g} min on {expected.hardware}; {expected.memory} ({how})")


#: What runs for each kind of flags.
COMMANDS: Mapping[type, Callable[[Any], None]] = {
    Reproduce: _reproduce,
    Train: _train,
    Analyze: _analyze,
    Sweep: _sweep,
    Toxicity: _toxicity,
    Check: _check,
    Figures: _figures,
    Presets: _presets,
}
