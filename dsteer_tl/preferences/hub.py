"""Rows of a data set on the Hugging Face hub, by name."""

from __future__ import annotations

import re

from dsteer_tl.errors import DataError
from dsteer_tl.preferences.records import Record

#: "owner/name", or "owner/name:folder" for one data folder of it.
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w./-]+)?")


def read_hub(
    source: str, *, split: str = "train", configuration: str | None = None
) -> list[Record]:
    """Load one split of a hub data set.

    Args:
        source: "owner/name", or "owner/name:folder" where the data set keeps its parts in folders
            ("Anthropic/hh-rlhf:harmless-base").
        split: the split's name on the hub.
        configuration: the data set's configuration, where it has several.

    Raises:
        DataError: the data set cannot be loaded (offline, not found, no such split), or is empty.
    """
    from datasets import load_dataset

    name, _, folder = source.partition(":")
    where = f"hub data set {source}, split {split}"
    try:
        rows = load_dataset(name, configuration, data_dir=folder or None, split=split)
        records = [Record(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)]
    except Exception as error:  # whatever fails in there, the user needs the same three things
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise DataError(
            f"{where}: could not be loaded ({type(error).__name__}: {reason}); check the name, the "
            f"split and the connection, or download the data set and give the path of a file"
        ) from error
    if not records:
        raise DataError(f"{where}: the data set holds no rows; expected at least one")
    return records
