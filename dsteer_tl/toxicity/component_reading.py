"""Inner states of several models at the same tokens, batch by batch.

Every analysis of what training changed takes its rows from here and accumulates: nothing of a
batch is kept but what an analysis keeps itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.errors import DataError, ShapeError
from dsteer_tl.lens_model import Gather, LensModel, length_sorted_batches, pad
from dsteer_tl.lens_model.components import NEURONS, component_of
from dsteer_tl.positions import Probe, check_lengths, spread_evenly

#: The last token of the prompt.
LAST_PROMPT = "last_prompt"
#: Tokens of the continuation that have a next token inside it.
RESPONSE = "response"
#: Both: the positions at which the tokens of the continuation are written.
GENERATED = "generated"

#: At most so many response positions a prompt, and so many prompts, are read in detail: rows of
#: every place of these are kept, and interval and time gain little from more.
RESPONSE_LIMIT = 4
DETAILED_PROMPTS = 512

# Numbers of all models and places that one batch may gather: 512 MiB as float32.
_GATHERED = 2**27


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComponentBatch:
    """Rows of one batch; a row is one token of one prompt.

    Attributes:
        prompts: The prompt of each row.
        positions: The position of each row in its token sequence.
        members: For every position kind, which rows are of it.
        states: For every model and place, its rows as float32 on the CPU.
    """

    prompts: Int[np.ndarray, " row"]
    positions: Int[np.ndarray, " row"]
    members: Mapping[str, Bool[np.ndarray, " row"]]
    states: Mapping[str, Mapping[str, Float[Tensor, "row width"]]]

    def rows(self, kind: str) -> Int[np.ndarray, " kept"]:
        """Indices of the rows of a position kind; none where no prompt has one."""
        member = self.members.get(kind)
        return np.flatnonzero(member) if member is not None else np.empty(0, dtype=np.int64)

    def at(self, model: str, place: str, kind: str) -> Float[Tensor, "kept width"]:
        """The rows of a position kind at one place of one model."""
        return self.states[model][place][torch.from_numpy(self.rows(kind))]


def continuation_probes(
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    response_limit: int | None = RESPONSE_LIMIT,
    detailed_prompts: int | None = DETAILED_PROMPTS,
) -> tuple[Probe, ...]:
    """Prompts with what was written after them, and the positions to read.

    Args:
        prompts: Token ids.
        continuations: Token ids of one continuation a prompt; may be empty.
        response_limit: At most so many positions of kind `RESPONSE` a prompt, evenly spread; None
            for all.
        detailed_prompts: At most so many prompts, evenly spread, have the kinds `LAST_PROMPT` and
            `RESPONSE`; None for all. All have `GENERATED`.

    Raises:
        DataError: A prompt has no tokens, or there is not one continuation a prompt.
    """
    if len(prompts) != len(continuations):
        raise DataError(
            f"components: found {len(prompts)} prompts and {len(continuations)} continuations, "
            "expected one continuation a prompt"
        )
    detailed = frozenset(spread_evenly(range(len(prompts)), detailed_prompts))
    probes = []
    for index, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        if not prompt:
            raise DataError(f"prompt {index} has no tokens: drop it")
        last, end = len(prompt) - 1, len(prompt) + len(continuation) - 1
        positions: dict[str, tuple[int, ...]] = {GENERATED: tuple(range(last, max(end, last + 1)))}
        if index in detailed:
            positions[LAST_PROMPT] = (last,)
            positions[RESPONSE] = spread_evenly(range(last + 1, end), response_limit)
        probes.append(Probe(index, (*prompt, *continuation), positions))
    return tuple(probes)


def read_components(
    models: Mapping[str, LensModel],
    probes: Sequence[Probe],
    places: Mapping[str, Sequence[str]],
    *,
    token_budget: int,
    progress: bool = True,
    description: str = "components",
) -> Iterator[ComponentBatch]:
    """Run all models over the same tokens and yield their states at the probes' positions.

    Batches are sorted by length and padded on the right; all rows of a prompt are in one batch.
    Memory does not grow with the number of prompts.

    Args:
        models: Models by name.
        probes: Sequences and positions, from `continuation_probes`.
        places: The sites and inner places to read of each model.
        token_budget: Padded tokens a forward pass; fewer where what is gathered would be large.
        progress: Show a progress bar.
        description: Its label.

    Raises:
        DataError: A sequence is longer than the context of a model.
        HookError: A place does not exist.
        ShapeError: A state is NaN or infinite.
    """
    for lens in models.values():
        check_lengths(probes, lens.n_ctx, lens.name)
    kinds = tuple(dict.fromkeys(kind for probe in probes for kind in probe.positions))
    width = sum(_width(lens, place) for name, lens in models.items() for place in places[name])
    with tqdm(total=len(probes), desc=description, unit="prompt", disable=not progress) as bar:
        for indices in _batches(probes, token_budget, _GATHERED // max(width, 1)):
            batch = [probes[index] for index in indices]
            rows = [
                (row, position, probe)
                for row, probe in enumerate(batch)
                for position in sorted({p for found in probe.positions.values() for p in found})
            ]
            padded = pad([probe.ids for probe in batch])
            gather = Gather(
                torch.tensor([row for row, _, _ in rows], dtype=torch.long),
                torch.tensor([position for _, position, _ in rows], dtype=torch.long),
            )
            states = {}
            for name, lens in models.items():
                states[name] = lens.capture(padded.ids, padded.mask, places[name], gather)
                for place, tensor in states[name].items():
                    _check_finite(tensor, place, lens.name)
            yield ComponentBatch(
                prompts=np.array([probe.prompt for _, _, probe in rows], dtype=np.int64),
                positions=gather.positions.numpy(),
                members={
                    kind: np.array([p in probe.positions.get(kind, ()) for _, p, probe in rows])
                    for kind in kinds
                },
                states=states,
            )
            bar.update(len(batch))


def double_precision(
    tensor: Float[Tensor, "*shape"], like: Tensor | None = None
) -> Float[Tensor, "*shape"]:
    """The tensor as float64, on the GPU of ``like`` (or its own), else on the CPU.

    Weights stay where they are on CUDA; other accelerators have no float64.
    """
    device = (tensor if like is None else like).device
    return tensor.to(device if device.type == "cuda" else "cpu").double()


def _batches(probes: Sequence[Probe], token_budget: int, most_rows: int) -> Iterator[list[int]]:
    """Batches within the token budget, and within the rows that may be gathered at once."""
    counts = [len(set().union(*probe.positions.values())) for probe in probes]
    for batch in length_sorted_batches([len(probe.ids) for probe in probes], token_budget):
        part: list[int] = []
        rows = 0
        for index in batch:
            if part and rows + counts[index] > most_rows:
                yield part
                part, rows = [], 0
            part.append(index)
            rows += counts[index]
        yield part


def _width(lens: LensModel, place: str) -> int:
    component = component_of(place)
    return lens.d_mlp if component is not None and component[0] in NEURONS else lens.d_model


def _check_finite(tensor: Tensor, place: str, model: str) -> None:
    bad = int((~torch.isfinite(tensor)).any(dim=-1).sum())
    if bad:
        raise ShapeError(
            f"{bad} of {len(tensor)} rows of {model} at {place} are NaN or infinite: load the "
            "models in float32 or bfloat16"
        )
