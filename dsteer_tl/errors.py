"""The one error family of the library.

Every message is one line that says what was found, what was expected, where, and what to do.
The command line turns any of these into that line and exit code 2.
"""

from __future__ import annotations


class DsteerError(Exception):
    """Base of every error that the library raises on purpose.

    Attributes:
        told: Whether another process of the launch says it.
    """

    told = False


class DataError(DsteerError):
    """Preference data or prompts cannot be read or used."""


class CheckpointError(DsteerError):
    """A model cannot be loaded, or its weights are not usable."""


class PairError(DsteerError):
    """Base and policy cannot be compared with each other."""


class HookError(DsteerError):
    """A hook, layer or site does not exist on this model."""


class SelfCheckError(DsteerError):
    """A loaded model failed the self-check, so its numbers could not be trusted."""


class SpaceError(DsteerError):
    """A vector was asked to act in a space, or on a readout, that is not its own."""


class ShapeError(DsteerError):
    """An array has another shape or content than the computation needs."""


class ConfigurationError(DsteerError):
    """A setting, preset or configuration file is wrong."""


class DependencyError(DsteerError):
    """An optional package or program is missing."""


class RunError(DsteerError):
    """A run directory is incomplete, altered, or cannot be written."""


class TrainingError(DsteerError):
    """Preference training cannot start, or broke a promise such as frozen embeddings."""
