"""The parts of a sweep, and those that are finished: each in a file of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dsteer_tl.errors import RunError
from dsteer_tl.files import read_json, replacing, write_json
from dsteer_tl.processes import Processes

logger = logging.getLogger(__name__)

_INDEX = "index.json"


@dataclass(frozen=True, slots=True, eq=False)
class SweepPart:
    """What is run at once and lost at most.

    Attributes:
        name: Its file.
        texts: Completions that it generates; none where it scores.
        make: Runs it.
    """

    name: str
    texts: int
    make: Callable[[], pd.DataFrame]


class KeptParts:
    """Finished parts of one sweep in a folder, or nothing where there is no folder.

    Args:
        folder: Where they are, or None.
        key: Identity of the sweep; parts of another one are cleared.
        processes: Those that share the folder; they wait until it is ready.
    """

    def __init__(self, folder: Path | None, key: str, processes: Processes) -> None:
        self.folder = folder
        if folder is None:
            return
        if processes.is_main:
            _prepare_folder(folder, key)
        processes.wait()

    def get(self, part: SweepPart) -> pd.DataFrame:
        """A part as its file gives it, so that it looks the same when it is read later."""
        if self.folder is None:
            return part.make()
        path = self._path(part)
        if path.is_file():
            try:
                return pd.read_parquet(path)
            except (OSError, ValueError):  # cut short by something other than us
                logger.warning("%s cannot be read and is made again", path)
        made = part.make()
        with replacing(path) as temporary:
            made.to_parquet(temporary, index=False)
        return pd.read_parquet(path)

    def read(self, part: SweepPart) -> pd.DataFrame:
        """A part that another process has finished."""
        path = self._path(part)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path}, which another process has written, cannot be read ({error}): all "
                "processes need the same folder, on a file system that all machines see"
            ) from error

    def _path(self, part: SweepPart) -> Path:
        return Path(self.folder or "") / f"{part.name}.parquet"


def _prepare_folder(folder: Path, key: str) -> None:
    """Keep the parts of the same plan; clear those of another one."""
    index = folder / _INDEX
    known = read_json(index) if index.is_file() else {}
    if isinstance(known, dict) and known.get("key") == key:
        return
    old = list(folder.glob("*.parquet"))
    if old:
        logger.info("clearing %s: it holds another sweep", folder)
    for path in (*old, *folder.glob(".*.parquet.partial")):
        path.unlink()
    write_json(index, {"key": key})
