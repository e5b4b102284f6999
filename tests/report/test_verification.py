"""Whatever happens to a file of a run is found, and nothing outside the run is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.errors import RunError
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.files import hash_file, write_json
from dsteer_tl.report.verification import (
    VerificationReport,
    verification_text,
    verify_run,
)

ROWS = [
    {"id": 1, "statement": "one", "verdict": "REPLICATED", "measured": 0.25, "ci": [0.2, 0.3],
     "null": 0.1, "reason": "", "figure": "mass"},
    {"id": 2, "statement": "two", "verdict": "NOT RUN", "measured": None, "ci": None,
     "null": None, "reason": "no table", "figure": "tokens"},
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a table, shards in a folder, a figure and a ledger, written by its own class."""
    folder = tmp_path / "run"
    directory = RunDirectory(folder)

    def table() -> list[Path]:
        return [directory.write_table("mass", pd.DataFrame({"mass": [0.5, 0.25] * 50}))]

    def capture() -> list[Path]:
        path = folder / "capture" / "shard-00000.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(range(256)))
        return [path]

    def figures() -> list[Path]:
        write_json(folder / "figures" / "mass.json", {})
        return [folder / "figures" / "mass.json"]

    def claims() -> list[Path]:
        write_json(folder / "claims.json", ROWS)
        return [folder / "claims.json"]

    stages = {"capture": capture, "tables/mass": table, "figures": figures, "claims": claims}
    for name, stage in stages.items():
        directory.stage(name, [name], stage)
    (folder / "config.yaml").write_text("name: run\n")
    directory.describe({"config": hash_file(folder / "config.yaml")})
    return folder


def states(report: VerificationReport) -> dict[str, str]:
    return {item.path: item.state for item in report.items if item.state != "intact"}


def change_manifest(run: Path, change: Any) -> None:
    content = json.loads((run / "manifest.json").read_text())
    change(content)
    (run / "manifest.json").write_text(json.dumps(content))


def test_a_run_as_it_was_left(run: Path) -> None:
    report = verify_run(run, expected_claims=ROWS)
    assert report.passed and not states(report) and not report.contradictions and not report.notes
    assert {(item.path, item.stage) for item in report.items} == {
        ("capture/shard-00000.safetensors", "capture"),
        ("tables/mass.parquet", "tables/mass"),
        ("figures/mass.json", "figures"),
        ("claims.json", "claims"),
        ("config.yaml", "settings"),
    }
    report.require()
    text = verification_text(report)
    assert "VERIFIED: 5 intact, 0 altered, 0 missing, 0 unlisted" in text
    assert hash_file(run / "manifest.json") in text


@settings(deadline=None, max_examples=15)
@given(place=st.integers(0, 255), bit=st.integers(0, 7))
def test_any_bit_of_a_file_is_found(tmp_path_factory, place: int, bit: int) -> None:
    folder = tmp_path_factory.mktemp("bit")
    path = folder / "shard"
    path.write_bytes(bytes(range(256)))
    stages = {"capture": {"key": "", "outputs": {"shard": hash_file(path)}}}
    write_json(folder / "manifest.json", {"format": 1, "stages": stages})
    assert verify_run(folder).passed
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    assert states(verify_run(folder)) == {"shard": "altered"}


def test_files_that_were_altered_removed_and_added(run: Path) -> None:
    table = run / "tables" / "mass.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    (run / "capture" / "shard-00000.safetensors").unlink()
    (run / "config.yaml").write_text("name: other\n")
    (run / "tables" / "other.parquet").write_bytes(b"new")
    report = verify_run(run)
    assert states(report) == {
        "tables/mass.parquet": "altered",
        "capture/shard-00000.safetensors": "missing",
        "config.yaml": "altered",
        "tables/other.parquet": "unlisted",
    }
    assert not report.passed
    with pytest.raises(RunError, match=r"2 altered, 1 missing, 1 contradicting.*mass\.parquet"):
        report.require()
    lines = verification_text(report).splitlines()
    assert lines[0].split() == ["altered", "tables/mass.parquet", "(tables/mass)"]
    assert "NOT AS ITS MANIFEST SAYS: 2 intact, 2 altered, 1 missing, 1 unlisted" in lines[-2]


def test_added_files_alone_are_no_fault_and_work_is_not_listed(run: Path) -> None:
    for name in ("cache/judge/a.json", "policy.work/model.bin", "sweep/held_out/parts/0.pt",
                 ".writing-x/a.html", "tables/.mass.parquet.partial"):  # fmt: skip
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("")
    (run / "notes.txt").write_text("mine")
    report = verify_run(run)
    assert states(report) == {"notes.txt": "unlisted"} and report.passed


def test_a_folder_in_the_place_of_a_file_is_a_missing_file(run: Path) -> None:
    (run / "claims.json").unlink()
    (run / "claims.json").mkdir()
    assert states(verify_run(run)) == {"claims.json": "missing"}


def test_an_edited_manifest(run: Path) -> None:
    first = verify_run(run).manifest_hash
    change_manifest(run, lambda m: m["stages"]["capture"]["outputs"].update(
        {"capture/shard-00000.safetensors": "0" * 64}))  # fmt: skip
    change_manifest(run, lambda m: m["stages"].pop("tables/mass"))
    report = verify_run(run)
    assert states(report) == {
        "capture/shard-00000.safetensors": "altered",
        "tables/mass.parquet": "unlisted",
    }
    assert report.manifest_hash != first


def test_paths_that_leave_the_run_are_reported_and_not_read(run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    link = run / "capture" / "link"
    link.symlink_to(secret)
    (run / "outside").symlink_to(tmp_path)
    digest = hash_file(secret)
    leaving = ["../secret.txt", str(secret), "capture/../../secret.txt", "capture/link",
               "outside/secret.txt", "..\\secret.txt", "a\0b", ""]  # fmt: skip
    change_manifest(run, lambda m: m["stages"]["capture"]["outputs"].update(
        dict.fromkeys(leaving, digest)))  # fmt: skip
    report = verify_run(run)
    assert not report.passed and len(report.contradictions) == len(leaving)
    # Even a true digest outside the run is not confirmed.
    assert not {item.path for item in report.items if item.state != "unlisted"} & set(leaving)
    assert "lies outside the run" in verification_text(report)


def test_a_manifest_that_does_not_cover_the_settings_says_so(run: Path) -> None:
    change_manifest(run, lambda m: m.pop("config"))
    (run / "config.yaml").write_text("name: other\n")
    report = verify_run(run)
    assert report.passed and any("config.yaml" in note for note in report.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no run directory"),
        ("{", "is not JSON"),
        ("[]", "has format 'list'"),
        ('{"stages": {}}', "has format None"),
        ('{"format": 2, "stages": {}}', "has format 2"),
        ('{"format": 1}', "has no stages"),
        ('{"format": 1, "stages": {"capture": {"key": ""}}}', "'capture' has no outputs"),
        ('{"format": 1, "stages": {"a": {"outputs": {"b": 3}}}}', "'a' has no outputs"),
    ],
)
def test_broken_manifests(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunError, match=message):
        verify_run(tmp_path)


def test_the_ledger_is_what_its_tables_give(run: Path) -> None:
    rounded = [{**ROWS[0], "measured": 0.25 * (1 + 1e-9), "ci": (0.2, 0.3)}, ROWS[1]]
    assert verify_run(run, expected_claims=rounded).passed
    for change in ({"verdict": "TRIVIAL"}, {"measured": 0.26}, {"ci": [0.2, 0.31]}, {"null": None}):
        report = verify_run(run, expected_claims=[{**ROWS[0], **change}, ROWS[1]])
        assert not report.passed
        (contradiction,) = report.contradictions
        assert contradiction.startswith("row 1") and next(iter(change)) in contradiction


def test_ledgers_of_other_versions_are_no_fault(run: Path) -> None:
    report = verify_run(run, expected_claims=[ROWS[0], {**ROWS[1], "id": 3}])
    assert report.passed
    assert any("lacks: 3" in note for note in report.notes)
    assert any("does not know: 2" in note for note in report.notes)
    reworded = [{**ROWS[0], "statement": "another", "verdict": "FAILED"}, ROWS[1]]
    report = verify_run(run, expected_claims=reworded)
    assert report.passed and any(note.startswith("row 1") for note in report.notes)


def test_a_figure_that_the_ledger_shows_must_be_there(run: Path) -> None:
    (run / "figures" / "mass.json").unlink()
    report = verify_run(run)
    assert states(report) == {"figures/mass.json": "missing"}
    assert report.contradictions == (
        "row 1 of claims.json shows figure 'mass', which is not there",
    )
    shutil.rmtree(run / "figures")
    change_manifest(run, lambda m: m["stages"].pop("figures"))
    undrawn = verify_run(run)
    assert undrawn.passed and any("not drawn" in note for note in undrawn.notes)


def test_a_ledger_that_is_none(run: Path) -> None:
    (run / "claims.json").write_text('{"verdict": "REPLICATED"}')
    assert any("no list of rows" in each for each in verify_run(run).contradictions)
    (run / "claims.json").unlink()
    change_manifest(run, lambda m: m["stages"].pop("claims"))
    assert any("not judged" in note for note in verify_run(run).notes)


def test_names_cannot_speak_to_the_terminal(run: Path) -> None:
    (run / "\x1b[31mred").write_text("")
    text = verification_text(verify_run(run))
    assert "\x1b" not in text and "\\u001b[31mred" in text
