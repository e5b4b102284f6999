"""The report as one HTML page."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dsteer_tl.files import replacing
from dsteer_tl.report.answer import answer
from dsteer_tl.report.claims_table import claim_rows
from dsteer_tl.report.figure_section import figure_groups
from dsteer_tl.report.multiverse_section import multiverse_section
from dsteer_tl.report.provenance import provenance
from dsteer_tl.report.security import content_security_policy, script_text, whole
from dsteer_tl.report.source import StoredRun, read_run
from dsteer_tl.report.steered_text import steered_text
from dsteer_tl.report.stress_section import stress_tables
from dsteer_tl.report.verdict_cards import claim_cards, verdict_counts
from dsteer_tl.report.words import typeset

FILE = "report.html"
_ASSETS = Path(__file__).resolve().parent.parent / "assets" / "report"


def build_report(folder: Path | str) -> Path:
    """Write ``report.html`` of a run directory from its stored files alone.

    No model is loaded and nothing is asked of a network. The same files give the same report.

    Args:
        folder: A run directory: ``manifest.json`` and ``claims.json``, and as far as they are there
            ``config.yaml``, ``preferences.dropped.json``, ``tables/*.parquet`` and
            ``figures/*.json`` with their PNG.

    Returns:
        The file.

    Raises:
        RunError: The folder is no run directory, a file was altered or cut short, or the report
            cannot be written; an older report is still there then.
    """
    folder = Path(folder)
    text = report_html(read_run(folder))
    path = folder / FILE
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def report_html(run: StoredRun) -> str:
    """The report of a run as one HTML file.

    Args:
        run: From `read_run`.

    Raises:
        RunError: A table of the run lacks columns.
    """
    figures = figure_groups(run.figures, run.tables, run.claims)
    scripts = [_script("before_plotly.js"), _plotly()] if figures else []
    scripts.append(_script("report.js"))
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            run=run,
            answer=answer(run.claims),
            counts=verdict_counts(run.claims),
            cards=claim_cards(run.claims),
            claims=claim_rows(run.claims, run.figures),
            multiverse=multiverse_section(run.tables, run.claims),
            groups=figures,
            steered=steered_text(run.tables),
            stress=stress_tables(run.tables, run.figures),
            provenance=provenance(run),
            policy=content_security_policy(scripts),
            scripts=[Markup(text) for text in scripts],
            style=Markup((_ASSETS / "report.css").read_text("utf-8")),
        )
    )


@cache
def _plotly() -> str:
    return script_text(get_plotlyjs())


def _script(name: str) -> str:
    return script_text((_ASSETS / name).read_text("utf-8"))


def _whole_text(value: object) -> object:
    """Plain text as a page can hold it; markup is made here and is left alone."""
    return whole(value) if type(value) is str else value


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_whole_text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["typeset"] = lambda text: typeset(whole(text))
    return environment
