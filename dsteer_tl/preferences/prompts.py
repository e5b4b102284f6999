"""Prompts alone, for capture and behaviour: from JSON lines, text, CSV, TSV or parquet."""

from __future__ import annotations

from pathlib import Path

from dsteer_tl.errors import DataError
from dsteer_tl.preferences.records import (
    check_file,
    field_text,
    missing_columns,
    open_text,
    read_records,
)


def load_prompts(path: str | Path, *, column: str | None = None) -> tuple[str, ...]:
    """Read prompts in their order; empty ones are passed over, repeated ones kept.

    Args:
        path: .txt (one prompt a line) or a table, both also .gz.
        column: the table's column; by default "prompt", else "text".

    Raises:
        DataError: the file is missing, empty or malformed, lacks the column, or holds no prompt.
    """
    path = check_file(path)
    if path.name.lower().removesuffix(".gz").endswith(".txt"):
        try:
            with open_text(path) as file:
                texts = [line.rstrip("\r\n") for line in file]
        except (UnicodeDecodeError, OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); expected UTF-8 text") from error
    else:
        texts = []
        for record in read_records(path):
            names = ("prompt", "text") if column is None else (column,)
            found = [name for name in names if name in record.values]
            if not found:
                raise DataError(missing_columns(record, [" or ".join(names)]))
            texts.append(field_text(record, found[0]))
    prompts = tuple(text for text in texts if text.strip())
    if not prompts:
        raise DataError(f"{path}: all {len(texts)} prompts are empty; expected at least one text")
    return prompts
