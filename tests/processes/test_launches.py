"""One, two and three processes give the same shards and tables; a killed one costs one part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from dsteer_tl.files import read_json
from tests.processes.same_tables import require_same_tables

SHARDS, BLOCKS, SCORES = 8, 6, 1


@pytest.fixture(scope="session")
def launches(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The folder of all launches; a launch that hangs ends them."""
    folder = tmp_path_factory.mktemp("launches")
    done = subprocess.run(
        [sys.executable, "-m", "tests.processes.launched", str(folder)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def found(launches: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((launches / "found.json").read_text("utf-8"))
    return content


def done(launch: dict[str, Any], what: str) -> list[int]:
    return [launch[str(index)][what] for index in range(len(launch))]


def test_each_process_does_its_share_and_nothing_twice(found: dict[str, Any]) -> None:
    assert done(found["one"], "count") == [1]
    assert done(found["three"], "index") == [0, 1, 2]
    assert done(found["three"], "count") == [3, 3, 3]
    assert done(found["one"], "shards") == [SHARDS]
    assert done(found["three"], "shards") == [3, 3, 2]
    assert done(found["one"], "generated") == [BLOCKS]
    assert done(found["three"], "generated") == [2, 2, 2]
    assert sum(done(found["three"], "scored")) == done(found["one"], "scored")[0] == SCORES


def test_steering_is_checked_by_every_process_that_steers(found: dict[str, Any]) -> None:
    assert done(found["one"], "checks") == [3]
    assert all(0 < count <= 3 for count in done(found["three"], "checks"))


@pytest.mark.parametrize("other", ["killed", "three"])
def test_shards_are_the_same_bit_for_bit(launches: Path, other: str) -> None:
    ours, theirs = (launches / name / "capture" for name in ("one", other))
    names = sorted(path.name for path in ours.glob("shard-*"))
    assert len(names) == SHARDS
    assert sorted(path.name for path in theirs.glob("shard-*")) == names
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert read_json(ours / "index.json") == read_json(theirs / "index.json")


@pytest.mark.parametrize(("other", "count"), [("killed", 2), ("three", 3)])
@pytest.mark.parametrize("table", ["completions", "scored", "shifts"])
def test_tables_are_the_same_in_every_process(
    launches: Path, other: str, count: int, table: str
) -> None:
    expected = pd.read_parquet(launches / "one" / "process-0" / f"{table}.parquet")
    assert len(expected)
    for index in range(count):
        given = pd.read_parquet(launches / other / f"process-{index}" / f"{table}.parquet")
        pd.testing.assert_frame_equal(given, expected, rtol=0, atol=1e-6)


def test_a_killed_process_costs_its_unfinished_shard(found: dict[str, Any]) -> None:
    assert found["dead in capture"] == {"failed": {"1": -9}}
    shards = found["after capture"]
    # The killed process has one of its shards; the other was ended by the launcher when it was.
    assert "capture/shard-00001.safetensors" in shards
    assert "capture/shard-00003.safetensors" not in shards
    assert {name: found["after all"][name] for name in shards} == shards


def test_a_killed_process_costs_its_unfinished_part(found: dict[str, Any]) -> None:
    assert found["dead in sweep"] == {"failed": {"1": -9}}
    kept = found["after sweep"]
    assert "parts/completions-00001.parquet" in kept
    assert "parts/completions-00003.parquet" not in kept
    assert sum(name.startswith("capture/") for name in kept) == SHARDS
    assert {name: found["after all"][name] for name in kept} == kept
    # What is done after a restart is what was not there.
    parts = sum(name.startswith("parts/completions") for name in kept)
    assert sum(done(found["two"], "shards")) == 0
    assert sum(done(found["two"], "generated")) == BLOCKS - parts


def test_nothing_half_written_stays(launches: Path) -> None:
    assert not [path for path in launches.rglob(".*") if path.is_file()]


def test_stages_run_once_or_everywhere(launches: Path, found: dict[str, Any]) -> None:
    by_process = [found["stages"][str(index)] for index in range(3)]
    assert by_process[0]["done"] == ["alone", "together", "fails"]
    assert by_process[1]["done"] == by_process[2]["done"] == ["together"]
    reports = by_process[0]["reports"]
    assert [report[:2] for report in reports] == [
        ["alone", True],
        ["alone", False],
        ["together", True],
        ["together", False],
    ]
    assert all(own["reports"] == reports for own in by_process)
    assert all(len(own["outputs"]) == 3 for own in by_process)
    manifest = read_json(launches / "stages" / "manifest.json")
    assert list(manifest["stages"]) == ["alone", "together"]
    assert manifest["name"] == "described"
    table = pd.read_parquet(launches / "stages" / "tables" / "alone.parquet")
    assert table["x"].tolist() == [0]


def test_an_error_of_the_main_process_is_raised_in_all(found: dict[str, Any]) -> None:
    said = [found["stages"][str(index)]["said"] for index in range(3)]
    assert said == ["no such prompts, says process 0"] * 3


def test_any_other_error_ends_the_launch(found: dict[str, Any]) -> None:
    assert found["breaks"] == {"failed": {"0": 1}}


def test_shards_hold_rows(launches: Path) -> None:
    """The comparison above would hold for empty shards, too."""
    shard = load_file(launches / "three" / "capture" / "shard-00002.safetensors")
    assert len(shard["prompt"]) > 4 and np.abs(shard["policy/h"] - shard["base/h"]).max() > 1e-3


def test_a_whole_run_is_the_same(launches: Path, found: dict[str, Any]) -> None:
    one, two = (found[f"run of {count}"] for count in ("one", "two"))
    assert two["0"] == two["1"] == one["0"]
    assert one["0"]["first"][-2:] == [["sweep/held_out", True], ["tables/sweep", True]]
    assert one["0"]["again"] == []
    stages = [read_json(launches / f"run of {count}" / "manifest.json") for count in ("one", "two")]
    assert [list(item["stages"]) for item in stages] == [
        [name for name, _ in one["0"]["first"]]
    ] * 2
    assert len(require_same_tables(launches / "run of one", launches / "run of two")) > 15
