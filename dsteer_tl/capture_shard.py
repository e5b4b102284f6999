"""One shard of a capture: batches as large as memory allows, and the rows that are kept of them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.errors import DataError, ShapeError
from dsteer_tl.lens_model import Gather, LensModel, length_sorted_batches, pad
from dsteer_tl.lens_model.memory import HostCopies, is_out_of_memory, release_memory
from dsteer_tl.positions import Probe
from dsteer_tl.shift_set import Shard

logger = logging.getLogger(__name__)


def default_token_budget(device: torch.device) -> int:
    """Padded tokens of a batch where nobody says: what fits a CPU's caches, or fills a GPU."""
    return 1024 if device.type == "cpu" else 8192


def probe_positions(probe: Probe) -> list[int]:
    """The positions that are read in one sequence, whatever their kinds."""
    return sorted({position for found in probe.positions.values() for position in found})


class TokenBudget:
    """Padded tokens a batch: as asked for, and less from where memory has run out.

    Args:
        tokens: Padded tokens of the first batches, at most.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = self._told = tokens
        self._tried = tokens

    def halve(self, tried: int) -> None:
        """A batch of so many padded tokens did not fit."""
        self.tokens, self._tried = tried // 2, tried

    def fits(self) -> None:
        """A batch did fit: say once what it took."""
        if self.tokens != self._told:
            self._told = self.tokens
            logger.warning(
                "a batch of %d padded tokens did not fit into memory: going on with at most %d",
                self._tried,
                self.tokens,
            )


def capture_shard(
    models: Mapping[str, LensModel],
    probes: Sequence[Probe],
    sites: Sequence[str],
    kinds: Sequence[str],
    budget: TokenBudget,
    bar: tqdm[NoReturn],
) -> Shard:
    """Residuals of some sequences, in batches as large as memory allows.

    Args:
        models: What is run, by name.
        probes: Sequences and positions.
        sites: Where residuals are read.
        kinds: Position kinds of the whole capture, each a column of 0 and 1.
        budget: Padded tokens a batch; halved where memory runs out.
        bar: Moves by one a sequence.

    Raises:
        DataError: A sequence does not fit into memory alone.
        ShapeError: Residuals are NaN or infinite.
    """
    places = [probe_positions(probe) for probe in probes]
    total = sum(len(own) for own in places)
    labels = ("prompt", "item", "position", *(f"kind.{kind}" for kind in kinds))
    shard = {name: torch.zeros(total, dtype=torch.long) for name in labels}
    for name, model in models.items():
        shard.update({f"{name}/{site}": torch.zeros(total, model.d_model) for site in sites})
    # Nothing is read in the others, as where no pair of this shard diverges.
    read = [index for index, own in enumerate(places) if own]
    bar.update(len(probes) - len(read))
    pending = _batches(probes, read, budget)
    filled = 0
    while pending:
        batch = pending.popleft()
        rows = [(row, at, probes[index]) for row, index in enumerate(batch) for at in places[index]]
        padded = pad([probes[index].ids for index in batch])
        gather = Gather(_column(row for row, _, _ in rows), _column(at for _, at, _ in rows))
        found = _captured(models, padded.ids, padded.mask, sites, gather)
        if isinstance(found, str):
            if len(batch) == 1:
                raise DataError(
                    f"prompt {probes[batch[0]].prompt} has {padded.ids.numel()} tokens, which do "
                    f"not fit into memory even alone ({found}): shorten it, load the models in "
                    "bfloat16, or spread them over devices with model.device_map=auto"
                )
            budget.halve(padded.ids.numel())
            pending = _batches(probes, [*batch, *(i for own in pending for i in own)], budget)
            continue
        budget.fits()
        own = slice(filled, filled + len(rows))
        filled += len(rows)
        for name, tensor in found.items():
            shard[name][own] = tensor
        shard["prompt"][own] = _column(probe.prompt for _, _, probe in rows)
        shard["item"][own] = _column(probe.order for _, _, probe in rows)
        shard["position"][own] = gather.positions
        for kind in kinds:
            member = (int(at in probe.positions.get(kind, ())) for _, at, probe in rows)
            shard[f"kind.{kind}"][own] = _column(member)
        bar.update(len(batch))
    return shard


def _batches(
    probes: Sequence[Probe], chosen: Sequence[int], budget: TokenBudget
) -> deque[list[int]]:
    """Chosen sequences in batches; the order of all of them does not depend on the budget."""
    lengths = [len(probes[index].ids) for index in chosen]
    batches = length_sorted_batches(lengths, budget.tokens)
    return deque([chosen[place] for place in batch] for batch in batches)


def _captured(
    models: Mapping[str, LensModel],
    ids: Tensor,
    mask: Tensor,
    sites: Sequence[str],
    gather: Gather,
) -> dict[str, Tensor] | str:
    """Residuals of one batch by model and site, or what was said where memory ran out."""
    found: dict[str, Tensor] = {}
    try:
        # The next model runs while the rows of the last one are on their way.
        with HostCopies() as copies:
            for name, model in models.items():
                own = model.capture(ids, mask, sites, gather, copies=copies)
                found.update({f"{name}/{site}": tensor for site, tensor in own.items()})
        for place, tensor in found.items():
            _check_captured(tensor, *place.split("/"))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        return found
    # Not inside the except block: the traceback holds the tensors of the failed batch.
    found.clear()
    release_memory()
    return said


def _column(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long)


def _check_captured(tensor: Tensor, model: str, site: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).any(dim=-1).sum())
        raise ShapeError(
            f"{bad} of {len(tensor)} residuals of {model} at {site} are NaN or infinite: load the "
            "models in float32 or bfloat16"
        )
