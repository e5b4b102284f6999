"""Rows from files: JSON lines, JSON, CSV, TSV and parquet, each with its place for messages."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dsteer_tl.errors import DataError

#: Endings that mark a source as a file even when it does not exist.
FILE_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".tsv", ".parquet", ".txt")
_TABLES = "JSON lines (.jsonl, .jsonl.gz), JSON (.json), .csv, .tsv or .parquet"

_TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a source.

    Attributes:
        values: column → value; None where a row of a CSV or TSV is too short.
        where: the row's place, for error messages.
    """

    values: Mapping[str, Any]
    where: str


def read_records(path: str | Path) -> list[Record]:
    """Read every row of a file, by its ending; `.gz` after it means compressed.

    TSV has no quoting (a quotation mark is text); CSV has the usual one.

    Raises:
        DataError: the file is missing, empty, of another kind, or malformed (with the line).
    """
    path = check_file(path)
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    try:
        if kind == "parquet":
            records = _read_parquet(path)
        elif kind in ("jsonl", "json", "csv", "tsv"):
            with open_text(path) as file:
                if kind == "jsonl":
                    records = list(_json_lines(file, path))
                elif kind == "json":
                    records = _json_array(file, path)
                else:
                    records = list(_delimited(file, path, kind))
        else:
            raise DataError(f"{path}: files ending in .{kind} are not read; expected {_TABLES}")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected UTF-8 {_TABLES}") from error
    if not records:
        raise DataError(f"{path}: the file holds no rows; expected at least one")
    return records


def check_file(path: str | Path) -> Path:
    """The path, if it is a file with something in it.

    Raises:
        DataError: it is missing, a folder, or empty.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise DataError(f"{path}: this is a folder; expected a file, {_TABLES}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path (it is read from {Path.cwd()})")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected at least one row")
    return path


def open_text(path: Path) -> IO[str]:
    """Open a text file, compressed or not; a leading byte-order mark is not text."""
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def field_text(record: Record, column: str) -> str:
    """The text in a column; null reads as empty, so that such rows are dropped and counted.

    Raises:
        DataError: the row has no such column, or something other than text in it.
    """
    if column not in record.values:
        raise DataError(missing_columns(record, [column]))
    value = record.values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{record.where}: {column} holds {type(value).__name__}; expected text")
    return value


def missing_columns(record: Record, expected: Iterable[str]) -> str:
    """The message for columns that a source lacks."""
    return (
        f"{record.where}: found the columns {', '.join(map(str, record.values)) or 'none'}; "
        f"expected {', '.join(expected)}; rename the columns or pass their names"
    )


def _json_lines(file: IO[str], path: Path) -> Iterator[Record]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{where}: not valid JSON ({error}), found {line.strip()[:60]!r}; "
                f"expected one JSON object a line"
            ) from error
        yield Record(_object(values, where), where)


def _json_array(file: IO[str], path: Path) -> list[Record]:
    try:
        rows = json.load(file)
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise DataError(
            f"{path}: not valid JSON ({error}); expected a list of objects, or name a file with "
            f"one object a line .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: found {_kind(rows)}; expected a list of JSON objects")
    places = (f"{path}, row {number}" for number in range(1, len(rows) + 1))
    return [Record(_object(row, where), where) for row, where in zip(rows, places, strict=True)]


def _object(values: object, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise DataError(f"{where}: found {_kind(values)}; expected a JSON object")
    return values


def first_text(record: Record, *columns: str) -> str:
    """The text in the first of some columns that a row has.

    Raises:
        DataError: None of the columns is there, or it holds no text.
    """
    for column in columns:
        if column in record.values:
            return field_text(record, column)
    raise DataError(missing_columns(record, [" or ".join(columns)]))


def split_answers(record: Record, *columns: str) -> tuple[str, ...]:
    """Answers in the first of some columns that a row has: a list, or a text parted by ``;``.

    Each answer comes once, without surrounding white space. Raises `DataError` as `first_text`.
    """
    value = next((record.values[column] for column in columns if column in record.values), None)
    if isinstance(value, list) and all(isinstance(answer, str) for answer in value):
        answers = value
    else:
        answers = first_text(record, *columns).split(";")
    return tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))


def truth(record: Record, column: str, expected: str = "true or false, 1 or 0") -> bool:
    """Whether a row has something, written as true or false, 1 or 0, in any case.

    Args:
        record: The row.
        column: Where it says so.
        expected: What a message says that the column should hold.

    Raises:
        DataError: The column is missing or holds something else.
    """
    if column not in record.values:
        raise DataError(missing_columns(record, [column]))
    value = record.values[column]
    written = str(value).strip().casefold()
    if written not in _TRUTHS:
        raise DataError(f"{record.where}: {column} holds {value!r}; expected {expected}")
    return _TRUTHS[written]


def _kind(value: object) -> str:
    names = {list: "a list", dict: "an object", str: "a string", bool: "a truth value"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _delimited(file: IO[str], path: Path, kind: str) -> Iterator[Record]:
    if kind == "tsv":
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.DictReader(file, strict=True)
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        surplus = row.pop(None, None)
        if surplus:
            columns = len(row)
            raise DataError(
                f"{where}: found {columns + len(surplus)} columns; expected the {columns} of the "
                f"first line; quote fields that hold the separator"
            )
        yield Record(row, where)


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable parquet file ({line})") from error
    return [Record(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]
