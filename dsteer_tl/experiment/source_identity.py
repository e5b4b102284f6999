"""What a checkpoint is, without loading it."""

from __future__ import annotations

from pathlib import Path

from dsteer_tl.files import hash_content, hash_file
from dsteer_tl.lens_model.checkpoint import resolve_source

_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja")


def source_identity(source: str, revision: str | None) -> str:
    """A hash of a local checkpoint's files, or the name and revision of a hub repository.

    A hub repository without a pinned revision may change under its name: pin one for a run that
    others are to repeat.
    """
    folder = Path(resolve_source(source))
    if not folder.is_dir():
        return hash_content(["hub", source, revision])
    files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    return hash_content([(path.name, hash_file(path)) for path in files])
