"""Where the numbers come from: models, data, versions, seeds, hardware, hashes and seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsteer_tl.report.source import StoredRun


@dataclass(frozen=True, slots=True)
class Check:
    """One item of the preflight."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its seconds, and its outputs with their hashes."""

    name: str
    seconds: str
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The section.

    Attributes:
        facts: Headed lists of name and value: models, hardware, versions, seeds.
        preflight: Whether base and policy can be compared.
        stages, seconds: All stages but the report’s own, and the sum of their seconds.
        dropped: What was dropped from the preferences, in a sentence; "" if unknown.
        configuration: YAML.
    """

    facts: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    preflight: tuple[Check, ...]
    stages: tuple[Stage, ...]
    seconds: str
    dropped: str
    configuration: str


#: The stage that writes this page: with it, a report made again would not have the same bytes.
_OWN_STAGE = "report"

_HEADINGS = {
    "models": "Models",
    "hardware": "Hardware",
    "versions": "Versions",
    "seeds": "Seeds",
}


def provenance(run: StoredRun) -> Provenance:
    """Everything that the manifest, the configuration and the dropped rows say."""
    manifest = run.manifest
    entries = {name: entry for name, entry in manifest["stages"].items() if name != _OWN_STAGE}
    facts = tuple(
        (heading, tuple(_flat(manifest[key])))
        for key, heading in _HEADINGS.items()
        if isinstance(manifest.get(key), dict) and manifest[key]
    )
    stages = tuple(
        Stage(
            name,
            _seconds(float(entry["seconds"])),
            tuple((output, str(digest)) for output, digest in sorted(entry["outputs"].items())),
        )
        for name, entry in entries.items()
    )
    items = manifest.get("preflight")
    return Provenance(
        facts=facts,
        preflight=tuple(
            Check(str(item.get("name")), bool(item.get("passed")), str(item.get("detail", "")))
            for item in (items if isinstance(items, list) else [])
            if isinstance(item, dict)
        ),
        stages=stages,
        seconds=_seconds(sum(float(e["seconds"]) for e in entries.values())),
        dropped=_dropped(run.dropped),
        configuration=run.configuration,
    )


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as names with dots and values as text."""
    found: list[tuple[str, str]] = []
    for name, value in content.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}".replace("_", " "), str(value)))
    return found


def _seconds(value: float) -> str:
    if value < 10:
        return f"{value:.2f} s"
    return f"{value:.0f} s" if value < 600 else f"{value:,.0f} s ({value / 60:.0f} min)"


def _dropped(content: Mapping[str, Any] | None) -> str:
    if content is None:
        return ""
    reasons = content.get("dropped")
    if not isinstance(reasons, dict):
        return ""
    if not reasons:
        return "No row of the preference data was dropped."
    parts = [f"{reason}: {count}" for reason, count in sorted(reasons.items())]
    return f"Rows of the preference data that were not used: {'; '.join(parts)}."
