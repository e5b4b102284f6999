"""What the report reads: the stored files of one run directory, checked against its manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from dsteer_tl.claims.verdicts import ClaimResult, Verdict
from dsteer_tl.errors import RunError
from dsteer_tl.files import hash_file, read_json
from dsteer_tl.manifest import MANIFEST, MANIFEST_FORMAT
from dsteer_tl.report.stored_figures import StoredFigure, read_figure

_REQUIRED = ("id", "statement", "source", "published", "target", "verdict")
_TEXTS = ("statement", "source", "published", "target", "null_name", "unit", "reason", "figure")
_RESTORE = "restore the file, or run the command that made it again"
_REDRAW = "run dsteer figures on this directory, or restore the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """Everything a report shows.

    Attributes:
        name: Name of the run.
        claims: Rows of the ledger, in its order.
        manifest: Hashes, versions, seeds, hardware and seconds, as the run wrote them.
        configuration: Text of ``config.yaml``; empty where it is missing.
        tables: Tables by name.
        figures: Figures by name.
        dropped: Content of ``preferences.dropped.json``, or None.
        text_browser: Whether ``figures/text_browser.html`` is there to be linked.
        notes: Sentences on what is missing or was left out.
    """

    name: str
    claims: tuple[ClaimResult, ...]
    manifest: Mapping[str, Any]
    configuration: str
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, StoredFigure]
    dropped: Mapping[str, Any] | None
    text_browser: bool
    notes: tuple[str, ...]


def read_run(folder: Path) -> StoredRun:
    """Read the stored files of a run directory.

    A file that the manifest lists must have the content that the manifest says. Of the figures only
    those of the last drawing are read, where the manifest says which these are.

    Raises:
        RunError: The folder is no run directory, or a file was altered or cut short.
    """
    manifest = _manifest(folder)
    hashes = {
        name: digest
        for entry in manifest["stages"].values()
        for name, digest in entry["outputs"].items()
    }
    claims = _claims(_checked(folder / "claims.json", folder, hashes))
    notes: list[str] = []
    tables = _tables(folder, hashes)
    if not tables:
        notes.append("There are no tables (tables/*.parquet), so that captions lack their n.")
    configuration = ""
    if (folder / "config.yaml").is_file():
        configuration = _text(_checked(folder / "config.yaml", folder, hashes))
    else:
        notes.append("The configuration (config.yaml) is missing.")
    drawn = manifest["stages"].get("figures")
    figures = _figures(folder, hashes, None if drawn is None else set(drawn["outputs"]), notes)
    dropped = folder / "preferences.dropped.json"
    found = read_json(_checked(dropped, folder, hashes)) if dropped.is_file() else None
    return StoredRun(
        name=str(manifest.get("name") or folder.resolve().name),
        claims=claims,
        manifest=manifest,
        configuration=configuration,
        tables=tables,
        figures=figures,
        dropped=found if isinstance(found, dict) else None,
        text_browser=(folder / "figures" / "text_browser.html").is_file(),
        notes=tuple(notes),
    )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise RunError(
            f"{folder} is no run directory: it has no {MANIFEST}; give the directory that "
            "dsteer reproduce or dsteer analyze wrote"
        )
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != MANIFEST_FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise RunError(
            f"{path} has format {found!r}, expected {MANIFEST_FORMAT}: it was altered, or written "
            "by another version"
        )
    stages = content.get("stages")
    if not isinstance(stages, dict) or not all(
        isinstance(entry, dict)
        and isinstance(entry.get("outputs"), dict)
        and isinstance(entry.get("seconds"), int | float)
        for entry in stages.values()
    ):
        raise RunError(f"{path} has no stages with outputs and seconds: it was altered")
    return content


def _checked(path: Path, folder: Path, hashes: Mapping[str, str]) -> Path:
    """The path, whose content is what the manifest says, where it says anything."""
    name = path.relative_to(folder).as_posix()
    expected = hashes.get(name)
    if expected is not None and path.is_file() and hash_file(path) != expected:
        raise RunError(
            f"{path} does not have the content that {MANIFEST} says: it was altered after the "
            f"run wrote it; {_RESTORE}"
        )
    return path


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}): it was altered or cut short") from error


def _claims(path: Path) -> tuple[ClaimResult, ...]:
    if not path.is_file():
        raise RunError(f"{path} is missing: the run is incomplete; {_REDRAW}")
    content = read_json(path)
    if not isinstance(content, list):
        raise RunError(
            f"{path} holds a {type(content).__name__}, expected a list of claims: it was altered; "
            f"{_REDRAW}"
        )
    results = tuple(_claim(row, place, path) for place, row in enumerate(content))
    if len({result.id for result in results}) != len(results):
        raise RunError(f"{path} has two claims with one id: it was altered; {_REDRAW}")
    return results


def _claim(row: object, place: int, path: Path) -> ClaimResult:
    def wrong(what: str) -> RunError:
        return RunError(f"{path}, claim {place}: {what}: it was altered; {_REDRAW}")

    if not isinstance(row, dict):
        raise wrong(f"found a {type(row).__name__}, expected an object")
    missing = [name for name in _REQUIRED if name not in row]
    if missing:
        raise wrong(f"missing {', '.join(missing)}")
    known = {field.name for field in fields(ClaimResult)}
    content = {name: value for name, value in row.items() if name in known}
    if not isinstance(content["id"], int) or isinstance(content["id"], bool):
        raise wrong(f"id {content['id']!r}, expected a whole number")
    for name in _TEXTS:
        if not isinstance(content.get(name, ""), str):
            raise wrong(f"{name} is {content[name]!r}, expected text")
    try:
        content["verdict"] = Verdict(content["verdict"])
    except ValueError:
        words = ", ".join(verdict.value for verdict in Verdict)
        raise wrong(f"verdict {content['verdict']!r}, expected one of {words}") from None
    for name in ("measured", "null"):
        if content.get(name) is not None:
            content[name] = _number(content[name], name, wrong)
    if content.get("ci") is not None:
        ends = content["ci"]
        if not isinstance(ends, list) or len(ends) != 2:
            raise wrong(f"ci {ends!r}, expected two numbers")
        content["ci"] = tuple(_number(end, "ci", wrong) for end in ends)
    return ClaimResult(**content)


def _number(value: object, name: str, wrong: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong(f"{name} {value!r}, expected a number")
    return float(value)


def _tables(folder: Path, hashes: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    tables = {}
    for path in sorted(folder.glob("tables/*.parquet")):
        try:
            tables[path.stem] = pd.read_parquet(_checked(path, folder, hashes))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path} cannot be read ({error}): it was altered or cut short; {_RESTORE}"
            ) from error
    return tables


def _figures(
    folder: Path, hashes: Mapping[str, str], drawn: set[str] | None, notes: list[str]
) -> dict[str, StoredFigure]:
    """Figures of the last drawing; without a record of one, all that are there."""
    figures: dict[str, StoredFigure] = {}
    older: list[str] = []
    for path in sorted(folder.glob("figures/*.json")):
        if drawn is not None and f"figures/{path.name}" not in drawn:
            older.append(path.stem)
            continue
        image = path.with_suffix(".png")
        shown = image.is_file() and (drawn is None or f"figures/{image.name}" in drawn)
        figures[path.stem] = read_figure(
            _checked(path, folder, hashes),
            _checked(image, folder, hashes) if shown else None,
        )
    if drawn is not None:
        lost = sorted(
            name for name in drawn if name.endswith(".json") and not (folder / name).is_file()
        )
        if lost:
            raise RunError(f"{folder / lost[0]} is missing: the run is incomplete; {_REDRAW}")
    if not figures:
        notes.append("There are no figures (figures/*.json).")
    if older:
        notes.append(
            f"Not of this run’s last drawing, and so left out, are the figures: {', '.join(older)}."
        )
    bare = [name for name, figure in figures.items() if figure.png is None]
    if bare:
        notes.append(
            f"{len(bare)} of {len(figures)} figures have no image for paper, as no PNG of this "
            f"drawing is stored or it is too large: {', '.join(bare)}."
        )
    return figures
