"""The pages on behaviour name everything that there is, and their code runs as it is pasted."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from dsteer_tl.behavior.detoxify_scorer import REVISION, SOURCE
from dsteer_tl.behavior.judge import (
    API_KEY_VARIABLE,
    CRITERIA,
    CRITERIA_VERSION,
    JudgeConfiguration,
    JudgeReport,
)
from dsteer_tl.behavior.perspective import KEY_VARIABLE
from dsteer_tl.behavior.refusal import WINDOW
from dsteer_tl.behavior.settings import FAMILIES, SweepConfiguration
from dsteer_tl.claims import LEDGER, Verdict
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.lens_model import LoadOptions, load_model, load_tokenizer
from dsteer_tl.preferences.suites import SUITES
from dsteer_tl.steering.interventions import POSITIONS
from dsteer_tl.steering.vectors import VECTORS
from dsteer_tl.vector_formats import FORMATS
from tests import runs
from tests.models import policy_of

PAGES = Path(__file__).resolve().parents[2] / "docs"


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text("utf-8")


def code_names(text: str) -> set[str]:
    """What stands between backticks on one line."""
    return set(re.findall(r"`([^`\n]+)`", text))


def fields(configuration: type) -> set[str]:
    return {field.name for field in dataclasses.fields(configuration)}


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page(name), flags=re.DOTALL)


def test_vectors_positions_suites_and_formats_are_described() -> None:
    named = code_names(page("behavior"))
    assert {*VECTORS, *POSITIONS, *SUITES} <= named
    assert all(re.search(rf"\b{family}\b", page("behavior")) for family in FAMILIES)
    assert set(FORMATS) <= code_names(page("exporting"))


def test_every_setting_of_the_sweep_is_described() -> None:
    named = code_names(page("presets"))
    expected = {f"sweep.{name}" for name in fields(SweepConfiguration)}
    assert expected - {"sweep.judge"} <= named
    assert "sweep.judge.*" in named


def test_the_judge_is_described() -> None:
    text = page("judge")
    assert fields(JudgeConfiguration) <= code_names(text)
    assert all(re.search(rf"\b{name}\b", text) for name in fields(JudgeReport))
    assert {f"judge_{name}" for name in CRITERIA} <= code_names(text)
    assert f"`CRITERIA_VERSION` {CRITERIA_VERSION}" in text
    assert API_KEY_VARIABLE in text


def test_what_is_pinned_is_what_is_described() -> None:
    text = page("behavior")
    assert f"hf download {SOURCE} " in text
    assert f"--revision {REVISION}" in text
    assert f"`{KEY_VARIABLE}`" in text
    assert f"first {WINDOW} characters" in text


def test_every_row_of_the_ledger_is_described() -> None:
    text = page("replication")
    table, rules = text.split("## The rows")[1].split("When the sign counts as right")
    for claim in LEDGER:
        assert re.search(rf"^\| {claim.id} \|", table, flags=re.MULTILINE), claim.id
        assert re.search(rf"^\| (\d+, )?{claim.id}(, \d+)? \|", rules, flags=re.MULTILINE), claim.id
    assert all(f"| {verdict.value} |" in text for verdict in Verdict)


def test_every_metric_and_column_of_a_run_is_described(stories260k: Path) -> None:
    run = RunDirectory.open(runs.pair_run(stories260k))
    metrics = run.table("sweep_metrics")
    assert set(metrics["metric"]) <= code_names(page("behavior"))
    columns = page("run-directory")
    for name in ("sweep", "sweep_metrics", "completions"):
        row = re.search(rf"^\| `{name}` ˢ \| (.*) \|$", columns, flags=re.MULTILINE)
        assert row is not None
        told = [column.strip() for column in row[1].split(",")]
        found = [column for column in run.table(name) if column not in set(metrics["metric"])]
        assert [column for column in told if " " not in column] == found


@pytest.mark.parametrize("name", sorted(path.stem for path in PAGES.glob("*.md")))
def test_links_lead_somewhere_and_code_parses(name: str) -> None:
    for block in blocks(name):
        ast.parse(block)
    for target, anchor in re.findall(r"\]\(([\w-]+\.md)?(#[\w-]+)?\)", page(name)):
        text = page(target.removesuffix(".md") or name)
        heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
        known = {
            "#" + re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads
        }
        assert not anchor or anchor in known


def test_the_example_sweeps_when_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "runs" / "tales" / "policy"
    policy_of(load_model("tales", LoadOptions())).save_pretrained(policy)
    load_tokenizer("tales", LoadOptions()).save_pretrained(policy)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(blocks("behavior")[0], "behavior.md", "exec"), names)
    completions = names["result"].completions  # type: ignore[attr-defined]
    assert set(completions["direction"]) == {"interpolate", "invert"}
    assert set(completions["vector"]) == {"v_star", "random"}
    assert completions["completion"].str.len().min() > 0
