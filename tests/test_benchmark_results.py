"""Ratios are what they are called, results keep each other, and the scripts around them run."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsteer_tl.errors import ShapeError
from tests.benchmarks import gpu, results
from tests.benchmarks.other_environment import Unavailable, Worker, id_tokenizer, save_models
from tests.benchmarks.table import markdown_table
from tests.benchmarks.works import ragged_probes
from tests.models import policy_of, random_model


def test_a_ratio_is_the_median_of_the_ratios_of_one_turn_each() -> None:
    above = [(2.0, 1.0), (9.0, 3.0), (4.0, 8.0)]
    below = [(1.0, 1.0), (3.0, 1.0), (4.0, 4.0)]
    entry = results.ratio_entry(above, below, target=1.5, direction="<=")
    assert entry["ratios"] == [2.0, 3.0, 1.0] and entry["ratio"] == 2.0
    assert entry["cpu_ratios"] == [1.0, 3.0, 2.0] and entry["cpu_ratio"] == 2.0
    assert (entry["target"], entry["direction"], entry["repetitions"]) == (1.5, "<=", 3)
    assert "cpu_cores" in entry["hardware"]


def test_every_second_turn_goes_backwards() -> None:
    calls: list[str] = []

    def timer(name: str) -> Callable[[], results.Seconds]:
        def run() -> results.Seconds:
            calls.append(name)
            return float(len(calls)), 0.0

        return run

    times = results.times_in_turn([timer("a"), timer("b")], repetitions=3)
    assert "".join(calls) == "abbaab"
    assert [clock for clock, _ in times[0]] == [1.0, 4.0, 5.0]
    assert [clock for clock, _ in times[1]] == [2.0, 3.0, 6.0]


def test_small_values_keep_their_digits() -> None:
    entry = results.value_entry([1.23456e-7, 3e-7, 2e-9], target=1e-4, direction="<=")
    assert entry["ratio"] == 1.235e-7 and entry["ratios"][2] == 2e-9


def test_one_entry_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "results" / "benchmarks.json"
    results.write_result("first", {"ratio": 1.0}, path)
    results.write_result("second", {"ratio": 2.0}, path)
    results.write_result("first", {"ratio": 3.0}, path)
    assert json.loads(path.read_text("utf-8")) == {
        "first": {"ratio": 3.0},
        "second": {"ratio": 2.0},
    }


def test_the_table_says_what_was_met_missed_and_not_run() -> None:
    entries = {
        "capture_overhead_x": {
            "ratio": 1.2,
            "ratios": [1.1, 1.2, 1.3],
            "target": 1.1,
            "direction": "<=",
        },
        "capture_against_x": {"ratio": 3.5, "target": 3.0, "direction": ">="},
        "gpu_x": results.not_run_entry("no CUDA device", target=1.0, direction="<="),
    }
    assert markdown_table(entries).splitlines()[2:] == [
        "| capture overhead x | 1.20 | 1.10 … 1.30 | ≤ 1.10 | **no** |",
        "| capture against x | 3.50 | – | ≥ 3.00 | yes |",
        "| gpu x | NOT RUN | no CUDA device | ≤ 1.00 | – |",
    ]
    with pytest.raises(ShapeError, match="'broken' has ratio; expected ratio, target"):
        markdown_table({"broken": {"ratio": 1.0}})


def test_the_script_draws_a_file_of_results(
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "benchmarks.json"
    results.write_result("one", {"ratio": 1.2, "target": 1.1, "direction": "<="}, path)
    results.write_result("two", results.not_run_entry("no", target=1, direction=">="), path)
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))  # no picture, and quick
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks.py", str(path)])
    found = runpy.run_path(str(repository / "analyses" / "benchmarks.py"), run_name="__main__")
    assert list(found["numbers"]["met"]) == [False, None]
    assert [file.name for file in tmp_path.iterdir()] == ["benchmarks.json"]
    assert capsys.readouterr().out == ""


def test_the_gpu_script_runs_through_on_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    small = ["--shape", "tiny", "--device", "cpu", "--repetitions", "1"]
    gpu.main([*small, "--out", str(path)])
    found = json.loads(path.read_text("utf-8"))
    assert set(found) == set(gpu.ENTRIES)
    for name, entry in found.items():
        assert (entry["target"], entry["direction"]) == gpu.ENTRIES[name]
    assert found["gpu_peak_memory"]["status"] == "NOT RUN"
    assert 0 <= found["gpu_correctness_float32"]["ratio"] < 1e-6
    assert 1e-4 < found["gpu_correctness_bfloat16"]["ratio"] < 3e-2
    assert found["gpu_capture_overhead"]["prompts_per_second"] > 0


def test_without_cuda_no_gpu_entry_has_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "results.json"
    elsewhere = {"ratio": 1.05, "target": 1.1, "direction": "<="}
    results.write_result("gpu_capture_overhead", elsewhere, path)
    gpu.main(["--out", str(path)])
    found = json.loads(path.read_text("utf-8"))
    assert set(found) == set(gpu.ENTRIES)
    assert found.pop("gpu_capture_overhead") == elsewhere
    assert {(entry["status"], entry["reason"]) for entry in found.values()} == {
        ("NOT RUN", "no CUDA device")
    }
    assert not any("ratio" in entry for entry in found.values())


def test_the_tokenizer_reads_ids(tmp_path: Path) -> None:
    tokenizer = id_tokenizer(40)
    probe = ragged_probes(1, 40)[0]
    text = " ".join(f"t{token:06}" for token in probe.ids)
    assert tokenizer(text)["input_ids"] == list(probe.ids)


def test_a_worker_says_why_it_cannot_run(tmp_path: Path) -> None:
    base = random_model()
    folders = save_models({"base": base, "policy": policy_of(base)}, tmp_path)
    probes = ragged_probes(2, 160)
    with pytest.raises(Unavailable, match=r"no environment \.venv-none"):
        Worker("repeng", folders, probes, environment=tmp_path / ".venv-none")
    # The interpreter of this environment, which has none of these packages.
    python = tmp_path / ".venv-here" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    with pytest.raises(Unavailable, match="No module named"):
        Worker("repeng", folders, probes, environment=tmp_path / ".venv-here")
