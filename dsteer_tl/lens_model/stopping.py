"""Forward passes that end after the last block that is looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch


class _Stop(Exception):  # noqa: N818 - no error: a way out
    """Ends a pass; never leaves `stopped_before`."""


@contextlib.contextmanager
def stopped_before(stage: torch.nn.Module | None) -> Iterator[None]:
    """End the forward pass inside the block when it reaches a stage; None lets it run on.

    The statement in which the pass ends, and those after it in the block, are skipped.

    Args:
        stage: The first module that need not run.
    """
    if stage is None:
        yield
        return

    def stop(*_: Any) -> NoReturn:
        raise _Stop

    handle = stage.register_forward_pre_hook(stop)
    try:
        with contextlib.suppress(_Stop):
            yield
    finally:
        handle.remove()


def first_unneeded(stages: Sequence[torch.nn.Module], last: int | None) -> torch.nn.Module | None:
    """The stage after the last block that is needed, or None where all are."""
    return None if last is None or last + 1 >= len(stages) else stages[last + 1]
