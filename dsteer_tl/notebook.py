"""What results look like in Jupyter: small tables of escaped text, without scripts or requests.

Colours are the notebook's own, or transparent, so that light and dark themes both work.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsteer_tl.files import read_json

#: Characters of one cell; what is cut is marked.
CELL_LIMIT = 320

_LINE = "1px solid rgba(128,128,128,.35)"
_TABLE = "border-collapse:collapse;margin:4px 0"
_CELL = "text-align:left;vertical-align:top;padding:2px 10px 2px 0;background:transparent"
_WRAP = "max-width:56ch;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate"
#: Characters up to which a cell is one line, and above which it gets room.
_SHORT, _LONG = 14, 40
_TAG = re.compile(r"<[^>]*>")
#: Ground of a verdict, transparent enough for text of any theme.
_GROUNDS = {
    "REPLICATED": "rgba(0,158,115,.3)",
    "PARTIAL": "rgba(230,159,0,.3)",
    "FAILED": "rgba(213,94,0,.35)",
    "TRIVIAL": "rgba(204,121,167,.35)",
    "not passed": "rgba(230,159,0,.3)",
}
_OTHER_GROUND = "rgba(128,128,128,.25)"


class Markup(str):
    """HTML that was made here and is not escaped again."""

    __slots__ = ()


def escaped(value: object, limit: int = CELL_LIMIT) -> Markup:
    """Text for a page: escaped, and cut at ``limit`` characters. `Markup` stays as it is."""
    if isinstance(value, Markup):
        return value
    text = str(value)
    if len(text) > limit:
        text = f"{text[:limit]} … ({len(text):,} characters)"
    return Markup(html.escape(text))


def badge(word: str) -> Markup:
    """A verdict, or another word, on a coloured ground."""
    ground = _GROUNDS.get(word, _OTHER_GROUND)
    style = f"background:{ground};border-radius:3px;padding:0 6px;white-space:nowrap"
    return Markup(f'<span style="{style}"><b>{escaped(word)}</b></span>')


def small(value: object) -> Markup:
    """Smaller and paler text."""
    return Markup(f'<span style="font-size:90%;opacity:.75">{escaped(value)}</span>')


def heading(title: str) -> Markup:
    """A title, or nothing where it is empty."""
    return Markup(f'<div style="font-weight:bold">{escaped(title)}</div>' if title else "")


def facts(title: str, rows: Mapping[str, object]) -> Markup:
    """A title, then one line a fact: its name and its value."""
    head = f'style="{_CELL};font-weight:normal;opacity:.75;white-space:nowrap"'
    lines = (
        f'<tr><th {head} scope="row">{escaped(name)}</th>'
        f'<td style="{_CELL};{_WRAP}">{escaped(value)}</td></tr>'
        for name, value in rows.items()
    )
    return Markup(f"{heading(title)}{_table(lines)}")


def grid(heads: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Markup:
    """A table with a head; texts wrap, numbers are given as text."""
    head = f'style="{_CELL};border-bottom:{_LINE};white-space:nowrap"'
    lines = ["<tr>" + "".join(f"<th {head}>{escaped(name)}</th>" for name in heads) + "</tr>"]
    for row in rows:
        cells = (f'<td style="{_CELL};{_fit(cell)}">{escaped(cell)}</td>' for cell in row)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return Markup(f"{heading(title)}{_table(lines)}")


def _fit(cell: object) -> str:
    """Short cells stay on one line, and long ones are not squeezed by their neighbours."""
    length = len(_TAG.sub("", str(cell)))
    if length <= _SHORT:
        return "white-space:nowrap"
    return f"{_WRAP};min-width:26ch" if length > _LONG else _WRAP


def folded(summary: str, content: Markup) -> Markup:
    """What opens at a click, without a script."""
    return Markup(f"<details><summary>{escaped(summary)}</summary>{content}</details>")


def stacked(*parts: str) -> str:
    """Parts one under another, as `_repr_html_` returns them; plain strings are escaped."""
    return "<div>" + "".join(escaped(part, limit=10_000) for part in parts) + "</div>"


def listed(items: Iterable[object], most: int = 12) -> str:
    """Items on one line; beyond ``most`` of them the first and the last, and how many there are."""
    found = [str(item) for item in items]
    if len(found) <= most:
        return ", ".join(found)
    return f"{', '.join(found[: most - 1])}, … {found[-1]} ({len(found)})"


def run_html(manifest: Mapping[str, Any], path: Path) -> str:
    """A run directory: where it is, what it compares, its stages, and the verdicts it reached.

    Args:
        manifest: Content of ``manifest.json``.
        path: Where the run lies; verdicts are those of its ``claims.json``, where there is one.

    Raises:
        RunError: ``claims.json`` is no JSON.
    """
    claims = read_json(path / "claims.json") if (path / "claims.json").is_file() else []
    verdicts = Counter(str(row["verdict"]) for row in claims)
    stages: Mapping[str, Any] = manifest.get("stages", {})
    models: Mapping[str, Any] = manifest.get("models", {})
    sources = {
        name: models[name].get("source", "") for name in ("base", "policy") if name in models
    }
    differing = [item["name"] for item in manifest.get("preflight", ()) if not item["passed"]]
    tables = [name.removeprefix("tables/") for name in stages if name.startswith("tables/")]
    rows: dict[str, object] = {
        **sources,
        "base and policy differ in": listed(differing) or "nothing but the blocks",
        "tables": listed(tables, most=40) or "none",
        "verdicts": Markup(" ".join(f"{badge(name)} {n}" for name, n in verdicts.items()))
        or "none",
        "time": f"{sum(stage['seconds'] for stage in stages.values()):,.0f} s",
    }
    seconds = grid(
        ["stage", "seconds"], [(name, f"{stage['seconds']:.1f}") for name, stage in stages.items()]
    )
    title = f"Run {manifest.get('name', '')} in {path}"
    return stacked(facts(title, rows), folded(f"{len(stages)} stages", seconds))


def _table(lines: Iterable[str]) -> str:
    return f'<table style="{_TABLE}">{"".join(lines)}</table>'
