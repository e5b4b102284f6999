"""Is a stored ledger what its tables give? Row by row, with the figures that it names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsteer_tl.errors import RunError
from dsteer_tl.files import read_json
from dsteer_tl.manifest import lies_inside

CLAIMS = "claims.json"
_NOT_RUN = "NOT RUN"
#: What a row says before anything is measured; where it differs, versions of the ledger do.
_CLAIM = ("statement", "source", "published", "target", "figure")
#: Numbers that are computed again on another machine differ in their last digits.
_TOLERANCE = 1e-6


def check_claims(
    folder: Path, expected: Sequence[Mapping[str, Any]] | None, *, drawn: bool
) -> tuple[list[str], list[str]]:
    """What speaks against the ledger, and what could not be asked of it.

    Args:
        folder: The run directory.
        expected: The ledger as judged on the stored tables, as in ``claims.json``; without it the
            ledger is not judged again.
        drawn: Whether the run has drawn its figures, so that those of the ledger must be there.

    Returns:
        Contradictions, and notes that are no fault.
    """
    if not (folder / CLAIMS).is_file():
        return [], [f"there is no {CLAIMS}: the run was not judged, so its ledger was not checked"]
    try:
        rows = _ledger(read_json(folder / CLAIMS))
    except RunError as error:
        return [str(error)], []
    against, notes = [], []
    if drawn:
        against += [
            f"row {number} of {CLAIMS} shows figure {row['figure']!r}, which is not there"
            for number, row in sorted(rows.items())
            if row.get("verdict") != _NOT_RUN and not _has_figure(folder, row.get("figure"))
        ]
    else:
        notes.append("figures were not drawn in this run, so that those of the ledger are missing")
    if expected is None:
        notes.append("the ledger was not judged again")
        return against, notes
    judged = _ledger([dict(row) for row in expected])
    for number in sorted(rows.keys() & judged.keys()):
        stored, found = rows[number], judged[number]
        if any(stored.get(name) != found.get(name) for name in _CLAIM):
            notes.append(f"row {number} of {CLAIMS} is of a ledger that puts the claim otherwise")
        elif fields := _differing(stored, found):
            against.append(f"row {number} of {CLAIMS} is not what its tables give: {fields}")
    for numbers, what in (
        (judged.keys() - rows.keys(), f"this version judges rows that {CLAIMS} lacks"),
        (rows.keys() - judged.keys(), f"{CLAIMS} has rows that this version does not know"),
    ):
        if numbers:
            notes.append(f"{what}: {', '.join(map(str, sorted(numbers)))}")
    return against, notes


def _has_figure(folder: Path, name: object) -> bool:
    """Whether a figure is there; a row without one needs none."""
    path = f"figures/{name}.json"
    return not name or (lies_inside(folder.resolve(), path) and (folder / path).is_file())


def _ledger(content: Any) -> dict[int, Mapping[str, Any]]:
    if not isinstance(content, list) or not all(
        isinstance(row, dict) and isinstance(row.get("id"), int) for row in content
    ):
        raise RunError(f"{CLAIMS} holds no list of rows with an id each: it was altered")
    return {row["id"]: row for row in content}


def _differing(stored: Mapping[str, Any], judged: Mapping[str, Any]) -> str:
    """Fields in which a row differs, with both values; empty where they agree."""
    return "; ".join(
        f"{name} is {_short(stored.get(name))}, expected {_short(value)}"
        for name, value in judged.items()
        if not _same(stored.get(name), value)
    )


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(map(_same, one, two))
    if isinstance(one, (int, float)) and isinstance(two, (int, float)):
        return math.isclose(one, two, rel_tol=_TOLERANCE, abs_tol=1e-12)
    return bool(one == two)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
