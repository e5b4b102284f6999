"""Whole files: text written under a temporary name, and the counts beside a set's pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from dsteer_tl.errors import DataError


def write_whole(path: Path, text: str) -> None:
    """Write text under a temporary name beside `path` and rename it: whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)


def counts_path(path: Path) -> Path:
    """Where the counts of the pairs in `path` lie: `<stem>.dropped.json`."""
    return path.with_name(f"{path.stem}.dropped.json")


def write_counts(path: Path, name: str, dropped: Mapping[str, int]) -> None:
    """Write a set's name and dropped counts."""
    content = {"name": name, "dropped": dict(dropped)}
    write_whole(path, json.dumps(content, ensure_ascii=False) + "\n")


def read_counts(path: Path) -> tuple[str, dict[str, int]]:
    """Read what `write_counts` wrote.

    Raises:
        DataError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["name"]), {str(k): int(v) for k, v in content["dropped"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not the counts of a preference set ({error}); expected "
            f'{{"name": …, "dropped": {{reason: count}}}}; delete the file or save the set again'
        ) from error
