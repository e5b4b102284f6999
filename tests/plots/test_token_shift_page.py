"""The page of token shifts: what it shows, and that tokens stay text in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from test_text_browser import HOSTILE, needs_browser, open_page, parsed

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.token_shift_page import token_shift_page, write_token_shift_page

INJECTED = "<img src=x onerror=document.title='owned'>"
# A table holds no half of a surrogate pair.
HOSTILE_TOKENS = (*HOSTILE[:-1], INJECTED)


def shift_rows(
    pairs: int = 14, tokens: tuple[str, ...] = (" so", " happy", "."), prompt: str = "She was"
) -> pd.DataFrame:
    rows = [
        {
            "pair": pair,
            "prompt": pair,
            "prompt_text": f"\n{prompt} {pair}",
            "offset": offset,
            "token_id": offset,
            "token": token,
            "along": 2.0 + 0.5 * ((offset + pair) % 3 - 1),
            "off": 1.0,
            "cos": 0.8,
            "cos_random": 0.06,
            "log_probability_change": 0.1 * (offset - 1),
        }
        for pair in range(pairs)
        for offset, token in enumerate(tokens)
    ]
    return pd.DataFrame(rows)


def test_each_response_is_coloured_by_its_shift_and_its_change() -> None:
    table = shift_rows()
    page = parsed(token_shift_page(table).html)
    cells = [json.loads(data) for data in page.data]
    assert len(cells) == 24
    assert page.count("article") == 12
    centre = table["along"].mean()
    for pair in range(12):
        rows = table[table["pair"] == pair]
        along, change = cells[2 * pair : 2 * pair + 2]
        assert along["tokens"] == change["tokens"] == [" so", " happy", "."]
        assert along["values"] == pytest.approx([v - centre for v in rows["along"]], abs=1e-3)
        assert change["values"] == pytest.approx(list(rows["log_probability_change"]), abs=1e-3)
        assert f"She was {pair}" in page.text
    assert {cell["maxValue"] for cell in cells[::2]} == {0.5}
    assert {cell["maxValue"] for cell in cells[1::2]} == {0.1}
    assert "the first 12 of 14 chosen responses" in page.text
    assert page.text.count("mean cosine with v* 0.80 (random direction 0.06)") == 12
    elements = [found["id"] for _, found in page.tags if found.get("id")]
    assert len(set(elements)) == len(elements) == 24


def test_rows_may_come_in_any_order_and_fewer_may_be_shown() -> None:
    table = shift_rows()
    mixed = table.sample(frac=1.0, random_state=0)
    assert token_shift_page(mixed).html == token_shift_page(table).html
    assert parsed(token_shift_page(table, responses=2).html).count("article") == 2


def test_hostile_text_is_no_markup_even_without_scripts() -> None:
    bad = "".join(HOSTILE_TOKENS)
    page_html = token_shift_page(shift_rows(2, HOSTILE_TOKENS, bad)).html
    page = parsed(page_html)
    policy = next(found["content"] for tag, found in page.tags if "http-equiv" in found)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; script-src 'sha256-")
    assert "unsafe" not in policy
    assert page.count("img") == page.count("svg") == page.count("iframe") == 0
    for _, attributes in page.tags:
        assert not {"src", "onerror", "onload", "onclick", "style"} & set(attributes)
        assert (attributes.get("href") or "data:").startswith("data:")
    assert bad in page.text
    for tag in ("div", "article", "script", "small"):
        assert page.count(tag) == page_html.count(f"</{tag}>")


@needs_browser
def test_an_injected_token_stays_inert_in_a_browser(tmp_path: Path) -> None:
    table = shift_rows(2, (" so", *HOSTILE_TOKENS), "".join(HOSTILE_TOKENS))
    path = write_token_shift_page(table, tmp_path / "deep" / "page.html")
    assert path == tmp_path / "deep" / "page.html"
    page, console = open_page(path, tmp_path / "profile")
    # The page's policy forbids every request, so one that is tried would be named here.
    assert console == []
    assert page.title == "Where a response moves along v*"
    for tag in ("img", "svg", "iframe", "base", "form"):
        assert page.count(tag) == 0
    assert page.count("h1") == 1
    assert page.drawn() == 4
    # CircuitsVis makes every blank a non-breaking one.
    assert page.text.replace("\u00a0", " ").count("<\u200bimg src=x onerror=") >= 4


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (shift_rows().drop(columns="prompt_text"), "missing prompt_text"),
        (shift_rows().iloc[:0], "has 0 rows"),
    ],
)
def test_wrong_tables_are_refused(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        token_shift_page(table)


def test_no_response_is_refused() -> None:
    with pytest.raises(ShapeError, match="found 0 responses, expected at least 1"):
        token_shift_page(shift_rows(), responses=0)
