"""Whole runs on a real model: what is done again, and what comes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from dsteer_tl.errors import DataError
from dsteer_tl.experiment.configuration import (
    build_configuration,
    file_settings,
    merge,
    preset_settings,
)
from dsteer_tl.experiment.figures import draw_figures
from dsteer_tl.experiment.judging import MULTIVERSE, claim_stage
from dsteer_tl.experiment.other_captures import OTHER_CAPTURES
from dsteer_tl.experiment.probing import with_enough_prompts
from dsteer_tl.experiment.stages import Experiment
from dsteer_tl.experiment.sweeping import SWEEP_TABLES
from dsteer_tl.files import hash_file
from dsteer_tl.measurements import AUDIT_TABLES, GRADIENT_TABLES, PAIR_TABLES, TABLES
from dsteer_tl.positions import Probe
from tests import runs

SWEEP_STAGES = {"sweep/held_out", "tables/sweep"}
#: Every table of a run, made by the stages or judged after them.
ALL_TABLES = {*TABLES, *AUDIT_TABLES}
PAIR_STAGES = {
    "preferences",
    "capture",
    *(f"tables/{name}" for name in ALL_TABLES),
    *SWEEP_STAGES,
    OTHER_CAPTURES,
}


@pytest.fixture
def copy(stories260k: Path, tmp_path: Path) -> Path:
    """A copy of the finished run on pairs, for tests that change it."""
    return Path(shutil.copytree(runs.pair_run(stories260k), tmp_path / "run"))


def experiment(folder: Path, **changes: Any) -> Experiment:
    settings = merge(file_settings(folder / "config.yaml"), changes)
    return Experiment(build_configuration(settings), folder, progress=False)


def redone(found: Experiment) -> set[str]:
    return {report.name for report in found.run() if report.ran}


def hashes(folder: Path, pattern: str = "tables/*.parquet") -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(folder.glob(pattern))}


# What is done again.


def test_a_finished_run_does_nothing_and_loads_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_models(monkeypatch)
    reports = experiment(copy).run()
    assert {report.name for report in reports} == PAIR_STAGES
    assert not any(report.ran for report in reports)


def test_only_an_altered_table_is_made_again(copy: Path) -> None:
    before = hashes(copy)
    (copy / "tables" / "mass.parquet").write_bytes(b"altered")
    (copy / "tables" / "spectra.parquet").unlink()
    assert redone(experiment(copy)) == {"tables/mass", "tables/spectra"}
    assert hashes(copy) == before


def test_a_table_without_its_entry_was_half_written(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    del manifest["stages"]["tables/shifts"]
    (copy / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert redone(experiment(copy)) == {"tables/shifts"}


def test_a_lost_shard_is_captured_again_and_tables_are_kept(copy: Path) -> None:
    shard = copy / "capture" / "shard-00000.safetensors"
    before = hash_file(shard)
    shard.unlink()
    assert redone(experiment(copy)) == {"capture"}
    assert hash_file(shard) == before


def test_beta_touches_gradients_and_rewards_alone(copy: Path) -> None:
    changed = redone(experiment(copy, training={"beta": 0.5}))
    # The reward of the sweep is in units of beta.
    assert changed == {*(f"tables/{name}" for name in GRADIENT_TABLES), *SWEEP_STAGES}


def test_more_draws_touch_no_capture(copy: Path) -> None:
    changed = redone(experiment(copy, measurement={"draws": 30}))
    assert changed == {*(f"tables/{name}" for name in ALL_TABLES), OTHER_CAPTURES}


def test_training_settings_train_again_on_the_same_pairs(stories260k: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs.reproduced(stories260k), tmp_path / "run"))
    policy = hash_file(folder / "policy" / "model.safetensors")
    reports = experiment(folder, training={"learning_rate": 1e-3}).train()
    assert {report.name: report.ran for report in reports} == {
        "preferences": False,
        "training": True,
    }
    assert hash_file(folder / "policy" / "model.safetensors") != policy


def test_other_position_kinds_capture_again_and_leave_no_old_tables(copy: Path) -> None:
    found = experiment(copy, measurement={"position_kinds": ["token.2"]})
    changed = redone(found)
    left = ALL_TABLES - PAIR_TABLES
    stages = {"capture", OTHER_CAPTURES, *SWEEP_STAGES}
    assert changed == stages | {f"tables/{name}" for name in left}
    tables = found.directory.tables()
    assert set(tables) == left | {*SWEEP_TABLES, MULTIVERSE}
    assert set(tables["shifts"]["position_kind"]) == {"token.2"}
    results = {result.id: result for result in claim_stage(found.directory)}
    assert results[1].verdict == "NOT RUN"
    assert results[6].position_kind == "token.2"
    assert "figure_4a_entropy" in draw_figures(tables)


# What comes out.


def test_the_manifest_explains_the_run(stories260k: Path) -> None:
    folder = runs.pair_run(stories260k)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert set(manifest["stages"]) == PAIR_STAGES | {
        "claims",
        "figures",
        "tables/multiverse",
        "report",
    }
    for entry in manifest["stages"].values():
        for name, digest in entry["outputs"].items():
            assert hash_file(folder / name) == digest
    names = ("preferences", "sampling", "training", "measurement", "toxicity", "stress")
    assert manifest["seeds"] == dict.fromkeys(names, 0)
    assert manifest["versions"]["torch"]
    assert manifest["hardware"]["cpu_cores"] >= 1
    names = {item["name"]: item["passed"] for item in manifest["preflight"]}
    assert names["W_U"]
    assert names["weights"]
    resolved = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    assert resolved["measurement"]["draws"] == 40
    assert resolved["name"] == "pair_run"


def test_one_configuration_gives_one_result(stories260k: Path) -> None:
    first, second = (runs.reproduced(stories260k, number) for number in (1, 2))
    expected = (*ALL_TABLES, *SWEEP_TABLES, MULTIVERSE, "training", "formation")
    assert set(hashes(first)) == {f"{name}.parquet" for name in expected}
    for path in sorted(first.glob("tables/*.parquet")):
        pd.testing.assert_frame_equal(
            pd.read_parquet(path), pd.read_parquet(second / "tables" / path.name), check_exact=True
        )
    for name in ("preferences.jsonl", "claims.json", "policy/model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_reproduction_trains_a_policy_with_the_embeddings_of_the_base(stories260k: Path) -> None:
    folder = runs.reproduced(stories260k)
    base, policy = (
        load_file(path / "model.safetensors") for path in (stories260k, folder / "policy")
    )
    moved = {name for name in policy if not policy[name].equal(base[name])}
    assert any(".layers." in name for name in moved)
    assert not any("embed" in name or "lm_head" in name for name in moved)
    training = pd.read_parquet(folder / "tables" / "training.parquet")
    assert list(training.columns) == ["step", "epoch", "name", "value"]
    formation = pd.read_parquet(folder / "tables" / "formation.parquet")
    assert list(formation["step"]) == [0, 2, 4]
    contract = "step site cos_to_final cos_sd sigma_ratio v_norm chosen_logp rejected_logp margin"
    assert set(formation.columns) >= set(contract.split())


def test_reproduction_measures_held_out_pairs_alone(stories260k: Path) -> None:
    folder = runs.reproduced(stories260k)
    lines = (folder / "preferences.jsonl").read_text("utf-8").splitlines()
    held_out = [line for line in lines if json.loads(line)["split"] == "held_out"]
    assert 0 < len(held_out) < len(lines)
    shifts = pd.read_parquet(folder / "tables" / "shifts.parquet")
    assert set(shifts[shifts["position_kind"] == "last_prompt"]["n"]) == {len(held_out)}


def test_reproduction_draws_every_figure(stories260k: Path) -> None:
    folder = runs.reproduced(stories260k) / "figures"
    for name in ("figure_1a_logit_geometry", "figure_3_cosines", "formation", "training_curve"):
        assert json.loads((folder / f"{name}.json").read_text("utf-8"))["data"]
        assert (folder / f"{name}.html").stat().st_size > 1000
    assert not list(folder.glob("*.png"))


def test_prompts_alone_leave_the_rows_on_pairs_out(stories260k: Path) -> None:
    folder = runs.prompt_run(stories260k)
    rows = {row["id"]: row for row in json.loads((folder / "claims.json").read_text("utf-8"))}
    for number in (1, 2, 3, 4, 5, 19):
        assert rows[number]["verdict"] == "NOT RUN"
        assert rows[number]["reason"].startswith("needs preference pairs")
    for number in (6, 7, 8, 9, 10, 13, 18):
        assert rows[number]["verdict"] != "NOT RUN"
    found = {path.stem for path in folder.glob("tables/*.parquet")}
    assert found == ALL_TABLES - PAIR_TABLES | {*SWEEP_TABLES, MULTIVERSE}


def test_an_experiment_on_a_file_of_preferences(stories260k: Path, tmp_path: Path) -> None:
    configuration = build_configuration(
        preset_settings("tales"),
        {
            "base": str(stories260k),
            "preferences": {"sources": [str(runs.pair_file())], "held_out_share": 0.5},
            "training": {"max_steps": 2, "batch_size": 4},
        },
    )
    found = Experiment(configuration, tmp_path / "run", progress=False)
    assert [report.ran for report in found.train()] == [True, True]
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()
    assert found.preferences is not None
    assert len(found.preferences) == len(runs.pairs())
    assert found.measured_pairs is not None
    assert {pair.split for pair in found.measured_pairs} == {"held_out"}
    again = Experiment(configuration, tmp_path / "run", progress=False)
    assert [report.ran for report in again.train()] == [False, False]


def test_figures_are_rebuilt_without_a_model(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dsteer_tl.cli import main

    before = hashes(copy, "figures/*.json")
    claims = (copy / "claims.json").read_bytes()
    shutil.rmtree(copy / "figures")
    shutil.rmtree(copy / "capture")
    (copy / "claims.json").unlink()
    refuse_models(monkeypatch)
    assert main(["figures", str(copy), "--no-images"]) == 0
    assert hashes(copy, "figures/*.json") == before
    assert (copy / "claims.json").read_bytes() == claims
    assert "Shifts are nearly parallel" in capsys.readouterr().out


def refuse_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    for module in ("lens_model.loading", "lens_model.checkpoint", "pair", "null_models"):
        monkeypatch.setattr(f"dsteer_tl.{module}.load_model", refuse)


# Enough prompts.


def probe(prompt: int, **positions: tuple[int, ...]) -> Probe:
    return Probe(prompt, (1, 2, 3), positions)


def test_a_kind_that_few_prompts_have_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    probes = [probe(i, last_prompt=(1,), divergence=(2,) if i < 3 else ()) for i in range(6)]
    with caplog.at_level("WARNING", logger="dsteer_tl"):
        found = with_enough_prompts(probes)
    assert [dict(item.positions) for item in found] == [{"last_prompt": (1,)}] * 6
    assert "'divergence' is left out: 3 prompts have it, and 4 are needed" in caplog.text


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="there are 3 prompts to measure on, expected at least 4"):
        with_enough_prompts([probe(i, last_prompt=(1,)) for i in range(3)])
    with pytest.raises(DataError, match="there are 0 prompts"):
        with_enough_prompts([])
