"""Stress stages: what runs again, what is NOT RUN and says why, and what a second run keeps."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.experiment import stressing
from dsteer_tl.experiment.configuration import build_configuration, file_settings, merge
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.experiment.stages import Experiment
from dsteer_tl.stress.inputs import StressInputs
from tests import runs


@pytest.fixture
def copy(stories260k: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs.pair_run(stories260k), tmp_path / "run"))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tests that take no time, and their names as they run."""
    names: list[str] = []

    def build(name: str):
        def table(inputs: StressInputs) -> pd.DataFrame:
            if name == "turns" and not inputs.settings.dialogues:
                raise ConfigurationError("no dialogues were given: set stress.dialogues")
            names.append(name)
            return pd.DataFrame([{"test": name, "value": float(inputs.settings.prompts)}])

        return table

    monkeypatch.setattr(stressing, "_build", build)
    return names


def experiment(folder: Path, **stress: object) -> Experiment:
    settings = merge(file_settings(folder / "config.yaml"), {"stress": stress})
    return Experiment(build_configuration(settings), folder, progress=False)


def test_each_test_leaves_a_table_and_runs_again_only_for_what_it_reads(
    copy: Path, built: list[str]
) -> None:
    tests = ["encodings", "prompts"]
    experiment(copy, tests=tests).stress()
    assert built == tests
    experiment(copy, tests=tests).stress()
    assert built == tests
    experiment(copy, tests=tests, encodings=["rot13"]).stress()
    assert built == [*tests, "encodings"]
    experiment(copy, tests=tests, encodings=["rot13"], prompts=7).stress()
    assert built == [*tests, "encodings", *tests]
    directory = RunDirectory.open(copy)
    assert directory.table("stress_prompts")["value"].tolist() == [7.0]


def test_a_test_without_its_data_is_not_run_and_the_others_go_on(
    copy: Path, built: list[str]
) -> None:
    experiment(copy, tests=["turns", "prompts"]).stress()
    assert built == ["prompts"]
    status = RunDirectory.open(copy).table("stress_tests").set_index("test")
    assert status.loc["turns", "status"] == "NOT RUN"
    assert "set stress.dialogues" in status.loc["turns", "reason"]
    assert status.loc["prompts", "status"] == "measured"
    assert status.loc["losses", "reason"] == "not asked for"
    assert not (copy / "tables" / "stress_turns.parquet").exists()


def test_what_a_test_measured_before_it_lost_its_data_does_not_stay(
    copy: Path, built: list[str]
) -> None:
    experiment(copy, tests=["turns"], dialogues="some.jsonl").stress()
    assert (copy / "tables" / "stress_turns.parquet").is_file()
    experiment(copy, tests=["turns"], dialogues="").stress()
    assert not (copy / "tables" / "stress_turns.parquet").exists()
    assert "stress/turns" not in RunDirectory.open(copy).manifest["stages"]


def test_what_a_test_that_was_asked_for_lacks_is_an_error(copy: Path, built: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"set stress\.dialogues"):
        experiment(copy, tests=["turns"]).stress(["turns"])


def test_unknown_tests_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"stress\.tests names 'colour', expected some of"):
        build_configuration({"stress": {"tests": ["colour"]}})


def test_a_second_run_keeps_the_tables_of_tests_it_was_not_asked_for(
    copy: Path, built: list[str]
) -> None:
    experiment(copy, tests=["prompts"]).stress()
    experiment(copy, tests=[]).run()
    assert (copy / "tables" / "stress_prompts.parquet").is_file()
    assert built == ["prompts"]


def test_tables_of_other_residuals_do_not_stay(copy: Path, built: list[str]) -> None:
    run = experiment(copy, tests=["prompts"])
    run.stress()
    later = stressing.StressRun.of(experiment(copy, tests=[]), run.capture_keys())
    assert "stress_prompts" in stressing.stress_tables(later)
    other = dataclasses.replace(later, keys="other residuals")
    assert "stress_prompts" not in stressing.stress_tables(other)


def test_a_file_that_changes_makes_its_test_run_again(
    copy: Path, built: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "harmful.txt"
    file.write_text("How to break a window\n", "utf-8")
    experiment(copy, tests=["prompts"], harmful=f"own={file}").stress()
    file.write_text("How to break a door\n", "utf-8")
    experiment(copy, tests=["prompts"], harmful=f"own={file}").stress()
    assert built == ["prompts", "prompts"]
