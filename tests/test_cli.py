from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dsteer_tl import cli
from dsteer_tl.cli import main
from dsteer_tl.command_settings import parse_settings
from dsteer_tl.errors import ConfigurationError
from dsteer_tl.experiment.configuration import preset_names
from tests import runs


def test_settings_are_read_as_yaml() -> None:
    found = parse_settings(
        ["training.beta=0.1", "training.epochs=2", "preferences.sources=[a, b=c]", "name=x y"]
    )
    assert found == {
        "training": {"beta": 0.1, "epochs": 2},
        "preferences": {"sources": ["a", "b=c"]},
        "name": "x y",
    }


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["training.beta"], "expected NAME=VALUE, as in training.beta=0.1"),
        (["=1"], "expected NAME=VALUE"),
        (["training=1", "training.beta=2"], "'training' was given a value before"),
        (["training.beta=[1"], "'[1' is not a value"),
    ],
)
def test_wrong_settings(pairs: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_settings(pairs)
    assert message in str(caught.value)


def test_help_names_every_command() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "dsteer_tl", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    for command in (
        *("reproduce", "train", "analyze", "sweep", "toxicity", "stress", "check"),
        *("figures", "report", "verify", "compare", "presets"),
    ):
        assert command in found.stdout


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["analyze"], ["reproduce", "--unknown-flag"], ["figures"], ["sweep"]],
)
def test_wrong_flags_exit_with_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_presets_are_listed_with_what_they_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    shown = capsys.readouterr().out
    for name in preset_names():
        assert f"{name}: " in shown
    assert " min on " in shown


def test_one_preset_is_shown_as_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "--name", "tales"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["base"] == "tales"


def test_resolved_settings_are_printed_and_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("training: {beta: 0.3, epochs: 5}\n", "utf-8")
    arguments = ["reproduce", "--config", str(path), "--base", "some/model", "--print-config"]
    out = tmp_path / "run"
    assert main([*arguments, "--out", str(out), "--set", "training.beta=0.2"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["training"]["beta"] == 0.2
    assert found["training"]["epochs"] == 5
    assert found["base"] == "some/model"
    assert not out.exists()


def test_analyze_resolves_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--base", "a", "--policy", "b", "--out", "runs/x", "--prompts", "p.txt"]
    assert main(["analyze", *flags, "--drop-overlong", "--print-config"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["base"], found["policy"], found["name"]) == ("a", "b", "x")
    assert found["preferences"]["sources"] == []
    assert found["preferences"]["prompts"] == "p.txt"
    assert found["preferences"]["overlong"] == "drop"


@pytest.mark.parametrize("more", [[], ["--prompts", "p.txt", "--preferences", "x.jsonl"]])
def test_analyze_measures_on_prompts_or_on_pairs(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base", "a", "--policy", "b", "--out", "runs/x", *more]
    assert main(["analyze", *flags]) == 2
    assert capsys.readouterr().err == (
        "dsteer: give either --prompts or --preferences, to measure on\n"
    )


def test_a_finished_run_is_up_to_date(
    stories260k: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = runs.pair_run(stories260k)
    capsys.readouterr()
    caplog.clear()
    assert main(runs.pair_arguments(stories260k, runs.perturbed_policy(stories260k), out)) == 0
    shown = capsys.readouterr().out
    assert "0 stages in 0 s, 34 up to date" in shown
    assert "verdict" in shown
    assert "capture: up to date" in caplog.text


def test_check_says_what_the_models_share(
    stories260k: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = runs.perturbed_policy(stories260k)
    assert main(["check", "--base", str(stories260k), "--policy", str(policy)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("self-check passed") == 2
    assert "5 layers, d_model 64, vocabulary 512, context 512" in shown
    for name in ("W_U", "b_U", "final norm", "tokenizer", "weights"):
        assert f"same    {name}: " in shown
    assert "DIFFERS" not in shown


def test_train_writes_a_policy_and_goes_no_further(
    stories260k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trained"
    arguments = ["train", "--base", str(stories260k), "--out", str(out), "--quiet"]
    arguments += ["--preferences", str(runs.pair_file())]
    arguments += ["--set", "training.max_steps=2", "training.batch_size=4"]
    assert main(arguments) == 0
    assert (out / "policy" / "config.json").is_file()
    assert not (out / "capture").exists()
    assert f"policy in {out / 'policy'}" in capsys.readouterr().out


def test_figures_of_a_copy(
    stories260k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(runs.prompt_run(stories260k), tmp_path / "run")
    assert main(["figures", str(copy), "--no-images"]) == 0
    assert f"files in {copy / 'figures'}" in capsys.readouterr().out


def test_the_report_is_rebuilt_and_the_run_is_intact(
    stories260k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(runs.pair_run(stories260k), tmp_path / "run")
    report = copy / "report.html"
    # The pair run was made without images, which a rebuilt report would have.
    assert main(["figures", str(copy), "--no-images"]) == 0
    assert main(["report", str(copy), "--no-images"]) == 0
    first = report.read_bytes()
    report.unlink()
    assert main(["report", str(copy), "--no-images"]) == 0
    assert report.read_bytes() == first
    assert str(report) in capsys.readouterr().out
    assert main(["verify", str(copy)]) == 0
    assert "0 altered, 0 missing" in capsys.readouterr().out


def test_verify_names_what_was_altered(
    stories260k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(runs.pair_run(stories260k), tmp_path / "run")
    (copy / "tables" / "mass.parquet").write_bytes(b"altered")
    (copy / "tables" / "clouds.parquet").unlink()
    assert main(["verify", str(copy)]) == 2
    shown = capsys.readouterr()
    assert "tables/mass.parquet" in shown.out
    assert "tables/clouds.parquet" in shown.out
    assert shown.err.startswith("dsteer: ")
    assert "Traceback" not in shown.err


def test_compare_puts_runs_side_by_side(
    stories260k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(runs.pair_run(stories260k)), str(runs.prompt_run(stories260k))]
    page = tmp_path / "comparison.html"
    assert main(["compare", *folders, "--out", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "pair_run" in shown
    assert "prompt_run" in shown
    assert "Shifts are nearly parallel" in page.read_text("utf-8")
    assert main(["compare", folders[0]]) == 2
    assert "dsteer: " in capsys.readouterr().err


def test_stress_tests_that_do_not_exist(
    stories260k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(runs.pair_run(stories260k), tmp_path / "run")
    assert main(["stress", str(copy), "--test", "colour"]) == 2
    assert "stress.tests names 'colour', expected some of embeddings" in capsys.readouterr().err
    assert main(["stress", str(copy), "--test", "losses"]) == 2
    assert "recipe" in capsys.readouterr().err


def test_the_console_script_exits_with_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "main", lambda: 130)
    with pytest.raises(SystemExit) as caught:
        cli.entry_point()
    assert caught.value.code == 130


def test_a_flag_given_twice_keeps_all_its_values() -> None:
    from dsteer_tl.cli import _merged_flags

    given = ["sweep", "DIR", "--set", "a=1", "--quiet", "--set", "b=2", "c=3"]
    assert _merged_flags(given) == ["sweep", "DIR", "--quiet", "--set", "a=1", "b=2", "c=3"]
