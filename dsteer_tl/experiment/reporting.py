"""The last stage of a run: one page over everything that it has stored."""

from __future__ import annotations

from dsteer_tl.experiment.run_directory import RunDirectory, StageReport
from dsteer_tl.report import build_report

REPORT = "report"
#: Bumped when the page is written differently, so that finished runs write it again.
_FORMAT = 1


def report_stage(directory: RunDirectory) -> StageReport:
    """Write ``report.html`` unless it is up to date; no model is loaded.

    Raises:
        RunError: A stored file was altered or cut short.
    """
    manifest = directory.manifest
    outputs = {
        name: entry["outputs"] for name, entry in manifest["stages"].items() if name != REPORT
    }
    inputs = [_FORMAT, outputs, manifest.get("config")]
    return directory.stage(REPORT, inputs, lambda: [build_report(directory.path)])
