"""Results in a notebook: every fact is there, texts stay text, nothing is fetched or run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsteer_tl.capture import ShiftSet, capture_shifts
from dsteer_tl.claims import ClaimResult, Verdict, judge, ledger_text
from dsteer_tl.claims.results import Ledger
from dsteer_tl.directions import SteeringVector, mean_shift_vector
from dsteer_tl.errors import ConfigurationError, RunError
from dsteer_tl.notebook import (
    Markup,
    badge,
    escaped,
    facts,
    folded,
    grid,
    listed,
    run_html,
    stacked,
)
from dsteer_tl.pair import ModelPair
from dsteer_tl.plots import show
from dsteer_tl.positions import probes_from_prompts
from dsteer_tl.preflight import Preflight, PreflightItem
from dsteer_tl.steering import Intervention, Setting, SweepPlan, SweepResult, execute, plan_sweep

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)> & \"'"
PROMPTS = ["Once upon a time", "The old king said", "A girl found", "One day the dog"]
VOID = {"br", "img", "hr", "input", "meta", "link"}


class Page(HTMLParser):
    """The elements of a piece of HTML, its text, and whether every element is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def parsed(found: Any) -> Page:
    """What is shown, after checking what must hold of all of it."""
    source = found if isinstance(found, str) else found._repr_html_()
    page = Page(source)
    allowed = {"div", "span", "b", "table", "tr", "th", "td", "details", "summary", "br"}
    assert set(page.tags) <= allowed
    assert {name for name, _ in page.attributes} <= {"style", "scope"}
    styles = " ".join(value or "" for name, value in page.attributes if name == "style")
    # Colours of the theme, or transparent ones: a solid ground would hide text of the other theme.
    assert not re.search(r"url\(|#[0-9a-f]{3}|(?<![-\w])color:", styles)
    return page


@pytest.fixture(scope="module")
def shifts(tiny_pair: ModelPair) -> ShiftSet:
    return capture_shifts(tiny_pair, probes_from_prompts(tiny_pair.tokenizer, PROMPTS))


@pytest.fixture(scope="module")
def v_star(tiny_pair: ModelPair, shifts: ShiftSet) -> SteeringVector:
    return mean_shift_vector(tiny_pair, shifts, "h", "last_prompt")


@pytest.fixture(scope="module")
def plan(tiny_pair: ModelPair, v_star: SteeringVector) -> SweepPlan:
    steered = Intervention(name=HOSTILE, vectors=(v_star,))
    settings = {"interpolate": (Setting.by_norm(steered, (0.0, 1.5)),)}
    return plan_sweep(tiny_pair, PROMPTS, generated=settings)  # type: ignore[arg-type]


def result(**more: Any) -> ClaimResult:
    known: dict[str, Any] = {
        "id": 6,
        "statement": "Shifts are parallel",
        "source": "D-STEER, sec. 3",
        "published": "0.92–0.96",
        "target": "in the band",
        "verdict": Verdict.PARTIAL,
        "measured": 0.6861,
        "ci": (0.678, 0.694),
        "null": 0.368,
        "null_name": "random weights",
    }
    return ClaimResult(**(known | more))


@given(st.text(max_size=60))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    shown = text.replace("\r\n", "\n").replace("\r", "\n")  # as a page reads ends of lines
    for page in (facts("", {"name": text}), grid(["a"], [[text]]), folded("more", escaped(text))):
        assert Page(page.replace("\r\n", "\n").replace("\r", "\n")).text.count(shown) >= 1
    assert "<" not in escaped(text)


def test_long_texts_are_cut_and_say_so() -> None:
    assert escaped("a" * 1000, limit=10) == "a" * 10 + " … (1,000 characters)"
    assert escaped("a" * 10, limit=10) == "a" * 10


def test_markup_is_not_escaped_twice_and_plain_parts_are_escaped() -> None:
    assert escaped(escaped("<b>")) == "&lt;b&gt;"
    assert Page(stacked("<script>", badge("PARTIAL"))).tags == ["div", "span", "b"]
    assert escaped(Markup("<b>x</b>")) == "<b>x</b>"


def test_long_lists_keep_both_ends() -> None:
    assert listed(range(3)) == "0, 1, 2"
    assert listed(range(40), most=4) == "0, 1, 2, … 39 (40)"


def test_a_pair_shows_both_models_and_what_differs(tiny_pair: ModelPair) -> None:
    page = parsed(tiny_pair)
    for expected in (
        tiny_pair.base.name,
        tiny_pair.policy.name,
        f"d_model {tiny_pair.base.d_model}",
    ):
        assert expected in page.text
    assert all(item.detail in page.text for item in tiny_pair.preflight.items)


def test_preflight_marks_what_did_not_pass() -> None:
    items = (PreflightItem("W_U", False, HOSTILE), PreflightItem("dtype", True, "equal"))
    rows = parsed(Preflight(items)).rows
    assert rows[1:] == [["W_U", "not passed", HOSTILE], ["dtype", "passed", "equal"]]


def test_a_shift_set_shows_rows_and_prompts(shifts: ShiftSet) -> None:
    page = parsed(shifts)
    assert ["last_prompt", "4", "4"] in page.rows
    assert "base, policy" in page.text


def test_a_vector_shows_where_it_acts_and_the_share_of_its_largest_entry() -> None:
    vector = SteeringVector(np.array([3.0, 0, -4]), "resid_post.1", HOSTILE, "last_prompt", 7)
    text = parsed(vector).text
    assert HOSTILE in text
    for expected in ("resid_post.1", "5,", "64.0%", "7 rows"):
        assert expected in text
    assert "0.0%" in parsed(vector.with_values(np.zeros(3), "zero")).text


def test_a_plan_and_its_result_show_settings_and_texts(
    tiny_pair: ModelPair, plan: SweepPlan
) -> None:
    assert ["write", "interpolate", HOSTILE, "h", "all", "norm", "0, 1.5"] in parsed(plan).rows
    assert plan.describe() in parsed(plan).text
    found = execute(plan, tiny_pair, progress=False)
    texts = found.completions.assign(completion=HOSTILE, prompt_text="a <b>")
    page = parsed(SweepResult(texts, found.scored))
    assert "8 completions" in page.text
    assert [row[-1] for row in page.rows[1:]] == [HOSTILE, HOSTILE]
    assert "0 completions" in parsed(SweepResult(pd.DataFrame(), pd.DataFrame())).text


def test_a_claim_shows_measured_null_and_verdict() -> None:
    page = parsed(result(reason=HOSTILE, n=128, site="h", position_kind="response"))
    rows = {row[0]: row[1] for row in page.rows}
    assert rows["measured"].strip() == "0.686 [0.678, 0.694]"
    assert rows["null"] == "0.368 random weights"
    assert rows["verdict"] == "PARTIAL"
    assert rows["where"] == "h, response, 128 rows"
    assert rows["what else to know"] == HOSTILE


def test_the_ledger_is_a_tuple_that_prints_as_the_ledger() -> None:
    results = judge({})
    ledger = Ledger(results)
    assert list(ledger) == list(results)
    assert repr(ledger) == ledger_text(results)
    assert isinstance(ledger[:3], Ledger) and len(ledger[:3]) == 3
    assert ledger[0] is results[0]
    assert [found.id for found in ledger.rows(11, 5)] == [5, 11]
    page = parsed(ledger)
    assert [row[0] for row in page.rows[1:]] == [str(found.id) for found in results]
    assert all(row[-1] == "NOT RUN" for row in page.rows[1:])


def test_texts_of_a_claim_are_inert_in_the_ledger() -> None:
    hostile = result(statement=HOSTILE, published=HOSTILE, null_name=HOSTILE, unit=HOSTILE)
    page = parsed(Ledger([replace(hostile, reason=HOSTILE)]))
    assert page.text.count(HOSTILE) == 5


def test_a_run_shows_stages_tables_and_verdicts(tmp_path: Path) -> None:
    manifest = {
        "name": HOSTILE,
        "models": {"base": {"source": "tales"}, "policy": {"source": "trained in this run"}},
        "preflight": [{"name": "final norm", "passed": False, "detail": ""}],
        "stages": {"capture": {"seconds": 2.04}, "tables/shifts": {"seconds": 60.0}},
    }
    claims = [{"verdict": "PARTIAL"}, {"verdict": "PARTIAL"}, {"verdict": HOSTILE}]
    (tmp_path / "claims.json").write_text(json.dumps(claims), "utf-8")
    page = parsed(run_html(manifest, tmp_path))
    rows = {row[0]: row[1] for row in page.rows}
    assert rows["base"] == "tales"
    assert rows["tables"] == "shifts"
    assert rows["base and policy differ in"] == "final norm"
    assert rows["verdicts"] == f"PARTIAL 2 {HOSTILE} 1"
    assert rows["time"] == "62 s"
    assert ["capture", "2.0"] in page.rows
    assert parsed(run_html({"format": 1, "stages": {}}, tmp_path / "empty")).rows


def test_show_writes_text_where_there_is_no_kernel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(pd.DataFrame({"recovered": [0.5]}, index=["h"])) is None
    assert show(Ledger([result()])) is None
    page = tmp_path / "report.html"
    page.write_text("<p>report")
    assert show(page) == page
    printed = capsys.readouterr().out
    assert "recovered\nh        0.5" in printed
    assert "Shifts are parallel" in printed
    assert printed.endswith(f"{page}\n")


def test_show_displays_results_and_frames_pages_in_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    shown: list[Any] = []
    module = importlib.import_module("dsteer_tl.plots.show")
    monkeypatch.setattr(module, "in_kernel", lambda: True)
    monkeypatch.setattr(module, "_display", shown.append)
    ledger = Ledger([result()])
    page = tmp_path / "page.html"
    page.write_text("<script>parent.document.title = 'x'</script>")
    assert show(ledger) is None
    assert show(page) is None
    assert shown[0] is ledger
    frame = shown[1]._repr_html_()
    assert 'sandbox="allow-scripts"' in frame and "allow-same-origin" not in frame
    assert "<script>" not in frame


def test_show_says_what_it_needs(tmp_path: Path) -> None:
    import plotly.graph_objects as go

    with pytest.raises(ConfigurationError, match=r"show\(figure, 'name'\)"):
        show(go.Figure(), folder=tmp_path)
    with pytest.raises(RunError, match=r"cannot read the page .*missing\.html"):
        show(tmp_path / "missing.html")
