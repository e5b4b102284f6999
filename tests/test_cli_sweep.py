"""``dsteer sweep``: suites added to a finished run, and what goes wrong with them."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsteer_tl.cli import main
from dsteer_tl.command_settings import parse_settings
from dsteer_tl.experiment.configuration import build_configuration, file_settings
from dsteer_tl.experiment.stages import Experiment
from dsteer_tl.experiment.sweeping import SWEEP_TABLES
from dsteer_tl.files import hash_file
from dsteer_tl.lens_model.checkpoint import resolve_source
from dsteer_tl.pair import ModelPair
from tests import runs
from tests.models import policy_of

Refuse = Callable[..., str]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def tiny_run(tiny_folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tiny random models on prompts."""
    folder = tmp_path_factory.mktemp("sweeps")
    prompts = folder / "prompts.txt"
    names = ("dog", "man", "bird", "rain", "river", "water")
    prompts.write_text("".join(f"Once upon a time the {name}\n" for name in names), "utf-8")
    base, policy = tiny_folders
    arguments = ["analyze", "--base", str(base), "--policy", str(policy), "--prompts", str(prompts)]
    arguments += ["--out", str(folder / "run"), "--no-images", "--quiet", "--set", *runs.QUICK]
    assert main(arguments) == 0
    return folder / "run"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text("the old man\nhe said\n", "utf-8")
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a sweep that must fail, and gives back its one line."""

    def sweep(*arguments: object) -> str:
        capsys.readouterr()
        assert main(["sweep", *map(str, arguments)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("dsteer: ")
        return lines[0]

    return sweep


def sweep(folder: Path, *more: object) -> int:
    return main(["sweep", str(folder), "--no-images", "--quiet", *map(str, more)])


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def stages(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))["stages"]
    return found


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "tables" / f"{name}.parquet")


def suites(folder: Path) -> list[str]:
    content = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    found: list[str] = content["sweep"]["suites"]
    return found


# What it does.


def test_a_plan_is_one_line_a_suite_and_runs_nothing(
    run: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, done = files(run), stages(run)
    capsys.readouterr()
    assert sweep(run, "--plan", "--suite", f"mine={mine}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["held_out", "mine"]
    for line in lines:
        assert "completions of at most 6 tokens in" in line
    assert files(run) == before
    assert stages(run) == done


def test_a_suite_is_added_and_the_earlier_ones_stay(
    run: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: own for name, own in files(run).items() if name.startswith("sweep/held_out")}
    assert sweep(run, "--suite", f"mine={mine}") == 0
    shown = capsys.readouterr().out
    assert "Outputs collapse into repetition" in shown
    assert f"tables and figures in {run}" in shown
    assert suites(run) == ["held_out", f"mine={mine}"]
    for name in SWEEP_TABLES:
        assert set(table(run, name)["suite"]) == {"held_out", "mine"}
    after = files(run)
    assert {name: after[name] for name in before} == before

    other = tmp_path / "other.txt"
    other.write_text("she was\n", "utf-8")
    assert sweep(run, "--suite", f"other={other}") == 0
    assert suites(run) == ["held_out", f"mine={mine}", f"other={other}"]
    assert set(table(run, "sweep")["suite"]) == {"held_out", "mine", "other"}
    # The same command finds everything up to date.
    capsys.readouterr()
    assert sweep(run, "--suite", f"other={other}") == 0
    assert "0 stages in 0 s" in capsys.readouterr().out


def test_the_settings_of_a_run_are_kept_and_can_be_changed(run: Path, mine: Path) -> None:
    before = build_configuration(file_settings(run / "config.yaml"))
    assert sweep(run, "--suite", f"mine={mine}", "--set", "max_new_tokens=2", "prompts=1") == 0
    after = build_configuration(file_settings(run / "config.yaml"))
    assert (after.sweep.max_new_tokens, after.sweep.prompts) == (2, 1)
    assert after.sweep.interpolate == before.sweep.interpolate == (-1.0, 0.0, 1.0)
    assert after.measurement == before.measurement
    completions = table(run, "completions").query("suite == 'mine'")
    assert completions["n_tokens"].max() <= 2
    assert set(completions["prompt"]) == {0}


def test_the_texts_can_be_browsed(run: Path, mine: Path) -> None:
    assert sweep(run, "--suite", f"mine={mine}") == 0
    assert "the old man" in (run / "figures" / "text_browser.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [
        (("families=[degeneration]",), {"collapse", "dose_response"}),
        (("families=[truthfulness]",), set()),
        (
            ("sites=[resid_post.0]", "positions=response"),
            {"collapse", "dose_response", "figure_2a", "figure_2b", "refusal"},
        ),
    ],
)
def test_figures_show_what_was_swept(settings: tuple[str, ...], drawn: set[str], run: Path) -> None:
    assert sweep(run, "--set", *settings) == 0
    names = {"collapse", "dose_response", "figure_2a", "figure_2b", "refusal"}
    claims = {row["id"]: row for row in json.loads((run / "claims.json").read_text("utf-8"))}
    for number in (11, 12, 14, 15, 16, 17):
        assert claims[number]["reason"]
    outputs = {Path(name).stem for name in stages(run)["figures"]["outputs"]}
    assert outputs & names == drawn


# What goes wrong.


def test_a_folder_that_is_no_run(tmp_path: Path, refused: Refuse) -> None:
    assert "is no run directory: it has no manifest.json" in refused(tmp_path / "none")
    assert "is no run directory" in refused(tmp_path)


def test_a_run_without_captured_residuals(run: Path, refused: Refuse) -> None:
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    del manifest["stages"]["capture"]
    (run / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    for more in ((), ("--plan",)):
        line = refused(run, *more)
        assert "has no captured residuals to take vectors from: finish the run first" in line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--suite", "nonsense"), "there is no suite 'nonsense'; expected one of advbench"),
        (("--suite", "mine=missing.txt"), "missing.txt"),
        (("--suite", "../out=mine.txt"), "'../out'"),
        (("--suite", "=mine.txt"), "''"),
        (("--set", "prompts=0"), "sweep.prompts is 0, expected at least 1"),
        (("--set", "promts=3"), "did you mean sweep.prompts?"),
        (("--set", "interpolate=[1.0]"), "sweep.interpolate lacks 0"),
        (("--set", "vectors=[w]"), "unknown vector 'w'"),
        (("--set", "families=[poetry]"), "unknown family 'poetry'"),
        (("--set", "sites=[resid_post.9]"), "resid_post.9"),
        (("--set", "sites=[resid_post@2]"), "expected resid_post@<share of depth>"),
        (("--set", "max_new_tokens=64"), "max_new_tokens"),
        (("--set", "prompts"), "expected NAME=VALUE"),
        (("--judge", "nowhere"), "expected one like http://localhost:8000/v1"),
        (("--judge", "http://me:secret@localhost/v1"), "put the key into DSTEER_JUDGE_API_KEY"),
    ],
)
def test_what_cannot_be_swept_is_one_line_and_leaves_the_run_as_it_was(
    more: tuple[str, ...],
    message: str,
    run: Path,
    mine: Path,
    refused: Refuse,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(mine.parent)
    if more == ("--set", "max_new_tokens=64"):
        more = (*more, "--suite", "mine=mine.txt")
    before = {name: own for name, own in files(run).items() if "/parts/" not in name}
    line = refused(run, "--no-images", "--quiet", *more)
    assert message in line
    assert "secret" not in line
    after = {name: own for name, own in files(run).items() if "/parts/" not in name}
    assert after == before
    # The next sweep is not haunted by it.
    assert sweep(run, "--plan") == 0


def test_a_judge_that_cannot_be_reached_is_not_run(run: Path, mine: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    more = ("--judge", url, "--judge-model", "m", "--set", "judge.retries=0")
    assert sweep(run, "--suite", f"mine={mine}", *more) == 0
    metrics = table(run, "sweep_metrics").query("suite == 'mine'").set_index("metric")
    assert metrics.loc["judge_g_eval", "status"] == "NOT RUN"
    assert url.split("/")[2] in str(metrics.loc["judge_g_eval", "reason"])
    assert metrics.loc["lexicon_toxicity", "status"] == "measured"
    content = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    assert content["sweep"]["judge"]["base_url"] == url


# Harmful prompts and the model of the package.


@pytest.fixture(scope="module")
def tales_run(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captured residuals of real pairs, then two suites of harmful prompts through the command."""
    folder = tmp_path_factory.mktemp("tales")
    source = resolve_source("tales")
    policy_of(AutoModelForCausalLM.from_pretrained(source)).save_pretrained(folder / "policy")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "policy")
    settings = {
        "policy": str(folder / "policy"),
        "preferences": {"sources": [str(runs.pair_file())], "limit": 8},
        "measurement": {"random_weights": False},
        "sweep": {"suites": [], "sites": ["h"], "generated": ["v_star", "random"]},
    }
    quick = parse_settings(runs.QUICK)
    grid = {"sweep": {"interpolate": [-1.0, 0.0, 1.0, 2.0]}}
    configuration = build_configuration(quick, settings, grid)
    experiment = Experiment(configuration, folder / "run", progress=False)
    experiment.preferences_stage()
    experiment.capture_stage()
    experiment._write_settings()
    data = shared_folder / "data" / "evaluation"
    files = (f"advbench={data / 'advbench.csv'}", f"harmfulqa={data / 'harmfulqa.json'}")
    assert sweep(folder / "run", "--suite", *files) == 0
    return folder / "run"


def test_harmful_prompts_all_have_completions(tales_run: Path) -> None:
    completions = table(tales_run, "completions")
    pair = ModelPair.load("tales", tales_run.parent / "policy")
    for name in ("advbench", "harmfulqa"):
        own = completions[completions["suite"] == name]
        assert own.drop_duplicates("prompt")["prompt_text"].nunique() == 3
        curve = ["direction", "vector", "matching", "site"]
        for (direction, *_), rows in own.groupby(curve):
            grid = [-1.0, 0.0, 1.0, 2.0] if direction == "interpolate" else [0.0, 1.0]
            assert sorted(set(rows["coefficient"])) == grid
            assert len(rows) == 3 * len(grid)
        assert own["n_tokens"].between(1, 6).all()
        # What the base writes unsteered is what it writes without any of this.
        unsteered = own.query("direction == 'interpolate' and coefficient == 0 and site == 'h'")
        first = unsteered.drop_duplicates("prompt").iloc[0]
        ids = pair.tokenizer(first["prompt_text"], return_tensors="pt")
        written = AutoModelForCausalLM.from_pretrained(resolve_source("tales")).generate(
            **ids, max_new_tokens=6, do_sample=False
        )[0, ids["input_ids"].shape[1] :]
        assert pair.tokenizer.decode(written, skip_special_tokens=True) == first["completion"]


def test_the_rows_on_harmful_prompts_say_what_was_found(tales_run: Path) -> None:
    rows = {row["id"]: row for row in json.loads((tales_run / "claims.json").read_text("utf-8"))}
    assert rows[16]["verdict"] == "NOT RUN"
    assert rows[16]["reason"].startswith("judge_steering_shift NOT RUN (no judge endpoint")
    # A teller of tales refuses nothing, before or after: that is no finding about refusals.
    assert (rows[17]["verdict"], rows[17]["reason"]) == ("UNTESTABLE", "neither model refuses")
    assert rows[17]["n"] == 2 * 3
    metrics = table(tales_run, "sweep_metrics").query("suite == 'advbench'").set_index("metric")
    assert metrics.loc["refusal", "status"] == "measured"
    assert metrics.loc["reward_margin", "status"] == "NOT RUN"
    for name in ("figure_2a", "figure_2b", "refusal", "collapse", "dose_response"):
        assert (tales_run / "figures" / f"{name}.html").stat().st_size > 1000
