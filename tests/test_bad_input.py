"""What goes wrong in practice: one line that says what to do, exit status 2, and no work lost."""

from __future__ import annotations

import errno
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from dsteer_tl import capture
from dsteer_tl.capture import CaptureConfiguration
from dsteer_tl.cli import main
from dsteer_tl.experiment import main_stages
from dsteer_tl.files import hash_file
from tests import runs
from tests.models import policy_of, random_model, save_checkpoint, tiny_tokenizer

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(random_model(), tmp_path_factory.mktemp("checkpoints") / "base")


@pytest.fixture(scope="module")
def policy(base: Path) -> Path:
    return save_checkpoint(policy_of(random_model()), base.with_name("policy"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{PROMPT} the {n}\n" for n in ("dog", "man", "bird", "rain", "low")))
    return path


Refuse = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a command that must fail, and gives back its one line."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        # Progress goes through logging, whose handlers pytest takes from the command line.
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("dsteer: ")
        return lines[0]

    return run


def analyze(base: Path, policy: Path, out: Path, *more: object) -> list[str]:
    quick = ["--no-images", "--quiet", "--set", *runs.QUICK]
    given = ["analyze", "--base", base, "--policy", policy, "--out", out, *more, *quick]
    return [str(argument) for argument in given]


# Checkpoints.


def test_a_missing_checkpoint(base: Path, tmp_path: Path, prompts: Path, refused: Refuse) -> None:
    arguments = analyze(base, tmp_path / "none", tmp_path / "run", "--prompts", prompts)
    assert f"no checkpoint at {tmp_path / 'none'}" in refused(*arguments)
    arguments = analyze(tmp_path / "none", base, tmp_path / "run", "--prompts", prompts)
    assert str(tmp_path / "none") in refused(*arguments)


def damaged(source: Path, target: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(source, target)
    change(target / "model.safetensors")
    return target


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def as_pickle(path: Path) -> None:
    torch.save({}, path.with_name("pytorch_model.bin"))
    path.unlink()


def with_nan(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def with_a_tensor_missing(path: Path) -> None:
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_short, "model.safetensors cannot be read"),
        (as_pickle, "found only pickle weights (pytorch_model.bin), expected *.safetensors"),
        (with_nan, "1 of 1536 values of 'model.layers.1.mlp.up_proj.weight' are NaN or infinite"),
        (with_a_tensor_missing, "lacks 1 weights, first 'model.norm.weight'"),
        (lambda path: path.unlink(), "found no weights, expected *.safetensors"),
        (lambda path: path.with_name("config.json").unlink(), "has no config.json"),
    ],
    ids=["cut short", "pickle", "nan", "missing tensor", "no weights", "no config"],
)
def test_damaged_weights(
    change: Callable[[Path], None],
    message: str,
    base: Path,
    tmp_path: Path,
    prompts: Path,
    refused: Refuse,
) -> None:
    policy = damaged(base, tmp_path / "damaged", change)
    line = refused(*analyze(base, policy, tmp_path / "run", "--prompts", prompts))
    assert message in line
    assert str(policy) in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 200}, "has d_vocab 200, base"),
        ({"num_hidden_layers": 3}, "has n_layers 3, base"),
        ({"hidden_size": 48}, "has d_model 48, base"),
    ],
)
def test_models_that_are_no_pair(
    changes: dict[str, int],
    message: str,
    base: Path,
    tmp_path: Path,
    prompts: Path,
    refused: Refuse,
) -> None:
    other = save_checkpoint(random_model(**changes), tmp_path / "other")
    line = refused(*analyze(base, other, tmp_path / "run", "--prompts", prompts))
    assert message in line
    assert "a shift is defined only between a model and its own fine-tune" in line


def test_tokenizers_that_differ(base: Path, tmp_path: Path, prompts: Path, refused: Refuse) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<another>"])
    other = save_checkpoint(policy_of(random_model()), tmp_path / "other", tokenizer)
    line = refused(*analyze(base, other, tmp_path / "run", "--prompts", prompts))
    assert "differ in 1 entries" in line


def test_check_refuses_them_too(base: Path, tmp_path: Path, refused: Refuse) -> None:
    other = save_checkpoint(random_model(num_hidden_layers=1), tmp_path / "other")
    assert "has n_layers 1" in refused("check", "--base", base, "--policy", other)


# Prompts and preferences.


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "empty"),
        ("blank.txt", "\n  \n", "all 2 prompts are empty"),
        ("bad.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', "2"),
        ("column.jsonl", '{"question": "a"}\n', "question"),
    ],
)
def test_bad_files_of_prompts(
    name: str,
    content: str,
    message: str,
    base: Path,
    policy: Path,
    tmp_path: Path,
    refused: Refuse,
) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    line = refused(*analyze(base, policy, tmp_path / "run", "--prompts", path))
    assert str(path) in line
    assert message in line.replace(str(path), "")


def test_malformed_json_names_its_line(
    base: Path, policy: Path, tmp_path: Path, refused: Refuse
) -> None:
    path = tmp_path / "pairs.jsonl"
    good = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    path.write_text(f"{good}\n{good}\n{{broken\n{good}\n", "utf-8")
    line = refused(*analyze(base, policy, tmp_path / "run", "--preferences", path))
    assert f"{path}:3" in line or "line 3" in line


def test_a_missing_file(base: Path, policy: Path, tmp_path: Path, refused: Refuse) -> None:
    path = tmp_path / "none.jsonl"
    for flag in ("--preferences", "--prompts"):
        assert str(path) in refused(*analyze(base, policy, tmp_path / "run", flag, path))


def test_too_few_pairs(base: Path, policy: Path, tmp_path: Path, refused: Refuse) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": PROMPT, "chosen": " yes", "rejected": " no"}) + "\n")
    line = refused(*analyze(base, policy, tmp_path / "run", "--preferences", path))
    assert "1 prompts to measure on, expected at least 4" in line.splitlines()[-1]


def test_overlong_prompts_are_refused_or_dropped(
    base: Path, policy: Path, tmp_path: Path, prompts: Path, refused: Refuse
) -> None:
    prompts.write_text(prompts.read_text() + f"{PROMPT * 40}\n")
    given = (base, policy, tmp_path / "run", "--prompts", prompts)
    line = refused(*analyze(*given))
    assert "prompt 5 has" in line
    assert "more than the context of" in line
    assert "(64)" in line
    assert main(analyze(*given, "--drop-overlong")) == 0
    shifts = pd.read_parquet(tmp_path / "run" / "tables" / "shifts.parquet")
    assert set(shifts["n"]) == {5}


def test_overlong_pairs_are_refused(
    base: Path, policy: Path, tmp_path: Path, refused: Refuse
) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{PROMPT} {i}", "chosen": " yes", "rejected": " no"} for i in range(5)]
    rows[3]["chosen"] = " and then the rain came" * 20
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refused(*analyze(base, policy, tmp_path / "run", "--preferences", path))
    assert "64" in line


# Settings.


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("measurement.position_kinds=[third_token]", "unknown position kind 'third_token'"),
        ("measurement.position_kinds=[divergence]", "unknown position kind 'divergence' for prom"),
        ("measurement.position_kinds=[token.60]", "so it has no position 'token.60'"),
        ("measurement.drafts=3", "did you mean measurement.draws?"),
        ("model.backend=nothing", "setting 'model.backend' is 'nothing'"),
    ],
)
def test_settings_that_do_not_exist(
    setting: str,
    message: str,
    base: Path,
    policy: Path,
    tmp_path: Path,
    prompts: Path,
    refused: Refuse,
) -> None:
    arguments = analyze(base, policy, tmp_path / "run", "--prompts", prompts)
    assert message in refused(*arguments, setting)


def test_an_unknown_preset(refused: Refuse, tmp_path: Path) -> None:
    for command in (["reproduce", "--preset", "tails"], ["presets", "--name", "tails"]):
        assert "there is no preset 'tails': expected one of" in refused(*command)


def test_a_folder_that_is_no_run(refused: Refuse, tmp_path: Path) -> None:
    assert "is no run directory" in refused("figures", tmp_path)


def test_an_output_that_is_a_file(
    base: Path, policy: Path, tmp_path: Path, prompts: Path, refused: Refuse
) -> None:
    line = refused(*analyze(base, policy, prompts, "--prompts", prompts))
    assert f"cannot write {prompts / 'config.yaml'}" in line
    assert prompts.is_file()


# The disk and the keyboard.


def disk_is_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("dsteer_tl.capture.save_file", "shard-00000.safetensors"),
        ("pandas.DataFrame.to_parquet", "mass.parquet"),
        ("dsteer_tl.experiment.run_directory.write_json", ""),
    ],
)
def test_a_full_disk_loses_nothing(
    place: str,
    name: str,
    base: Path,
    policy: Path,
    tmp_path: Path,
    prompts: Path,
    refused: Refuse,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    arguments = analyze(base, policy, out, "--prompts", prompts)
    assert main(arguments) == 0
    lost = out / ("capture/shard-00000.safetensors" if "shard" in name else "tables/mass.parquet")
    lost.unlink()
    before = {path: hash_file(path) for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr(place, disk_is_full)
        line = refused(*arguments)
    assert name in line
    assert "No space left on device" in line
    kept = {path: hash_file(path) for path in out.rglob("*") if path.is_file()}
    # The capture's own index says that it is under way; nothing else moved.
    index = out / "capture" / "index.json"
    assert {**kept, index: ""} == {**before, index: ""}
    assert main(arguments) == 0
    assert lost.is_file()


def test_a_full_disk_under_the_preferences(
    base: Path, policy: Path, tmp_path: Path, refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsteer_tl.preferences.preference_set.write_whole", disk_is_full)
    out = tmp_path / "run"
    line = refused(*analyze(base, policy, out, "--preferences", runs.pair_file()))
    assert "No space left on device; finished work is kept" in line


def test_an_interrupted_capture_continues_at_its_last_shard(
    base: Path,
    policy: Path,
    tmp_path: Path,
    prompts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = capture.capture_shard
    started: list[int] = []

    def interrupted(models: Any, probes: Any, *more: Any) -> Any:
        started.append(probes[0].prompt)
        if len(started) == 2:
            raise KeyboardInterrupt
        return original(models, probes, *more)

    monkeypatch.setattr(
        main_stages,
        "CaptureConfiguration",
        functools.partial(CaptureConfiguration, shard_sequences=2),
    )
    monkeypatch.setattr(capture, "capture_shard", interrupted)
    out = tmp_path / "run"
    arguments = analyze(base, policy, out, "--prompts", prompts)
    assert main(arguments) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "dsteer: interrupted; finished work is kept, the same command continues"
    assert [path.name for path in out.glob("capture/shard-*")] == ["shard-00000.safetensors"]
    first = (out / "capture" / "shard-00000.safetensors").stat()
    assert main(arguments) == 0
    assert started[:4] == [0, 2, 2, 4]  # the first shard was not captured again
    assert (out / "capture" / "shard-00000.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    whole = tmp_path / "whole"
    assert main(analyze(base, policy, whole, "--prompts", prompts)) == 0
    for name in ("shifts", "cosines", "nulls"):
        pd.testing.assert_frame_equal(
            *(pd.read_parquet(folder / "tables" / f"{name}.parquet") for folder in (out, whole))
        )


def test_identical_models_give_no_shift_to_judge(
    base: Path, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(analyze(base, base, out, "--prompts", prompts)) == 0
    rows = json.loads((out / "claims.json").read_text("utf-8"))
    assert {row["verdict"] for row in rows} == {"NOT RUN"}
    assert "base and policy hold the same weights" in capsys.readouterr().out
