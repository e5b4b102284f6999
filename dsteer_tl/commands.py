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
    Compare,
    Figures,
    Moments,
    Presets,
    Report,
    Reproduce,
    Stress,
    Sweep,
    Toxicity,
    Train,
    Verify,
)
from dsteer_tl.command_settings import (
    parse_settings,
    resolve,
    resolve_stress,
    resolve_study,
    resolve_sweep,
)
from dsteer_tl.errors import RunError
from dsteer_tl.processes import launched_rank

if TYPE_CHECKING:
    from dsteer_tl.experiment.run_directory import StageReport
    from dsteer_tl.experiment.stages import Experiment


def _show(text: str) -> None:
    if launched_rank() == 0:
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
    command: Reproduce | Analyze | Sweep | Stress | Toxicity,
    experiment: Experiment,
    reports: list[StageReport],
    written: str,
) -> None:
    """The last stages of every run: claims and figures; then the ledger and what it took."""
    from dsteer_tl.claims import ledger_text
    from dsteer_tl.experiment.figures import figure_stage
    from dsteer_tl.experiment.judging import claim_stage, multiverse_stage
    from dsteer_tl.experiment.reporting import report_stage
    from dsteer_tl.experiment.run_directory import RunDirectory

    if not experiment.processes.is_main:
        experiment.processes.wait()
        return
    directory = RunDirectory(experiment.directory.path)
    results = claim_stage(directory)
    last = [multiverse_stage(directory)]
    last.append(
        figure_stage(
            directory,
            images=None if command.images else False,
            require_images=command.require_images,
        )
    )
    last.append(report_stage(directory))
    reports = [*reports, *last]
    ran = [report for report in reports if report.ran]
    seconds = sum(report.seconds for report in ran)
    _show(ledger_text(results))
    _show("")
    _show(
        f"{len(ran)} stages in {seconds:.0f} s, {len(reports) - len(ran)} up to date; "
        f"{written} in {directory.path}"
    )
    experiment.processes.wait()


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


def _stress(command: Stress) -> None:
    from dsteer_tl.experiment.run_directory import RunDirectory
    from dsteer_tl.experiment.stages import Experiment

    RunDirectory.open(command.directory)
    configuration = resolve_stress(command)
    experiment = Experiment(configuration, command.directory, progress=not command.quiet)
    reports = experiment.stress(command.test)
    _judge_and_draw(command, experiment, reports, "tables and figures")


def _moments(command: Moments) -> None:
    from dsteer_tl.experiment.configuration import build_configuration
    from dsteer_tl.experiment.streaming import StreamingConfiguration, stream_moments
    from dsteer_tl.processes import processes
    from dsteer_tl.streaming.accumulation import AccumulationConfiguration

    found = build_configuration(parse_settings(command.set))
    report = stream_moments(
        command.base,
        command.policy,
        command.prompts,
        command.out,
        StreamingConfiguration(
            model=found.model,
            column=command.column,
            sites=command.sites,
            limit=command.limit,
            token_budget=found.measurement.token_budget,
            accumulation=AccumulationConfiguration(
                groups=command.groups, checkpoint_seconds=command.checkpoint_seconds
            ),
            progress=not command.quiet,
        ),
        processes=processes(),
    )
    state = f"{report.seconds:.0f} s for the tables" if report.ran else "up to date"
    _show(f"tables and vectors in {command.out} ({state})")


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
    from dsteer_tl.experiment.figures import write_run_figures
    from dsteer_tl.experiment.judging import claim_stage, multiverse_stage
    from dsteer_tl.experiment.run_directory import RunDirectory

    directory = RunDirectory.open(command.directory)
    directory.require_tables()
    results = claim_stage(directory)
    multiverse_stage(directory)
    report = write_run_figures(
        directory,
        images=None if command.images else False,
        require_images=command.require_images,
    )
    _show(ledger_text(results))
    _show("")
    _show(f"{len(report.written)} files in {directory / 'figures'}")


def _report(command: Report) -> None:
    from dsteer_tl.experiment.figures import figure_stage
    from dsteer_tl.experiment.judging import claim_stage, multiverse_stage
    from dsteer_tl.experiment.reporting import REPORT, report_stage
    from dsteer_tl.experiment.run_directory import RunDirectory

    directory = RunDirectory.open(command.directory)
    directory.require_tables()
    claim_stage(directory)
    multiverse_stage(directory)
    figure_stage(directory, images=None if command.images else False)
    directory.drop(REPORT)
    report_stage(directory)
    _show(f"{directory / 'report.html'}")


def _verify(command: Verify) -> None:
    from dsteer_tl.experiment.judging import judge_run
    from dsteer_tl.experiment.run_directory import RunDirectory
    from dsteer_tl.report.verification import verification_text, verify_run

    try:
        judged = [result.to_json() for result in judge_run(RunDirectory.open(command.directory))]
    except RunError:  # a table is altered: which one, the report says
        judged = None
    found = verify_run(command.directory, expected_claims=judged)
    _show(verification_text(found))
    found.require()


def _compare(command: Compare) -> None:
    from dsteer_tl.report.comparison import compare_runs
    from dsteer_tl.report.comparison_page import comparison_text, write_comparison

    comparison = compare_runs(command.directories)
    _show(comparison_text(comparison))
    if command.out is not None:
        _show("")
        _show(str(write_comparison(comparison, command.out)))


def _presets(command: Presets) -> None:
    import yaml

    from dsteer_tl.experiment.configuration import (
        build_configuration,
        preset_names,
        preset_settings,
    )
    from dsteer_tl.training.launching import (
        launch_configuration_names,
        launch_configuration_path,
    )

    if command.launch is not None:
        _show(launch_configuration_path(command.launch).read_text("utf-8").rstrip())
        return
    if command.name is not None:
        _show(yaml.safe_dump(dict(preset_settings(command.name)), sort_keys=False).rstrip())
        return
    for name in preset_names():
        found = build_configuration(preset_settings(name))
        expected = found.expectation
        _show(f"{name}: {found.description}")
        how = "measured" if expected.measured else "by arithmetic"
        _show(f"    {expected.minutes:g} min on {expected.hardware}; {expected.memory} ({how})")
    _show(f"launch configurations: {', '.join(launch_configuration_names())}")


#: What a launch of several processes divides; anything else is done by its main process.
SHARED = (Reproduce, Train, Analyze, Sweep, Toxicity, Stress, Moments)
#: What runs for each kind of flags.
COMMANDS: Mapping[type, Callable[[Any], None]] = {
    Reproduce: _reproduce,
    Train: _train,
    Analyze: _analyze,
    Sweep: _sweep,
    Toxicity: _toxicity,
    Stress: _stress,
    Moments: _moments,
    Check: _check,
    Figures: _figures,
    Report: _report,
    Verify: _verify,
    Compare: _compare,
    Presets: _presets,
}
