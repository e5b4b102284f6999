"""Residuals of chosen rows and positions, taken inside the hooks of one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dsteer_tl.lens_model.memory import HostCopies
from dsteer_tl.lens_model.types import Gather

#: From a site and what is called with its tensor to the hook.
Read = Callable[[str, Callable[[Tensor], None]], contextlib.AbstractContextManager[None]]
#: From the gathered rows of a site to what is kept of them.
Reduce = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def gathering(
    read: Read,
    sites: Sequence[str],
    gather: Gather,
    device: torch.device,
    reduce: Mapping[str, Reduce],
    copies: HostCopies,
) -> Iterator[dict[str, Tensor]]:
    """Fill a dictionary with the gathered rows of each site while the block runs.

    Rows are gathered inside the hook, so that the full residual stream of a batch is never kept,
    and start on their way to the host there: as float32, or in the dtype of what `reduce` gives.
    """
    rows, positions = gather.rows.to(device), gather.positions.to(device)
    kept: dict[str, Tensor] = {}

    def keep(site: str) -> Callable[[Tensor], None]:
        def function(tensor: Tensor) -> None:
            found = tensor[rows.to(tensor.device), positions.to(tensor.device)].detach()
            if site in reduce:
                kept[site] = copies.to_host(reduce[site](found), None)
            else:
                kept[site] = copies.to_host(found)

        return function

    with contextlib.ExitStack() as stack:
        for site in sites:
            stack.enter_context(read(site, keep(site)))
        yield kept
