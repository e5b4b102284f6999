"""The report: one HTML file on a run, from its stored files alone, with no model and no network."""

from dsteer_tl.report.page import build_report, report_html
from dsteer_tl.report.source import StoredRun, read_run

__all__ = ["build_report", "report_html", "StoredRun", "read_run"]
