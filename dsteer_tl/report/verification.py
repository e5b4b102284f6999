"""Is a run what its manifest says? Every file hashed again, the ledger compared with the tables.

The manifest proves what happened to the files since it was written, and nothing about itself: who
alters a file and its hash together is not found out, unless the manifest's own hash was noted
elsewhere. That hash is part of the report.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from dsteer_tl.errors import RunError
from dsteer_tl.files import hash_file, read_json
from dsteer_tl.manifest import MANIFEST, MANIFEST_FORMAT, lies_inside
from dsteer_tl.report.ledger_check import check_claims

State = Literal["intact", "altered", "missing", "unlisted"]

SETTINGS = "config.yaml"
_STATES: tuple[State, ...] = ("intact", "altered", "missing", "unlisted")
#: What no stage lists on purpose: answers of servers, and batches that a sweep goes on from.
_WORK = frozenset({"cache", "parts"})


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedFile:
    """One file of a run.

    Attributes:
        path: Inside the directory, with slashes.
        stage: The stage that wrote it; ``settings`` for the configuration, empty where none did.
        state: ``intact``, ``altered``, ``missing``, or ``unlisted``.
    """

    path: str
    stage: str
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationReport:
    """What became of a run since its manifest was written.

    Attributes:
        folder: The run.
        manifest_hash: SHA-256 of the manifest, to compare with one noted elsewhere.
        items: Files in the order of the manifest, then those that no stage lists.
        contradictions: What files say against each other, or the manifest against the directory.
        notes: What could not be checked, and what is no fault.
    """

    folder: Path
    manifest_hash: str
    items: tuple[VerifiedFile, ...]
    contradictions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def paths(self, state: State) -> tuple[str, ...]:
        """Files in a state, each once."""
        return tuple(dict.fromkeys(item.path for item in self.items if item.state == state))

    @property
    def passed(self) -> bool:
        """Whether nothing is altered or missing and nothing contradicts; unlisted files may lie."""
        return not (self.paths("altered") or self.paths("missing") or self.contradictions)

    def require(self) -> None:
        """Refuse a run that is not as it was left.

        Raises:
            RunError: Says how many files are altered or missing, and the first of them.
        """
        if self.passed:
            return
        altered, missing = self.paths("altered"), self.paths("missing")
        first = (*altered, *missing, *self.contradictions)[0]
        raise RunError(
            f"{self.folder} is not as its manifest says: {len(altered)} altered, {len(missing)} "
            f"missing, {len(self.contradictions)} contradicting, first {_printable(first)}: run "
            "dsteer reproduce, or what made it, again, or restore the run"
        )


def verify_run(
    folder: Path,
    *,
    expected_claims: Sequence[Mapping[str, Any]] | None = None,
    progress: bool = False,
) -> VerificationReport:
    """Hash every artefact of a run again and compare it with the manifest.

    Nothing outside the directory is read: a path that leaves it, by ``..``, from the root or
    through a link, is a contradiction and is not followed.

    Args:
        folder: The run directory.
        expected_claims: The ledger as judged on the stored tables, as in ``claims.json``; without
            it the ledger is not judged again.
        progress: Show a progress bar.

    Raises:
        RunError: The folder is no run, or its manifest cannot be read.
    """
    stages, manifest = _read_manifest(folder)
    root = folder.resolve()
    listed = [
        (path, stage, digest) for stage, found in stages.items() for path, digest in found.items()
    ]
    settings = manifest.get("config")
    contradictions, notes = [], []
    if isinstance(settings, str):
        listed.append((SETTINGS, "settings", settings))
    elif (folder / SETTINGS).is_file():
        notes.append(f"the manifest has no hash of {SETTINGS}, so that it was not checked")
    items = []
    for path, stage, digest in tqdm(listed, desc="verify", unit="file", disable=not progress):
        if not lies_inside(root, path):
            contradictions.append(
                f"the manifest lists {path!r} for stage {stage!r}, which lies outside the run: it "
                "was not read"
            )
            continue
        items.append(VerifiedFile(path=path, stage=stage, state=_state(folder / path, digest)))
    known = {path for path, _, _ in listed}
    items += [
        VerifiedFile(path=path, stage="", state="unlisted")
        for path in _files_of(folder)
        if path not in known and path not in {SETTINGS, MANIFEST}
    ]
    drawn = any(item.stage == "figures" for item in items)
    contradictions += [
        f"{item.path} is a table that no stage lists, and the ledger reads every table"
        for item in items
        if item.state == "unlisted" and item.path.startswith("tables/")
    ]
    against, noted = check_claims(folder, expected_claims, drawn=drawn)
    return VerificationReport(
        folder=folder,
        manifest_hash=hash_file(folder / MANIFEST),
        items=tuple(items),
        contradictions=(*contradictions, *against),
        notes=(*notes, *noted),
    )


def _read_manifest(folder: Path) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
    if not (path := folder / MANIFEST).is_file():
        raise RunError(f"{folder} is no run directory: it has no {MANIFEST}")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != MANIFEST_FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise RunError(
            f"{path} has format {found!r}, this version reads {MANIFEST_FORMAT}: verify the "
            "run with the version that wrote it"
        )
    stages = content.get("stages")
    if not isinstance(stages, dict):
        raise RunError(f"{path} has no stages: it was altered or cut short")
    outputs = {}
    for name, entry in stages.items():
        found = entry.get("outputs") if isinstance(entry, dict) else None
        if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
            raise RunError(
                f"{path}: stage {name!r} has no outputs with a hash each: it was altered or cut "
                "short"
            )
        outputs[name] = found
    return outputs, content


def _state(path: Path, digest: str) -> State:
    if not path.is_file():
        return "missing"
    try:
        return "intact" if hash_file(path) == digest else "altered"
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error}): mend its permissions") from error


def _files_of(folder: Path) -> Iterator[str]:
    """Files of the run without those of work that goes on, sorted; links are not followed."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_work(name))
        for name in sorted(files):
            if not name.startswith("."):
                yield (Path(place) / name).relative_to(folder).as_posix()


def _is_work(folder: str) -> bool:
    return folder in _WORK or folder.startswith(".") or folder.endswith(".work")


def verification_text(report: VerificationReport) -> str:
    """The report for a terminal: what is wrong first, then the count, then the manifest's hash."""
    lines = []
    for state in _STATES[1:]:
        for path in report.paths(state):
            stages = [i.stage for i in report.items if i.path == path and i.state == state]
            of = f"  ({', '.join(dict.fromkeys(stages))})" if any(stages) else ""
            lines.append(f"{state:10}{_printable(path)}{_printable(of)}")
    lines += [f"contradiction: {_printable(each)}" for each in report.contradictions]
    lines += [f"note: {_printable(each)}" for each in report.notes]
    counts = ", ".join(f"{len(report.paths(state))} {state}" for state in _STATES)
    if faults := len(report.contradictions):
        counts += f", {faults} contradiction{'' if faults == 1 else 's'}"
    verdict = "VERIFIED" if report.passed else "NOT AS ITS MANIFEST SAYS"
    lines.append(f"{report.folder}: {verdict}: {counts}")
    lines.append(f"SHA-256 of {MANIFEST}: {report.manifest_hash}")
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
