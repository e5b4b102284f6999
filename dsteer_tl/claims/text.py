"""The ledger for people: in a terminal and in Markdown."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from dsteer_tl.claims.verdicts import ClaimResult


def number(value: float | None) -> str:
    """Three significant digits, without exponents where they are not needed."""
    if value is None:
        return "–"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def measured_text(value: float | None, ci: tuple[float, float] | None) -> str:
    """A measured value with its interval, as "0.69 [0.68, 0.7]"; a dash where there is none."""
    if value is None or ci is None:
        return number(value)
    return f"{number(value)} [{number(ci[0])}, {number(ci[1])}]"


def ledger_text(results: Sequence[ClaimResult], width: int | None = None) -> str:
    """A table for the terminal: published · measured (95 % CI) · null · verdict."""
    width = width or max(80, shutil.get_terminal_size((110, 24)).columns)
    statement_width = max(24, min(58, width - 70))
    heads = ("#", "claim", "published", "measured (95 % CI)", "null", "verdict")
    widths = (3, statement_width, 20, 24, 8, 10)
    lines = [_row(heads, widths), _row(["─" * w for w in widths], widths)]
    for result in results:
        wrapped = textwrap.wrap(result.statement, statement_width) or [""]
        published = textwrap.wrap(result.published, widths[2]) or [""]
        cells = (
            str(result.id),
            wrapped[0],
            published[0],
            measured_text(result.measured, result.ci),
            number(result.null),
            result.verdict.value,
        )
        lines.append(_row(cells, widths))
        rest = max(len(wrapped), len(published))
        for index in range(1, rest):
            lines.append(
                _row(
                    (
                        "",
                        wrapped[index] if index < len(wrapped) else "",
                        published[index] if index < len(published) else "",
                        "",
                        "",
                        "",
                    ),
                    widths,
                )
            )
        detail = "; ".join(part for part in (result.unit, result.reason) if part)
        if detail:
            lines += textwrap.wrap(
                detail, width - 6, initial_indent="    ", subsequent_indent="    "
            )
    return "\n".join(line.rstrip() for line in lines)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))


def ledger_markdown(results: Sequence[ClaimResult], *, reasons: bool = True) -> str:
    """The ledger as a Markdown table, for READMEs and notes.

    Args:
        results: Rows.
        reasons: With a last column of what else a reader must know; without it, what NOT RUN rows
            lack is not said.
    """
    heads = ["#", "claim", "published", "measured (95 % CI)", "null", "verdict"]
    heads += ["what else to know"] if reasons else []
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for result in results:
        null = number(result.null)
        if result.null_name:
            null += f" ({result.null_name})"
        unit = f" {result.unit}" if result.unit else ""
        cells = [
            str(result.id),
            result.statement,
            result.published,
            measured_text(result.measured, result.ci) + unit,
            null,
            f"**{result.verdict.value}**",
        ]
        cells += [result.reason] if reasons else []
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
