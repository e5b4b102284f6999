"""Runs side by side: what the files hold, distinct names, and a page that stays text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsteer_tl.errors import ConfigurationError, RunError
from dsteer_tl.report.comparison import compare_runs, comparison_table
from dsteer_tl.report.comparison_page import (
    comparison_html,
    comparison_markdown,
    comparison_text,
    write_comparison,
)

EVIL = "<script>alert(1)</script>|\x1b[31m\n| <img src=x onerror=alert(2)>"


def row(number: int, verdict: str = "PARTIAL", **changes: Any) -> dict[str, Any]:
    known = verdict != "NOT RUN"
    return {
        "id": number,
        "statement": f"statement {number}",
        "source": "paper",
        "published": "0.9",
        "verdict": verdict,
        "measured": 0.5 + number / 100 if known else None,
        "ci": [0.4, 0.6] if known else None,
        "null": 0.125 if known else None,
        "null_name": "random",
        "unit": "cosine",
    } | changes


def write_run(
    folder: Path, rows: list[dict[str, Any]], name: str = "tales", **changes: Any
) -> Path:
    """The stored files that a comparison reads."""
    (folder / "capture").mkdir(parents=True)
    manifest = {
        "format": 1,
        "stages": {},
        "name": name,
        "models": {"base": {"source": "tales"}, "policy": {"source": "trained in this run"}},
        "versions": {"dsteer-tl": "0.1.0", "torch": "2.13.0"} | changes.get("versions", {}),
    }
    settings = {"name": name, "training": {"beta": 1.0, "steps": [1, 2]}, "expectation": name}
    settings["training"] |= changes.get("training", {})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "claims.json").write_text(json.dumps(rows))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    sites = ["resid_post.0", "resid_post.1", "h"]
    (folder / "capture" / "index.json").write_text(json.dumps({"sites": sites}))
    splits = ["train", "train", "held_out"]
    lines = [json.dumps({"prompt": "p", "split": split}) for split in splits]
    (folder / "preferences.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / "a", [row(1, "REPLICATED"), row(2)]),
        write_run(
            tmp_path / "b",
            [row(1, "FAILED", measured=-0.25, ci=None), row(3, "NOT RUN")],
            name="other",
            training={"beta": 0.1, "new": True},
            versions={"torch": "2.6.0"},
        ),
    ]


def test_what_is_read(two: list[Path]) -> None:
    found = compare_runs(two)
    first, second = found.runs
    assert (first.label, second.label) == ("tales", "other")
    assert (first.base, first.policy) == ("tales", "trained in this run")
    assert (first.n_layers, first.pairs, first.held_out) == (2, 3, 1)
    assert found.rows == ((1, "statement 1"), (2, "statement 2"), (3, "statement 3"))
    assert {d.name: d.values for d in found.settings} == {
        "training.beta": ("1.0", "0.1"),
        "training.new": ("–", "true"),
    }
    assert {d.name: d.values for d in found.versions} == {"torch": ("2.13.0", "2.6.0")}
    assert any("ledger of tales has no row 3" in note for note in found.notes)
    assert any("ledger of other has no row 2" in note for note in found.notes)


def test_the_table(two: list[Path]) -> None:
    table = comparison_table(compare_runs(two))
    assert list(table.columns) == [
        "run", "id", "statement", "measured", "ci_low", "ci_high", "null", "verdict",
    ]  # fmt: skip
    assert list(zip(table["run"], table["id"], strict=True)) == [
        ("tales", 1), ("other", 1), ("tales", 2), ("other", 3),
    ]  # fmt: skip
    assert table.loc[0, ["measured", "ci_low", "ci_high", "null"]].tolist() == [
        0.51, 0.4, 0.6, 0.125,
    ]  # fmt: skip
    assert table.loc[1, ["ci_low", "ci_high"]].isna().all() and table.loc[1, "measured"] == -0.25
    assert table["verdict"].tolist() == ["REPLICATED", "FAILED", "PARTIAL", "NOT RUN"]
    assert (table.dtypes[["measured", "ci_low", "ci_high", "null"]] == "float64").all()


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / place, [row(1)]) for place in ("x/run", "y/run", "third", "tales")
    ]
    labels = [run.label for run in compare_runs(folders).runs]
    assert len(set(labels)) == 4
    assert labels[2:] == ["tales (third)", "tales"]
    assert all("run" in label for label in labels[:2])


def test_text_for_the_terminal(two: list[Path]) -> None:
    text = comparison_text(compare_runs(two), width=100)
    assert "0.51 [0.4, 0.6]" in text and "null 0.125" in text and "no such row" in text
    assert re.search(r"training\.beta +1\.0 +0\.1", text)
    assert max(map(len, text.splitlines()[:6])) <= 100


def test_what_does_not_differ_is_said(tmp_path: Path) -> None:
    same = compare_runs([write_run(tmp_path / name, [row(1)]) for name in ("a", "b")])
    assert same.settings == () and same.versions == () and same.notes == ()
    assert "Settings that differ: none" in comparison_text(same)
    assert "Settings that differ: none." in comparison_markdown(same)
    assert comparison_html(same).count("<p>None.</p>") == 2


class Elements(HTMLParser):
    """Names and attributes of a page's elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_text_of_a_run_stays_text(tmp_path: Path) -> None:
    rows = [row(1, EVIL, statement=EVIL, published=EVIL, unit=EVIL, null_name=EVIL)]
    folders = [
        write_run(tmp_path / "a", rows, name=EVIL, training={EVIL: EVIL}, versions={EVIL: EVIL}),
        write_run(tmp_path / "b", [row(2)]),
    ]
    found = compare_runs(folders)
    page = comparison_html(found)
    elements = Elements(page).found
    assert {tag for tag, _ in elements} <= {
        *("html", "head", "meta", "link", "title", "style", "body", "h1", "h2", "p", "div"),
        *("table", "thead", "tbody", "tr", "th", "td", "span", "small", "bdi", "code"),
    }
    for tag, attributes in elements:
        assert not {"style", "onerror", "onclick", "src"} & set(attributes), tag
    assert html.escape("<script>alert(1)</script>") in page
    assert "\x1b" not in comparison_text(found)
    markdown = comparison_markdown(found)
    assert "<script" not in markdown and "<img" not in markdown
    table = [line for line in markdown.splitlines() if line.startswith("| 1 |")]
    assert len(table) == 1 and len(re.findall(r"(?<!\\)\|", table[0])) == 5


def test_the_page_allows_its_own_style_and_nothing_else(two: list[Path], tmp_path: Path) -> None:
    path = write_comparison(compare_runs(two), tmp_path / "out" / "comparison.html")
    page = path.read_text("utf-8")
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    meta = next(a for t, a in Elements(page).found if a.get("http-equiv"))
    assert meta["content"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    assert not re.search(r"https?:", page)
    assert "0.51 [0.4, 0.6]" in page and "no such row" in page and "training.beta" in page


def test_prompts_alone_and_missing_settings(two: list[Path]) -> None:
    (two[0] / "preferences.jsonl").unlink()
    (two[0] / "capture" / "index.json").unlink()
    (two[0] / "config.yaml").unlink()
    found = compare_runs(two)
    assert (found.runs[0].pairs, found.runs[0].n_layers) == (None, None)
    assert any("no config.yaml" in note for note in found.notes)
    assert "prompts only" in comparison_text(found)


def test_versions_of_this_package_and_wordings(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", [row(1)]),
        write_run(tmp_path / "b", [row(1, statement="new")], versions={"dsteer-tl": "0.2.0"}),
    ]
    notes = " ".join(compare_runs(folders).notes)
    assert "different versions of dsteer-tl" in notes and "row 1 is worded differently" in notes


def test_refusals(two: list[Path], tmp_path: Path) -> None:
    for folders in ([], two[:1], [two[0], two[0] / "." / ".." / "a"]):
        with pytest.raises(ConfigurationError, match="at least two"):
            compare_runs(folders)
    with pytest.raises(RunError, match="no run directory"):
        compare_runs([two[0], tmp_path])
    (two[1] / "claims.json").write_text('[{"id": 1}]')
    with pytest.raises(RunError, match="holds no ledger"):
        compare_runs(two)
    (two[1] / "claims.json").unlink()
    with pytest.raises(RunError, match="is missing"):
        compare_runs(two)
    (two[1] / "manifest.json").write_text('{"format": 7}')
    with pytest.raises(RunError, match="format 1"):
        compare_runs(two)
