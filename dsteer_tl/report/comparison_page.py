"""A comparison of runs for people: in a terminal, in Markdown, and as a page without scripts."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2

from dsteer_tl.claims.text import measured_text, number
from dsteer_tl.files import replacing
from dsteer_tl.report.comparison import (
    ComparedRow,
    ComparedRun,
    Comparison,
    Difference,
)
from dsteer_tl.report.security import digest, whole
from dsteer_tl.report.verdict_words import look_of

_NO_ROW = "no such row"
_TEMPLATE = "comparison.html.j2"


def comparison_text(comparison: Comparison, width: int | None = None) -> str:
    """Tables for the terminal: what the runs are, their ledgers, and where their settings differ.

    Args:
        comparison: The runs.
        width: Characters a line; by default the terminal's. Columns never get too narrow to read,
            so that many runs need a wide terminal, Markdown or the page.
    """
    runs = comparison.runs
    width = width or max(80, shutil.get_terminal_size((110, 24)).columns)
    each = max(22, min(34, (width - 36) // len(runs) - 2))
    first = max(24, min(48, width - len(runs) * (each + 2)))
    widths = (first, *([each] * len(runs)))
    lines = _block(("", *(run.label for run in runs)), widths)
    lines.append("  ".join("─" * w for w in widths))
    for name, values in _facts(comparison):
        lines += _block((name, *values), widths)
    lines.append("")
    for key, statement in comparison.rows:
        cells = [_terminal_cell(run.rows.get(key)) for run in runs]
        lines += _block((f"{key}. {statement}", *cells), widths)
        lines.append("")
    for title, differences in _sections(comparison):
        lines.append(title if differences else f"{title}: none")
        for item in differences:
            lines += _block((f"  {item.name}", *item.values), widths)
        lines.append("")
    lines += [f"note: {_printable(note)}" for note in comparison.notes]
    return "\n".join(line.rstrip() for line in lines).rstrip()


def comparison_markdown(comparison: Comparison) -> str:
    """The same as Markdown tables."""
    labels = [run.label for run in comparison.runs]
    parts = [_markdown(["", *labels], [[name, *values] for name, values in _facts(comparison)])]
    rows = [
        [str(key), statement, *(_markdown_cell(run.rows.get(key)) for run in comparison.runs)]
        for key, statement in comparison.rows
    ]
    parts.append(_markdown(["#", "claim", *labels], rows))
    for title, differences in _sections(comparison):
        if differences:
            lines = [[item.name, *item.values] for item in differences]
            parts.append(f"{title}:\n\n" + _markdown(["", *labels], lines))
        else:
            parts.append(f"{title}: none.")
    if comparison.notes:
        parts.append("\n".join(f"- {_markdown_text(note)}" for note in comparison.notes))
    return "\n\n".join(parts) + "\n"


def comparison_html(comparison: Comparison) -> str:
    """The same as one page that needs nothing but itself.

    It has no script, and its policy forbids every script, every request and every style but its
    own, by digest.
    """
    loader = jinja2.PackageLoader("dsteer_tl", "assets/report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    template = environment.get_template(_TEMPLATE)
    style = "".join(template.blocks["style"](template.new_context()))
    policy = (
        f"default-src 'none'; style-src {digest(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    rows = [
        {
            "id": key,
            "statement": statement,
            "published": next(r.rows[key].published for r in comparison.runs if key in r.rows),
            "cells": [_page_cell(run.rows.get(key)) for run in comparison.runs],
        }
        for key, statement in comparison.rows
    ]
    page = template.render(
        policy=policy,
        labels=[run.label for run in comparison.runs],
        facts=_facts(comparison),
        rows=rows,
        sections=_sections(comparison),
        notes=comparison.notes,
    )
    return whole(page)


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page, atomically.

    Raises:
        RunError: The file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(comparison_html(comparison), encoding="utf-8")
    return path


def _facts(comparison: Comparison) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What each run is: base, policy, layers, pairs; one entry a fact, with a value a run."""

    def pairs(run: ComparedRun) -> str:
        if run.pairs is None:
            return "prompts only"
        return f"{run.pairs:,}, {run.held_out:,} held out"

    runs = comparison.runs
    return (
        ("folder", tuple(run.folder.as_posix() for run in runs)),
        ("base", tuple(run.base for run in runs)),
        ("policy", tuple(run.policy for run in runs)),
        ("layers", tuple("–" if run.n_layers is None else str(run.n_layers) for run in runs)),
        ("preference pairs", tuple(map(pairs, runs))),
    )


def _sections(comparison: Comparison) -> tuple[tuple[str, tuple[Difference, ...]], ...]:
    return (
        ("Settings that differ", comparison.settings),
        ("Package versions that differ", comparison.versions),
    )


def _terminal_cell(row: ComparedRow | None) -> str:
    if row is None:
        return _NO_ROW
    if row.measured is None:
        return row.verdict
    return f"{row.verdict}\n{measured_text(row.measured, row.ci)}\nnull {number(row.null)}"


def _block(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Cells side by side, each wrapped in its column."""
    wrapped = [
        [
            line
            for part in cell.split("\n")
            for line in textwrap.wrap(_printable(part), width, subsequent_indent=_indent(part))
            or [""]
        ]
        for cell, width in zip(cells, widths, strict=True)
    ]
    return [
        "  ".join(
            (lines[place] if place < len(lines) else "").ljust(width)
            for lines, width in zip(wrapped, widths, strict=True)
        )
        for place in range(max(map(len, wrapped)))
    ]


def _indent(text: str) -> str:
    return " " * (len(text) - len(text.lstrip(" ")))


def _printable(text: str) -> str:
    """Without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [[_markdown_text(head) for head in heads]]
    lines.append(["---"] * len(lines[0]))
    lines += [[_markdown_text(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown_text(text: str) -> str:
    """Text that ends neither its cell nor its line, and is no markup of a page."""
    plain = whole(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(plain.split())


def _markdown_cell(row: ComparedRow | None) -> str:
    if row is None:
        return _NO_ROW
    if row.measured is None:
        return row.verdict
    return f"{row.verdict}: {measured_text(row.measured, row.ci)}; null {number(row.null)}"


def _page_cell(row: ComparedRow | None) -> dict[str, str] | None:
    """What the page shows of a row; None where the ledger has none."""
    if row is None:
        return None
    verdict = look_of(row.verdict)
    measured = row.measured is not None
    return {
        "word": verdict.word,
        "key": verdict.key,
        "mark": verdict.mark,
        "measured": measured_text(row.measured, row.ci) if measured else "",
        "unit": row.unit if measured else "",
        "null": number(row.null) if measured else "",
        "null_name": row.null_name if measured else "",
    }
