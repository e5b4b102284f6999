"""The page of value vectors: what it shows, and that tokens stay text in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from test_text_browser import HOSTILE, Page, needs_browser, open_page, parsed

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.value_vector_page import value_vector_page, write_value_vector_page

VECTORS = (
    ("probe", "probe", 1.0),
    ("MLP.v[1,7]", "value_vector", 0.32),
    ("SVD.U[0]", "svd", 0.74),
    ("random_value_vector", "random", 0.02),
    ("random", "random", -0.11),
)
INJECTED = "<img src=x onerror=document.title='owned'>"
# A table holds no half of a surrogate pair.
HOSTILE_TOKENS = (*HOSTILE[:-1], INJECTED)


def token_rows(tokens: tuple[str, ...] = (" hurt", " sad", "ing", "!")) -> pd.DataFrame:
    rows = []
    for name, kind, cosine in VECTORS:
        for effect, sign in (("promoted", 1), ("suppressed", -1)):
            for rank, token in enumerate(tokens, start=1):
                rows.append(
                    {
                        "vector": name,
                        "kind": kind,
                        "effect": effect,
                        "rank": rank,
                        "token_id": rank,
                        "token": token,
                        "value": sign * (1 - 0.2 * (rank - 1) / len(tokens)),
                        "listed": effect == "promoted" and token.strip() in ("hurt", "sad"),
                        "cosine": cosine,
                        "layer": 1 if kind == "value_vector" else -1,
                        "neuron": 7 if kind == "value_vector" else -1,
                    }
                )
    return pd.DataFrame(rows)


def classes(page: Page, name: str) -> int:
    return sum(name in (found.get("class") or "").split() for _, found in page.tags)


def test_every_vector_has_its_tokens_values_and_frames() -> None:
    table = token_rows()
    page = parsed(value_vector_page(table).html)
    cells = [json.loads(data) for data in page.data]
    assert [cell["tokens"] for cell in cells[:8]] == [["␣hurt"], ["␣sad"], ["ing"], ["!"]] * 2
    assert [cell["values"] for cell in cells] == [[round(v, 3)] for v in table["value"]]
    assert {cell["maxValue"] for cell in cells} == {1.0}
    assert {cell["minValue"] for cell in cells} == {-1.0}
    elements = [found["id"] for _, found in page.tags if found.get("id")]
    assert len(set(elements)) == len(elements) == len(table)
    assert classes(page, "chip") == len(table)
    # One more in the legend.
    assert classes(page, "listed") == int(table["listed"].sum()) + 1 == 11
    assert page.text.count("2 of 4 listed; +1.00 to +0.85") == len(VECTORS)
    assert page.text.count("0 of 4 listed; −1.00 to −0.85") == len(VECTORS)
    for shown in ("probe", "MLP.v[1,7]", "SVD.U[0]", "random value vector", "random direction"):
        assert shown in page.text
    assert "cosine with the probe −0.11" in page.text
    rows = [found.get("class") for tag, found in page.tags if tag == "tr"]
    assert rows == [None, "probe", "value_vector first", "svd first", "random first", "random"]


def test_rows_may_come_in_any_order_and_ranks_decide() -> None:
    table = token_rows()
    mixed = table.iloc[::-1].sort_values("vector", key=lambda names: names != "probe")
    page = parsed(value_vector_page(mixed).html)
    cells = [json.loads(data)["tokens"] for data in page.data]
    assert cells[:4] == [["␣hurt"], ["␣sad"], ["ing"], ["!"]]


def test_one_scale_for_all_vectors() -> None:
    table = token_rows()
    table.loc[table["vector"] == "random", "value"] *= 0.1
    page = parsed(value_vector_page(table).html)
    assert {json.loads(data)["maxValue"] for data in page.data} == {1.0}


def test_hostile_text_is_no_markup_even_without_scripts() -> None:
    table, bad = token_rows(HOSTILE_TOKENS), "".join(HOSTILE_TOKENS)
    table = pd.concat([table, table[table["vector"] == "random"].assign(vector=bad, kind=bad)])
    page_html = value_vector_page(table).html
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
    assert classes(page, "other") == 1
    for tag in ("div", "table", "td", "tr", "th", "script"):
        assert page.count(tag) == page_html.count(f"</{tag}>")


@needs_browser
def test_an_injected_token_stays_inert_in_a_browser(tmp_path: Path) -> None:
    table, bad = token_rows((" hurt", *HOSTILE_TOKENS)), "".join(HOSTILE_TOKENS)
    table = pd.concat([table, table[table["vector"] == "random"].assign(vector=bad, kind=bad)])
    path = write_value_vector_page(table, tmp_path / "deep" / "page.html")
    assert path == tmp_path / "deep" / "page.html"
    page, console = open_page(path, tmp_path / "profile")
    # The page's policy forbids every request, so one that is tried would be named here.
    assert console == []
    assert page.title == "What value vectors say"
    for tag in ("img", "svg", "iframe", "base", "form"):
        assert page.count(tag) == 0
    assert page.count("h1") == 1
    assert page.drawn() == len(table)
    assert page.text.count("<\u200bimg␣src=x␣onerror=") >= 2 * len(VECTORS)
    # What has a sign and a size has its colour; React sets it, which the policy allows.
    styles = [found.get("style") or "" for tag, found in page.tags if tag == "span"]
    colours = [m.group(1) for s in styles if (m := re.search(r"background-color: ([^;]+)", s))]
    assert len(colours) == len(table)
    assert colours[0] == "rgb(0, 114, 178)"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (token_rows().drop(columns="listed"), "missing listed"),
        (token_rows().iloc[:0], "has 0 rows"),
        (token_rows().assign(effect="raised"), "has effects raised; expected promoted or"),
    ],
)
def test_wrong_tables_are_refused(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        value_vector_page(table)


def test_a_vector_without_one_of_the_effects_says_so() -> None:
    table = token_rows()
    table = table[(table["vector"] != "random") | (table["effect"] == "promoted")]
    page = parsed(value_vector_page(table).html)
    assert page.text.count("not in the table") == 1


def test_parquet_gives_the_same_page(tmp_path: Path) -> None:
    table = token_rows()
    table.to_parquet(tmp_path / "tokens.parquet")
    again = pd.read_parquet(tmp_path / "tokens.parquet")
    assert value_vector_page(again).html == value_vector_page(table).html
