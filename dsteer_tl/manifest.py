"""What the manifest of a run is: its name, its format, and which paths it may list."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

MANIFEST = "manifest.json"
#: Format of the manifests that this version writes and reads.
MANIFEST_FORMAT = 1


def lies_inside(folder: Path, path: str) -> bool:
    """Whether a path of the manifest stays in the run: not by ``..``, from the root or by a link.

    Args:
        folder: The run directory, resolved.
        path: Relative to it, with slashes.
    """
    plain = PurePosixPath(path)
    if plain.is_absolute() or ".." in plain.parts or "\\" in path or "\0" in path or not path:
        return False
    return (folder / path).resolve().is_relative_to(folder)
