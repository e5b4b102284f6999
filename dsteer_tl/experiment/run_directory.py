"""A run directory: stages keyed by the hash of their inputs, and the manifest that proves it.

A stage whose key and outputs match the manifest is not run again; one that was interrupted has no
entry and is redone, never trusted.

With several processes, all come to every stage and take the same branch. A divided stage runs in
all of them; any other in the main one alone, which also writes the manifest, while the others wait.
What a stage calls works alone unless it is handed the processes, so that nothing inside a stage of
the main one can wait for the others.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from dsteer_tl.errors import RunError
from dsteer_tl.files import hash_content, hash_file, read_json, replacing, write_json
from dsteer_tl.manifest import MANIFEST, MANIFEST_FORMAT
from dsteer_tl.notebook import run_html
from dsteer_tl.processes import Processes

logger = logging.getLogger(__name__)

_PACKAGES = (
    "dsteer-tl",
    "torch",
    "transformers",
    "transformer-lens",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "numpy",
    "pandas",
    "scikit-learn",
    "plotly",
    "vaderSentiment",
)


@dataclass(frozen=True, slots=True)
class StageReport:
    """What became of one stage."""

    name: str
    ran: bool
    seconds: float


class RunDirectory:
    """Files of one run and the manifest over them.

    Args:
        path: The directory.
        processes: Those that all come to every stage. By default this process is alone.
    """

    def __init__(self, path: Path, processes: Processes | None = None) -> None:
        self.path = path
        self.processes = processes or Processes()

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open a directory that a run has written.

        Raises:
            RunError: There is no manifest.
        """
        if not (path / MANIFEST).is_file():
            raise RunError(f"{path} is no run directory: it has no {MANIFEST}")
        return cls(path)

    def _repr_html_(self) -> str:
        return run_html(self.manifest, self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, or an empty one."""
        path = self.path / MANIFEST
        if not path.is_file():
            return {"format": MANIFEST_FORMAT, "stages": {}}
        content: dict[str, Any] = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
            raise RunError(f"{path} is no manifest of a run: it has no stages")
        for name, entry in content["stages"].items():
            if not isinstance(entry, dict) or not isinstance(entry.get("outputs"), dict):
                raise RunError(f"{path}: stage {name!r} lists no outputs; restore the manifest")
        if content.get("format") != MANIFEST_FORMAT:
            raise RunError(
                f"{path} has format {content.get('format')!r}, this version reads "
                f"{MANIFEST_FORMAT}: use another --out"
            )
        return content

    def require_tables(self) -> None:
        """Refuse a directory in whose manifest no stage has measured anything.

        Raises:
            RunError: What lies there, if anything, is of no stage.
        """
        outputs = (entry["outputs"] for entry in self.manifest["stages"].values())
        if not any(path.startswith("tables/") for found in outputs for path in found):
            raise RunError(
                f"{self.path / MANIFEST} lists no table: the run is incomplete, or its manifest "
                "was replaced; run dsteer reproduce or dsteer analyze"
            )

    def describe(self, entries: Mapping[str, Any]) -> None:
        """Write facts about the run as a whole into the manifest, once."""
        if not self.processes.is_main:
            return
        manifest = self.manifest
        manifest.update(entries)
        self._write(manifest)

    def _write(self, manifest: Mapping[str, Any]) -> None:
        """The one place that writes the manifest, in the main process."""
        if self.processes.is_main:
            write_json(self.path / MANIFEST, manifest)

    def is_current(self, name: str, key: str) -> bool:
        """Whether a stage ran with this key and its outputs are as it left them."""
        entry = self.manifest["stages"].get(name)
        if entry is None or entry["key"] != key:
            return False
        return all(
            (self.path / output).is_file() and hash_file(self.path / output) == digest
            for output, digest in entry["outputs"].items()
        )

    def holds(self, name: str, inputs: Any) -> bool:
        """Whether a stage with these inputs is up to date."""
        return self.is_current(name, hash_content([MANIFEST_FORMAT, name, inputs]))

    def stage(
        self,
        name: str,
        inputs: Any,
        run: Callable[[], Sequence[Path]],
        *,
        divided: bool = False,
    ) -> StageReport:
        """Run a stage unless its inputs and outputs are what the manifest says.

        Args:
            name: Name in the manifest.
            inputs: Everything that decides the outputs, as JSON-like content; those of the main
                process count.
            run: Does the work and returns the files it wrote, all inside the directory.
            divided: Whether `run` is for all processes and shares its work among them. What it
                returns in the main process counts.
        """
        key = hash_content([MANIFEST_FORMAT, name, inputs])
        if self.processes.done_by_main(lambda: self.is_current(name, key)):
            logger.info("%s: up to date", name)
            return StageReport(name, ran=False, seconds=0.0)
        logger.info("%s: running", name)
        started = time.perf_counter()
        if not divided:
            return self.processes.done_by_main(lambda: self._finished(name, key, run(), started))
        outputs = run()
        self.processes.wait()
        return self.processes.done_by_main(lambda: self._finished(name, key, outputs, started))

    def _finished(
        self, name: str, key: str, outputs: Sequence[Path], started: float
    ) -> StageReport:
        """Enter what a stage left into the manifest."""
        seconds = time.perf_counter() - started
        manifest = self.manifest
        manifest["stages"][name] = {
            "key": key,
            "seconds": round(seconds, 3),
            "outputs": {
                path.relative_to(self.path).as_posix(): hash_file(path) for path in sorted(outputs)
            },
        }
        self._write(manifest)
        logger.info("%s: %.1f s", name, seconds)
        return StageReport(name, ran=True, seconds=seconds)

    def keep_tables(self, names: Sequence[str]) -> None:
        """Remove the tables of an earlier run that this one does not have.

        Figures and claims read every table that is there; one that was measured on other data, as
        when pairs gave way to prompts, would stand beside the new ones unnoticed.
        """
        if not self.processes.is_main:
            return
        manifest = self.manifest
        removed = set()
        for path in self.path.glob("tables/*.parquet"):
            if path.stem not in names:
                path.unlink()
                removed.add(f"tables/{path.name}")
        manifest["stages"] = {
            name: entry
            for name, entry in manifest["stages"].items()
            if not removed & set(entry["outputs"])
        }
        self._write(manifest)

    def drop(self, name: str) -> None:
        """Remove what a stage left, and its entry in the manifest."""
        if not self.processes.is_main:
            return
        manifest = self.manifest
        entry = manifest["stages"].pop(name, None)
        if entry is None:
            return
        for output in entry["outputs"]:
            (self.path / output).unlink(missing_ok=True)
        self._write(manifest)

    def output_hashes(self, name: str) -> dict[str, str]:
        """Hashes of what a finished stage wrote: the inputs of the stages after it."""
        outputs: dict[str, str] = self.manifest["stages"][name]["outputs"]
        return outputs

    def table(self, name: str) -> pd.DataFrame:
        """Read a table.

        Raises:
            RunError: It is not there or cannot be read.
        """
        path = self.path / "tables" / f"{name}.parquet"
        if not path.is_file():
            raise RunError(f"{path} is missing: the run is incomplete; run the same command again")
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path} cannot be read ({error}): it was altered or cut short"
            ) from error

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table of the run by name."""
        return {
            path.stem: self.table(path.stem) for path in sorted(self.path.glob("tables/*.parquet"))
        }

    def write_table(self, name: str, table: pd.DataFrame) -> Path:
        """Write a table as parquet, atomically."""
        return self.write_parquet(f"tables/{name}.parquet", table)

    def write_parquet(self, path: str, table: pd.DataFrame) -> Path:
        """Write a table to a path inside the run, atomically."""
        target = self.path / path
        with replacing(target) as temporary:
            table.to_parquet(temporary, index=False)
        return target


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    """The machine, as far as it explains times and rounding."""
    import torch

    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
