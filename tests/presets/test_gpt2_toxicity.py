"""The preset of Lee et al. 2024, whole, on a small random GPT-2 with GPT-2's own tokenizer."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from transformers import GPT2TokenizerFast

from dsteer_tl.cli import main
from dsteer_tl.experiment.study import STUDY_TABLES
from dsteer_tl.preferences import PreferenceSet
from tests.experiment.test_study import FIGURES, LEE
from tests.models import random_model

PAIRS = 24


@pytest.fixture(scope="module")
def small_gpt2(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of GPT-2 with its whole vocabulary."""
    folder = tmp_path_factory.mktemp("gpt2")
    files = shared_folder / "models" / "gpt2-tokenizer"
    tokenizer = GPT2TokenizerFast(vocab=str(files / "vocab.json"), merges=str(files / "merges.txt"))
    ends = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model = random_model(
        "gpt2", vocab_size=len(tokenizer), n_positions=256, bos_token_id=ends, eos_token_id=ends
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def jigsaw(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ParaDetox texts in the columns of the Jigsaw competition."""
    path = tmp_path_factory.mktemp("labels") / "train.csv"
    source = shared_folder / "data" / "preferences" / "paradetox.tsv"
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:60]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "comment_text", "toxic"])
        for number, row in enumerate(rows):
            writer.writerow([f"{number}a", row["toxic"], 1])
            writer.writerow([f"{number}b", row["neutral1"], 0])
    return path


def arguments(base: Path, out: Path, jigsaw: Path, data: Path, *settings: str) -> list[str]:
    wikitext = data / "evaluation" / "wikitext2_test.txt"
    prompts = data / "evaluation" / "realtoxicityprompts_5k.jsonl"
    return [
        *("toxicity", "--preset", "gpt2-toxicity", "--base", str(base), "--out", str(out)),
        *("--no-images", "--quiet", "--set", "model.device=cpu"),
        f"preferences.continuations.text={wikitext}",
        f"preferences.continuations.prompts={PAIRS}",
        "preferences.continuations.max_new_tokens=6",
        "preferences.continuations.margin=1e-9",
        "training.max_steps=3",
        "training.warmup_steps=0",
        "training.learning_rate=0.001",
        f"toxicity.labels=jigsaw={jigsaw}",
        f"toxicity.prompts=realtoxicityprompts-challenging={prompts}",
        "toxicity.prompt_limit=8",
        f"toxicity.text={wikitext}",
        "toxicity.windows=6",
        "toxicity.window_tokens=24",
        "toxicity.window_prompt=8",
        "toxicity.scorer=lexicon",
        "toxicity.held_out_share=0.3",
        "toxicity.vectors=12",
        "toxicity.neurons=3",
        "toxicity.scales=[1.0, 10.0]",
        "toxicity.max_new_tokens=6",
        "toxicity.draws=20",
        *settings,
    ]


def test_the_preset_runs_whole(
    small_gpt2: Path, jigsaw: Path, shared_folder: Path, tmp_path: Path
) -> None:
    data = shared_folder / "data"
    assert main(arguments(small_gpt2, tmp_path, jigsaw, data)) == 0
    pairs = PreferenceSet.load(tmp_path / "preferences.jsonl")
    assert len(pairs) >= 8 and len(pairs) + sum(pairs.dropped.values()) == PAIRS
    assert all(pair.chosen != pair.rejected and pair.split for pair in pairs)
    for name in STUDY_TABLES:
        assert len(pd.read_parquet(tmp_path / "tables" / f"{name}.parquet")), name
    for name in FIGURES:
        assert (tmp_path / "figures" / f"{name}.html").is_file(), name
    rows = {row["id"]: row for row in json.loads((tmp_path / "claims.json").read_text("utf-8"))}
    assert set(LEE) <= set(rows)
    for number in (20, 21, 25, 26, 27, 29):
        assert rows[number]["measured"] is not None, rows[number]
    lens = pd.read_parquet(tmp_path / "tables" / "toxicity_lens.parquet")
    assert int(lens["tokens"].max()) > 100  # words of the lists are tokens of GPT-2
    anchors = pd.read_parquet(tmp_path / "tables" / "toxicity_interventions.parquet")
    assert {"base", "policy", "random_weights", "shuffled_pairs"} <= set(anchors["vector"])


def test_selected_continuations_need_a_scorer_that_runs(
    small_gpt2: Path,
    jigsaw: Path,
    shared_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    settings = ("preferences.continuations.rejected=selected", "toxicity.scorer=detoxify")
    data = shared_folder / "data"
    assert main(arguments(small_gpt2, tmp_path / "run", jigsaw, data, *settings)) == 2
    assert "not on this machine" in capsys.readouterr().err
    settings = ("toxicity.labels=pairs",)
    assert main(arguments(small_gpt2, tmp_path / "run", jigsaw, data, *settings)) == 2
    assert "before there are pairs" in capsys.readouterr().err
