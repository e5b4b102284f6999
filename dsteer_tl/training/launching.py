"""Configuration files of accelerate that ship with the package, for machines with several GPUs."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from dsteer_tl.errors import ConfigurationError


def _folder() -> Path:
    return Path(str(resources.files("dsteer_tl") / "presets" / "launch"))


def launch_configuration_names() -> tuple[str, ...]:
    """Names of the files, each for one way to launch."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def launch_configuration_path(name: str) -> Path:
    """The file for ``accelerate launch --config_file``.

    Raises:
        ConfigurationError: There is none of this name.
    """
    names = launch_configuration_names()
    if name not in names:
        raise ConfigurationError(
            f"there is no launch configuration {name!r}: expected one of {', '.join(names)}"
        )
    return _folder() / f"{name}.yaml"
