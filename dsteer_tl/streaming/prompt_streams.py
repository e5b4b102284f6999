"""Prompts of a file, a hub data set or a ``datasets`` object, some at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dsteer_tl.errors import DataError
from dsteer_tl.files import hash_file
from dsteer_tl.preferences.hub import HUB_NAME
from dsteer_tl.preferences.records import FILE_SUFFIXES, check_file, open_text

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

#: Prompts read at once.
_BATCH = 1000


def prompt_batches(
    source: str | Path | Dataset | IterableDataset, column: str | None = None
) -> Iterator[list[str]]:
    """The texts of a source in their order, read through ``datasets`` a batch at a time.

    Nothing is converted or copied to a cache. A file gives the same texts as `load_prompts`, with
    an empty one for null.

    Args:
        source: A ``datasets`` object; a file (.txt with one prompt a line, .jsonl, .json, .csv,
            .tsv or .parquet, all also .gz); or a hub data set, "owner/name" or "owner/name:folder",
            of which the split train is read.
        column: Where the texts are; by default "prompt", else "text".

    Raises:
        DataError: The source is missing or malformed, lacks the column, or holds no text in it.
    """
    where = source_name(source)
    try:
        rows = _opened(source)
        names = rows.column_names
        if names is not None:
            rows = rows.select_columns([_column(names, column, where)])
        batches = rows.iter(batch_size=_BATCH)
        while (batch := next(batches, None)) is not None:
            yield _texts(batch, _column(list(batch), column, where), where)
    except DataError:
        raise
    except Exception as error:  # whatever fails in there, the user needs the same three things
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise DataError(
            f"{where}: prompts could not be read ({type(error).__name__}: {reason}); check the "
            "name, the form of the file and the connection"
        ) from error


def source_key(source: str | Path | Dataset | IterableDataset) -> list[str] | None:
    """What tells one source from another, or None where that takes reading all of it.

    A file is known by its bytes and a ``Dataset`` by its fingerprint. A hub data set is known by
    its name alone: it may change under it. An ``IterableDataset`` is not known.
    """
    if isinstance(source, (str, Path)):
        if _is_file(source):
            path = check_file(source)
            return ["file", _kind(path), hash_file(path)]
        return ["hub", str(source)]
    fingerprint = getattr(source, "_fingerprint", None)
    return None if fingerprint is None else ["dataset", str(fingerprint)]


def source_name(source: str | Path | Dataset | IterableDataset) -> str:
    """What messages call a source."""
    if not isinstance(source, (str, Path)):
        return f"a {type(source).__name__}"
    return str(source) if _is_file(source) else f"hub data set {source}"


def _is_file(source: str | Path) -> bool:
    path = Path(source).expanduser()
    if isinstance(source, Path) or path.exists() or str(source).lower().endswith(FILE_SUFFIXES):
        return True
    if HUB_NAME.fullmatch(source):
        return False
    raise DataError(
        f"{source}: neither a file nor the name of a hub data set, owner/name; expected a file "
        f"ending in {', '.join(FILE_SUFFIXES)}"
    )


def _kind(path: Path) -> str:
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


def _opened(source: str | Path | Dataset | IterableDataset) -> Any:
    if not isinstance(source, (str, Path)):
        return source
    from datasets import load_dataset

    if not _is_file(source):
        name, _, folder = str(source).partition(":")
        return load_dataset(name, data_dir=folder or None, split="train", streaming=True)
    path = check_file(source)
    kind = _kind(path)
    builders = {"txt": "text", "jsonl": "json", "json": "json", "csv": "csv", "tsv": "csv"}
    builder = builders.get(kind, kind)
    if builder not in ("text", "json", "csv", "parquet"):
        raise DataError(
            f"{path}: files ending in .{kind} are not read; expected {', '.join(FILE_SUFFIXES)}"
        )
    return load_dataset(
        builder,
        data_files=str(path),
        split="train",
        streaming=True,
        **_settings(path, kind),
    )


def _settings(path: Path, kind: str) -> dict[str, Any]:
    """What a builder is told: in tables every cell is text, 007 no number and NA not missing."""
    if kind == "txt":
        return {"encoding": "utf-8-sig"}
    if kind not in ("csv", "tsv"):
        return {}
    from datasets import Features, Value

    separator = "\t" if kind == "tsv" else ","
    quoting: Literal[0, 3] = csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL
    with open_text(path) as file:
        header = next(csv.reader(file, delimiter=separator, quoting=quoting), [])
    return {
        "sep": separator,
        "quoting": quoting,
        "encoding": "utf-8-sig",
        "na_filter": False,
        "features": Features({name: Value("string") for name in header}),
    }


def _column(names: list[str], column: str | None, where: str) -> str:
    wanted = ("prompt", "text") if column is None else (column,)
    for name in wanted:
        if name in names:
            return name
    raise DataError(
        f"{where}: found the columns {', '.join(names) or 'none'}; expected "
        f"{' or '.join(wanted)}; rename the columns or pass the name"
    )


def _texts(batch: dict[str, list[Any]], column: str, where: str) -> list[str]:
    texts = ["" if value is None else value for value in batch[column]]
    other = next((text for text in texts if not isinstance(text, str)), None)
    if other is not None:
        raise DataError(f"{where}: {column} holds {type(other).__name__}; expected text")
    return texts
