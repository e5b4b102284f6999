"""The report: one HTML file on a run, from its stored files alone, with no model and no network.

The names below are loaded when first used, so that verifying or comparing runs does not import the
page.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsteer_tl.report.page import build_report, report_html
    from dsteer_tl.report.source import StoredRun, read_run

#: Public name → module.
_EXPORTS = {
    "build_report": "dsteer_tl.report.page",
    "report_html": "dsteer_tl.report.page",
    "StoredRun": "dsteer_tl.report.source",
    "read_run": "dsteer_tl.report.source",
}

__all__ = ["build_report", "report_html", "StoredRun", "read_run"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dsteer_tl.report' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
