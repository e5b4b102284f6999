"""Counting, and stopping, the batches of a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dsteer_tl.steering import sweep_rows


class Stopped(BaseException):
    """As a keyboard interrupt: nothing catches it."""


@contextmanager
def counting(stop_after: int = 10**6) -> Iterator[list[str]]:
    """The batches that are generated or scored; stops before one too many."""
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("generate_rows", "score_directions"):
            original = getattr(sweep_rows, name)

            def counted(*arguments: Any, _name: str = name, _do: Any = original, **own: Any) -> Any:
                if len(calls) == stop_after:
                    raise Stopped
                calls.append(_name)
                return _do(*arguments, **own)

            patch.setattr(sweep_rows, name, counted)
        yield calls
