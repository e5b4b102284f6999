"""Several runs side by side, from their stored files alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dsteer_tl.errors import ConfigurationError, RunError
from dsteer_tl.files import read_json
from dsteer_tl.manifest import MANIFEST, MANIFEST_FORMAT

#: Settings that say what a run is called and what to expect of it, and decide no number.
_WORDS = ("name", "description", "expectation")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRow:
    """One row of a run's ledger, as `claims.json` has it."""

    id: int
    statement: str
    published: str
    verdict: str
    measured: float | None
    ci: tuple[float, float] | None
    null: float | None
    null_name: str
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """What is compared of one run.

    Attributes:
        label: Its name, or the name with the folder where several runs share it.
        folder: Where it lies.
        base, policy: Sources of the two models.
        n_layers: Layers of the models; None where nothing was captured.
        pairs, held_out: Preference pairs, and those held out; None where there are only prompts.
        rows: The ledger by number.
        settings: Settings by dotted name.
        versions: Versions of packages.
    """

    label: str
    folder: Path
    base: str
    policy: str
    n_layers: int | None
    pairs: int | None
    held_out: int | None
    rows: Mapping[int, ComparedRow]
    settings: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting or version in which runs differ, with its value in each, in their order."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: In the order given.
        rows: Number and statement of every row that some ledger has.
        settings: Settings that differ.
        versions: Package versions that differ.
        notes: What a reader must know of the runs.
    """

    runs: tuple[ComparedRun, ...]
    rows: tuple[tuple[int, str], ...]
    settings: tuple[Difference, ...]
    versions: tuple[Difference, ...]
    notes: tuple[str, ...]


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Read the ledgers, settings and versions of several runs; no model and no table is loaded.

    Raises:
        ConfigurationError: Fewer than two runs, or one twice.
        RunError: A folder is no run, or its manifest or ledger is missing or cannot be read.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise ConfigurationError(
            f"found {len(folders)} run directories, {', '.join(map(str, folders)) or 'none'}, "
            "expected at least two different ones: name each run once"
        )
    manifests = [_manifest(folder) for folder in folders]
    labels = _labels(
        [str(m.get("name") or f.name) for m, f in zip(manifests, folders, strict=True)], folders
    )
    runs = tuple(
        _read(folder, label, manifest)
        for folder, label, manifest in zip(folders, labels, manifests, strict=True)
    )
    statements: dict[int, str] = {}
    for run in runs:
        for row in run.rows.values():
            statements.setdefault(row.id, row.statement)
    return Comparison(
        runs=runs,
        rows=tuple(sorted(statements.items())),
        settings=_differences([run.settings for run in runs]),
        versions=_differences([run.versions for run in runs]),
        notes=tuple(_notes(runs, statements)),
    )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise RunError(f"{folder} is no run directory: it has no {MANIFEST}")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != MANIFEST_FORMAT:
        raise RunError(
            f"{path} is no manifest of format {MANIFEST_FORMAT}: it is of another version"
        )
    return content


def _labels(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """A name for each run; the folder with it, and in the end a number, where names are alike."""
    labels = list(names)
    for distinct in ([folder.resolve().name for folder in folders], range(1, len(names) + 1)):
        counts = Counter(labels)
        labels = [
            f"{label} ({more})" if counts[label] > 1 and str(more) != label else label
            for label, more in zip(labels, distinct, strict=True)
        ]
    return labels


def _read(folder: Path, label: str, manifest: Mapping[str, Any]) -> ComparedRun:
    models = manifest.get("models") or {}
    pairs, held_out = _count_pairs(folder / "preferences.jsonl")
    return ComparedRun(
        label=label,
        folder=folder,
        base=str((models.get("base") or {}).get("source", "not said")),
        policy=str((models.get("policy") or {}).get("source", "not said")),
        n_layers=_count_layers(folder / "capture" / "index.json"),
        pairs=pairs,
        held_out=held_out,
        rows=_ledger(folder / "claims.json"),
        settings=_settings(folder / "config.yaml"),
        versions={str(k): str(v) for k, v in (manifest.get("versions") or {}).items()},
    )


def _count_layers(path: Path) -> int | None:
    if not path.is_file():
        return None
    sites = read_json(path).get("sites") or ()
    return sum(str(site).startswith("resid_post.") for site in sites) or None


def _count_pairs(path: Path) -> tuple[int | None, int | None]:
    if not path.is_file():
        return None, None
    try:
        with path.open(encoding="utf-8") as file:
            splits = [json.loads(line).get("split") for line in file if line.strip()]
    except (ValueError, AttributeError) as error:
        raise RunError(f"{path} is no list of pairs ({error}): it was altered") from error
    return len(splits), sum(split == "held_out" for split in splits)


def _ledger(path: Path) -> dict[int, ComparedRow]:
    rows = read_json(path)
    try:
        return {row["id"]: _row(row) for row in rows}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RunError(
            f"{path} holds no ledger ({type(error).__name__} at {error}): dsteer figures writes it "
            "again"
        ) from error


def _row(row: Mapping[str, Any]) -> ComparedRow:
    def known(value: Any) -> float | None:
        return None if value is None else float(value)

    low, high = row["ci"] if row.get("ci") is not None else (None, None)
    return ComparedRow(
        id=int(row["id"]),
        statement=str(row["statement"]),
        published=str(row.get("published", "")),
        verdict=str(row["verdict"]),
        measured=known(row.get("measured")),
        ci=None if low is None or high is None else (float(low), float(high)),
        null=known(row.get("null")),
        null_name=str(row.get("null_name", "")),
        unit=str(row.get("unit", "")),
    )


def _settings(path: Path) -> dict[str, str]:
    """Settings by dotted name, a list as one value; none where the file is missing."""
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not YAML ({error}): it was altered") from error
    found: dict[str, str] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else str(key))
        elif name.partition(".")[0] not in _WORDS:
            found[name] = json.dumps(value, ensure_ascii=False, default=str)

    walk(content, "")
    return found


def _differences(tables: Sequence[Mapping[str, str]]) -> tuple[Difference, ...]:
    names = dict.fromkeys(name for table in tables for name in table)
    return tuple(
        Difference(name=name, values=values)
        for name in names
        if len(set(values := tuple(table.get(name, "–") for table in tables))) > 1
    )


def _notes(runs: Sequence[ComparedRun], statements: Mapping[int, str]) -> list[str]:
    notes = []
    for run in runs:
        if missing := sorted(statements.keys() - run.rows.keys()):
            notes.append(
                f"the ledger of {run.label} has no row {', '.join(map(str, missing))}: another "
                "version judged it; dsteer figures judges it again"
            )
        if not run.settings:
            notes.append(f"{run.label} has no config.yaml: its settings are not compared")
    for key, statement in sorted(statements.items()):
        if {run.rows[key].statement for run in runs if key in run.rows} != {statement}:
            notes.append(f"row {key} is worded differently in the ledgers of these runs")
    packages = {run.versions.get("dsteer-tl", "–") for run in runs}
    if len(packages) > 1:
        notes.append(
            "the runs come from different versions of dsteer-tl: a row may be measured differently"
        )
    return notes


def comparison_table(comparison: Comparison) -> pd.DataFrame:
    """One row a run and row of its ledger: run, id, statement, measured, ci_low, …, verdict."""
    columns = ("run", "id", "statement", "measured", "ci_low", "ci_high", "null", "verdict")
    rows = [
        (
            run.label,
            row.id,
            row.statement,
            row.measured,
            *(row.ci or (None, None)),
            row.null,
            row.verdict,
        )
        for key, _ in comparison.rows
        for run in comparison.runs
        if (row := run.rows.get(key)) is not None
    ]
    table = pd.DataFrame(rows, columns=list(columns))
    return table.astype(dict.fromkeys(("measured", "ci_low", "ci_high", "null"), "float64"))
