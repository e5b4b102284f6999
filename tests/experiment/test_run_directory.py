from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from dsteer_tl.errors import RunError
from dsteer_tl.experiment.run_directory import RunDirectory, versions
from dsteer_tl.files import hash_file


class Work:
    """A stage that counts how often it is done."""

    def __init__(self, directory: RunDirectory, text: str = "result") -> None:
        self.directory, self.text, self.done = directory, text, 0

    def __call__(self) -> Sequence[Path]:
        self.done += 1
        path = self.directory / "output.txt"
        path.write_text(self.text, "utf-8")
        return [path]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_a_finished_stage_is_not_run_again(directory: RunDirectory) -> None:
    work = Work(directory)
    assert directory.stage("s", {"a": 1, "b": 2}, work).ran
    again = directory.stage("s", {"b": 2, "a": 1}, work)
    assert (again.ran, again.seconds, work.done) == (False, 0.0, 1)


def test_other_inputs_or_another_name_run_it(directory: RunDirectory) -> None:
    work = Work(directory)
    directory.stage("s", [1], work)
    assert directory.stage("s", [2], work).ran
    assert directory.stage("t", [2], work).ran
    assert work.done == 3


def test_an_altered_or_missing_output_is_made_again(directory: RunDirectory) -> None:
    work, path = Work(directory), directory / "output.txt"
    directory.stage("s", [1], work)
    path.write_text("something else", "utf-8")
    assert directory.stage("s", [1], work).ran
    assert path.read_text("utf-8") == "result"
    path.unlink()
    assert directory.stage("s", [1], work).ran
    assert not directory.stage("s", [1], work).ran


@pytest.mark.parametrize("error", [KeyboardInterrupt, RunError])
def test_an_interrupted_stage_is_redone_and_never_trusted(
    error: type[BaseException], directory: RunDirectory
) -> None:
    path = directory / "output.txt"

    def fails() -> list[Path]:
        path.write_text("half", "utf-8")
        raise error("stopped")

    with pytest.raises(error):
        directory.stage("s", [1], fails)
    assert "s" not in directory.manifest["stages"]
    work = Work(directory)
    assert directory.stage("s", [1], work).ran
    assert path.read_text("utf-8") == "result"


def test_a_failure_leaves_other_stages_finished(directory: RunDirectory) -> None:
    first = Work(directory)
    directory.stage("first", [1], first)

    def fails() -> list[Path]:
        raise RunError("no")

    with pytest.raises(RunError):
        directory.stage("second", [1], fails)
    assert not directory.stage("first", [1], first).ran


def test_the_manifest_holds_key_time_and_hashes(directory: RunDirectory) -> None:
    directory.stage("s", [1], Work(directory))
    directory.describe({"name": "x"})
    manifest = directory.manifest
    entry = manifest["stages"]["s"]
    assert entry["outputs"] == {"output.txt": hash_file(directory / "output.txt")}
    assert entry["seconds"] >= 0
    assert len(entry["key"]) == 64
    assert manifest["name"] == "x"
    assert directory.output_hashes("s") == entry["outputs"]


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no run directory: it has no manifest\.json"):
        RunDirectory.open(tmp_path)


def test_a_manifest_of_another_format_is_not_overwritten(directory: RunDirectory) -> None:
    path = directory / "manifest.json"
    path.write_text('{"format": 99, "stages": {}}', "utf-8")
    with pytest.raises(RunError, match="format 99, this version reads 1: use another --out"):
        directory.stage("s", [1], Work(directory))
    assert '"format": 99' in path.read_text("utf-8")


def test_a_manifest_cut_short_says_so(directory: RunDirectory) -> None:
    (directory / "manifest.json").write_text('{"format": 1, "sta', "utf-8")
    with pytest.raises(RunError, match="altered or cut short"):
        _ = directory.manifest


def test_tables_come_back_as_they_went(directory: RunDirectory) -> None:
    table = pd.DataFrame({"site": ["h"], "value": [0.1]})
    directory.write_table("shifts", table)
    pd.testing.assert_frame_equal(directory.table("shifts"), table)
    assert set(directory.tables()) == {"shifts"}


def test_a_missing_or_damaged_table_says_so(directory: RunDirectory) -> None:
    with pytest.raises(RunError, match=r"shifts\.parquet is missing: the run is incomplete"):
        directory.table("shifts")
    (directory / "tables").mkdir()
    (directory / "tables" / "shifts.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(RunError, match="altered or cut short"):
        directory.table("shifts")


def test_tables_of_an_earlier_run_are_not_kept(directory: RunDirectory) -> None:
    table = pd.DataFrame({"site": ["h"]})
    for name in ("shifts", "projections"):
        directory.stage(
            f"tables/{name}", [1], lambda name=name: [directory.write_table(name, table)]
        )
    directory.keep_tables(["shifts", "cosines"])
    assert set(directory.tables()) == {"shifts"}
    assert set(directory.manifest["stages"]) == {"tables/shifts"}


def test_versions_name_what_numbers_depend_on() -> None:
    found = versions()
    assert {"python", "torch", "transformers", "transformer-lens", "trl", "numpy"} <= set(found)
    assert found["torch"][0].isdigit()


def test_a_removed_table_takes_its_stage_with_it(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    table = pd.DataFrame({"value": [1.0]})
    directory.stage("stress/turns", [1], lambda: [directory.write_table("stress_turns", table)])
    directory.stage("tables/shifts", [1], lambda: [directory.write_table("shifts", table)])
    directory.keep_tables(["shifts"])
    assert set(directory.manifest["stages"]) == {"tables/shifts"}
    directory.drop("tables/shifts")
    assert not directory.manifest["stages"]
    assert not list(tmp_path.glob("tables/*"))
    directory.drop("tables/shifts")  # what is not there is no error
