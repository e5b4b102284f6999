"""The processes of one launch: which this is, what its share is, where they wait for each other.

``accelerate launch -m dsteer_tl …`` and ``torchrun -m dsteer_tl …`` start the same program several
times. Work that can be divided is: each process takes its share of the batches and writes its own
files. Everything else is done by the main process while the others wait. Without a launcher there
is one process, nothing is initialised, and nothing waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

from dsteer_tl.errors import DsteerError

T = TypeVar("T")

#: How long processes wait for each other: as long as the longest stage of the main one may take.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Processes:
    """One process among those of a launch.

    Attributes:
        index: Number of this process, from 0 (its rank).
        count: How many there are (the world size).
        local_index: Number of this process on its machine, which chooses its GPU.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process does what is done once."""
        return self.index == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Every ``count``-th item: what this process does of work that is divided."""
        return list(items[self.index :: self.count])

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            from accelerate.utils import wait_for_everyone

            wait_for_everyone()

    def agreed(self, value: T) -> T:
        """The main process's value, in every process, so that all take the same branch."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        found = [value]
        broadcast_object_list(found, from_process=0)
        return found[0]

    def done_by_main(self, work: Callable[[], T]) -> T:
        """What `work` gives in the main process, in every process; the others wait.

        An error of the family is raised in all of them, so that all go on in the same way; in the
        others its `told` is set. Any other error ends the main process and with it the launch.
        """
        if self.count == 1:
            return work()
        found: T | None = None
        failed: DsteerError | None = None
        if self.is_main:
            try:
                found = work()
            except DsteerError as error:
                failed = error
        found, failed = self.agreed((found, failed))
        if failed is not None:
            failed.told = not self.is_main
            raise failed
        return found  # type: ignore[return-value]


def launched_rank() -> int:
    """The number of this process as the launcher gives it, without joining the others."""
    return int(os.environ.get("RANK") or 0)


@cache
def processes() -> Processes:
    """The processes of this launch; joins their group when first asked for."""
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return Processes()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes, state.local_process_index)
