"""The toxicity study through the command line: real models, real files, and what it refuses."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from dsteer_tl.cli import main
from dsteer_tl.experiment.study import STUDY_TABLES
from dsteer_tl.files import read_json
from dsteer_tl.toxicity.labelled_texts import read_labelled_texts
from tests import runs

#: Settings under which every stage takes a second or two.
QUICK = (
    "toxicity.scorer=vader",
    "toxicity.attribute=unkind",
    "toxicity.shuffled_pairs=false",
    "toxicity.label_texts=120",
    "toxicity.held_out_share=0.3",
    "toxicity.prompts=held_out",
    "toxicity.prompt_limit=8",
    "toxicity.text=sampled",
    "toxicity.windows=6",
    "toxicity.window_tokens=24",
    "toxicity.window_prompt=8",
    "toxicity.vectors=12",
    "toxicity.neurons=3",
    "toxicity.scales=[1.0, 10.0]",
    "toxicity.max_new_tokens=6",
    "toxicity.draws=20",
)
FIGURES = (
    "toxicity_probe",
    "toxicity_value_vectors",
    "toxicity_tokens",
    "toxicity_weights",
    "toxicity_activations",
    "toxicity_offsets",
    "toxicity_residuals",
    "toxicity_value_changes",
    "toxicity_decomposition",
    "toxicity_lens",
    "toxicity_interventions",
    "toxicity_unalign",
    "toxicity_patching",
)
LEE = range(20, 31)


@pytest.fixture(scope="module")
def tales(repository: Path) -> Path:
    """The model inside the package: its vocabulary has words of the attribute as tokens."""
    return repository / "dsteer_tl" / "assets" / "tales-base"


@cache
def labelled_file() -> Path:
    path = runs.folder() / "labelled.jsonl"
    rows = [
        {"text": f"{prompt} and {mood} {again}", "label": label}
        for prompt in runs.PROMPTS
        for label, mood in ((1, "was sad and hurt"), (0, "was happy and kind"))
        for again in ("today", "once more")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def arguments(base: Path, out: Path, *settings: str, policy: Path | None = None) -> list[str]:
    return [
        *("toxicity", "--base", str(base), "--out", str(out)),
        *("--policy", str(policy or runs.perturbed_policy(base))),
        *("--preferences", str(runs.pair_file()), "--no-images", "--quiet", "--set"),
        *QUICK,
        f"toxicity.labels=own={labelled_file()}",
        *settings,
    ]


@cache
def study(base: Path) -> Path:
    out = runs.folder() / "study"
    assert main(arguments(base, out)) == 0
    return out


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "tables" / f"{name}.parquet")


def verdicts(folder: Path) -> dict[int, dict[str, object]]:
    return {row["id"]: row for row in read_json(folder / "claims.json")}


def check_whole(folder: Path) -> None:
    """Every table, figure and row that the study promises."""
    for name in STUDY_TABLES:
        assert len(table(folder, name)), name
    for name in FIGURES:
        assert (folder / "figures" / f"{name}.html").is_file(), name
    assert (folder / "figures" / "value_vectors.html").is_file()
    rows = verdicts(folder)
    assert set(LEE) <= set(rows)


def test_a_study_leaves_every_table_figure_and_row(tales: Path) -> None:
    out = study(tales)
    check_whole(out)
    rows = verdicts(out)
    for number in set(LEE) - {23}:  # its null is there, yet prompts may be too few for an interval
        assert rows[number]["measured"] is not None, rows[number]
    stages = read_json(out / "manifest.json")["stages"]
    assert "capture" not in stages and "toxicity/unalign" in stages
    texts = read_json(out / "toxicity" / "texts.json")
    assert len(texts["prompts"]) == 8 and len(texts["windows"]) == 6


def test_a_finished_study_is_not_run_again(tales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = study(tales)
    before = {path: path.stat().st_mtime_ns for path in (out / "tables").iterdir()}
    assert main(["toxicity", str(out), "--no-images", "--quiet"]) == 0
    assert "0 stages in 0 s" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (out / "tables").iterdir()} == before


@pytest.mark.parametrize(
    ("setting", "again"),
    [
        ("toxicity.scales=[1.0, 3.0]", {"unalign"}),
        ("toxicity.singular_vectors=1", {"interventions"}),
        ("toxicity.target_words=[Sad, hurt]", {"lens"}),
        ("toxicity.attribute=sad", {"probe"}),
        ("toxicity.label_texts=80", {"labelled", "probe", "value_vectors", "changes"}
         | {"interventions", "unalign", "patching"}),
    ],
)  # fmt: skip
def test_only_what_depends_on_a_setting_runs_again(
    copy: Path, setting: str, again: set[str]
) -> None:
    assert ran(copy, setting) == again
    if again == {"lens"}:  # with and without a space before the word, where both are tokens
        lens = table(copy, "toxicity_lens")
        assert 2 <= lens["tokens"].max() <= 4


def ran(folder: Path, *settings: str) -> set[str]:
    """Stages of the study that ran, by the times that the manifest gives them."""
    path = folder / "manifest.json"
    manifest = read_json(path)
    for entry in manifest["stages"].values():
        entry["seconds"] = -1.0
    path.write_text(json.dumps(manifest), "utf-8")
    assert main(["toxicity", str(folder), "--no-images", "--quiet", "--set", *settings]) == 0
    stages = read_json(path)["stages"]
    return {
        name.removeprefix("toxicity/")
        for name, entry in stages.items()
        if entry["seconds"] >= 0 and name.startswith("toxicity/")
    }


def test_two_studies_of_one_configuration_are_equal(tales: Path, tmp_path: Path) -> None:
    out = study(tales)
    assert main(arguments(tales, tmp_path)) == 0
    for name in STUDY_TABLES:
        pd.testing.assert_frame_equal(table(out, name), table(tmp_path, name))
    assert (out / "claims.json").read_text("utf-8") == (tmp_path / "claims.json").read_text("utf-8")


@pytest.fixture
def copy(tales: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study(tales), tmp_path / "study"))


def test_other_prompts_of_real_files(copy: Path, shared_folder: Path) -> None:
    """RealToxicityPrompts and ParaDetox end to end, on a finished run."""
    data = shared_folder / "data"
    settings = (
        f"toxicity.labels=paradetox={data / 'preferences/paradetox.tsv'}",
        f"toxicity.prompts=realtoxicityprompts={data / 'evaluation/realtoxicityprompts_5k.jsonl'}",
        f"toxicity.text={data / 'evaluation/wikitext2_test.txt'}",
        "toxicity.scorer=lexicon",
        "toxicity.attribute=toxic",
        "toxicity.label_texts=240",
        "toxicity.window_tokens=16",
    )
    assert main(["toxicity", str(copy), "--no-images", "--quiet", "--set", *settings]) == 0
    check_whole(copy)
    probe = table(copy, "toxicity_probe").set_index("control")
    assert set(probe["labels"]) == {settings[0].partition("=")[2]}
    assert probe.loc["probe", "auroc"] > probe.loc["shuffled_labels", "auroc"]
    labelled = read_labelled_texts(copy / "toxicity" / "labelled.jsonl")
    assert 0 < sum(item.label for item in labelled) < len(labelled) <= 240


def test_a_scorer_that_cannot_run_is_not_run(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the classifier's weights everything else is measured, and nothing stands in."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    settings = ("toxicity.scorer=detoxify", "toxicity.attribute=toxic")
    assert main(["toxicity", str(copy), "--no-images", "--quiet", "--set", *settings]) == 0
    metrics = table(copy, "toxicity_metrics").set_index("metric")
    assert metrics.loc["attribute_score", "status"] == "NOT RUN"
    assert "not on this machine" in metrics.loc["attribute_score", "reason"]
    assert table(copy, "toxicity_interventions")["attribute_score"].isna().all()
    assert table(copy, "toxicity_unalign")["attribute_score"].isna().all()
    rows = verdicts(copy)
    for number in (22, 23, 24, 28):
        assert rows[number]["verdict"] == "NOT RUN"
        assert "not on this machine" in str(rows[number]["reason"])
    for number in (20, 21, 25, 26, 27, 29, 30):
        assert rows[number]["verdict"] != "NOT RUN"


def test_an_interrupted_study_continues(
    tales: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsteer_tl.experiment import study_stages as module

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "measure_interventions", stopped)
        assert main(arguments(tales, tmp_path)) == 130
    stages = read_json(tmp_path / "manifest.json")["stages"]
    assert "toxicity/lens" in stages and "toxicity/interventions" not in stages
    for name in ("measure_changes", "fit_text_probe", "target_lens_table"):
        monkeypatch.setattr(module, name, stopped)
    assert main(arguments(tales, tmp_path)) == 0
    check_whole(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("toxicity.labels=pairs",), "the study continues the prompts of all of them"),
        (("toxicity.labels=nothing",), "there is no labelled set 'nothing'|nothing"),
        (("toxicity.prompts=nothing",), "there is no suite 'nothing'"),
        (("toxicity.text=nothing.txt",), "nothing.txt"),
        (("toxicity.max_new_tokens=600",), "gives 0 prompts"),
        (("toxicity.vectors=100000",), "toxicity.vectors"),
        (("toxicity.shuffled_pairs=true",), "toxicity.shuffled_pairs=false"),
        (("toxicity.scales=[2.0]",), "expected 1 among them"),
        (("toxicity.window_prompt=24",), "fewer than the 24"),
        (("toxicity.vector=8",), "did you mean toxicity.vectors"),
        (("toxicity.scorer=nice",), "toxicity.scorer"),
    ],
)
def test_what_a_study_refuses(
    copy: Path,
    settings: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    assert main(["toxicity", str(copy), "--no-images", "--quiet", "--set", *settings]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("dsteer: ") and re.search(message, said), said


def test_models_that_are_equal(
    tales: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tales, tmp_path, policy=tales)) == 2
    assert "no change to study" in capsys.readouterr().err


def test_flags_of_another_run(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toxicity", str(copy), "--base", "tales"]) == 2
    assert "leave --base away" in capsys.readouterr().err
    assert main(["toxicity", str(copy), "--set", "training.beta=5.0"]) == 2
    assert "training would change" in capsys.readouterr().err
    assert main(["toxicity", str(copy / "nowhere")]) == 2
    assert "no run directory" in capsys.readouterr().err


def test_settings_are_shown_and_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["toxicity", "--print-config", "--out", str(tmp_path / "out")]) == 0
    assert "enabled: true" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
