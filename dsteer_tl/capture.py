"""Residuals of base and policy at the same tokens, streamed to disk in resumable shards.

With several processes each takes every n-th shard; a shard is the same whoever captures it.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from tqdm.auto import tqdm

from dsteer_tl.capture_shard import (
    TokenBudget,
    capture_shard,
    default_token_budget,
    probe_positions,
)
from dsteer_tl.errors import ShapeError
from dsteer_tl.files import hash_content, read_json, replacing, write_json
from dsteer_tl.lens_model import LensModel
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe, check_lengths, content_hash
from dsteer_tl.processes import Processes
from dsteer_tl.shift_set import INDEX, Shard, readable_shard
from dsteer_tl.shift_set import ShiftSet as ShiftSet
from dsteer_tl.sites import check_site

logger = logging.getLogger(__name__)

_FORMAT = 1
#: Residuals are kept as float32.
_NUMBER_BYTES = 4


@dataclass(frozen=True, slots=True)
class CaptureConfiguration:
    """How residuals are captured; none of it changes the numbers beyond rounding.

    A shard is what is lost when a process is killed, and what it holds in memory. It ends with the
    sequence that reaches the first of three limits: many short sequences, few long ones, or few
    rows of a large model.

    Attributes:
        token_budget: Padded tokens a batch, at most; 0 for what suits the device
            (`default_token_budget`). A batch that does not fit into memory is halved, and so are
            those after it.
        shard_sequences: Sequences a shard, at most.
        shard_tokens: Tokens a shard, at most: so many batches that nearly all are full.
        shard_bytes: Bytes of residuals a shard, at most.
        progress: Show a progress bar.
    """

    token_budget: int = 0
    shard_sequences: int = 256
    shard_tokens: int = 8 * 4096
    shard_bytes: int = 2**30
    progress: bool = True


def capture_shifts(
    pair: ModelPair,
    probes: Sequence[Probe],
    *,
    sites: Sequence[str] | None = None,
    controls: Mapping[str, LensModel] | None = None,
    folder: Path | None = None,
    configuration: CaptureConfiguration | None = None,
    processes: Processes | None = None,
) -> ShiftSet:
    """Run base and policy over the same tokens and keep the residuals at the probes' positions.

    Rows are gathered inside the hooks; memory does not grow with the number of prompts except for
    the rows of one shard. With a folder, an interrupted capture continues at its last shard, and a
    finished one is opened as it is.

    Args:
        pair: Base and policy.
        probes: Sequences and positions, from `probes_from_prompts` or `probes_from_pairs`. Read
            twice, one by one: a sequence that lies on disk stays there.
        sites: Default: every ``resid_post`` and ``h``.
        controls: Further models by name, captured at the same rows (null models).
        folder: Where to keep the shards; without it they stay in memory.
        configuration: Batch and shard sizes.
        processes: Those that share the work, all of which call this with the same arguments and a
            folder that all see. By default this process does everything.

    Raises:
        DataError: A sequence is longer than the context, or does not fit into memory alone.
        HookError: A site does not exist.
        RunError: The folder cannot be written.
    """
    configuration = configuration or CaptureConfiguration()
    models = {"base": pair.base, "policy": pair.policy, **(controls or {})}
    sites = tuple(sites or pair.base.sites)
    for site in sites:
        check_site(site, pair.base.n_layers, pair.base.name)
    survey = _survey(probes)
    if not sum(survey.rows):
        raise ShapeError(
            f"there is nothing to capture: {len(probes)} probes were given and none has a position"
        )
    n_ctx = min(model.n_ctx for model in models.values())
    if max(survey.lengths) > n_ctx:
        check_lengths(probes, n_ctx, pair.base.name)
    hashes = {name: model.weights_hash for name, model in models.items()}
    width = sum(model.d_model for model in models.values())
    ranges = list(_shard_ranges(survey, width * len(sites) * _NUMBER_BYTES, configuration))
    processes = Processes() if processes is None or folder is None else processes
    if folder is not None:
        ends = [own.stop for own in ranges]
        key = hash_content([_FORMAT, hashes, sites, survey.kinds, survey.hash, ends])
        if processes.is_main:
            _prepare_folder(folder, key)
        processes.wait()

    shards: list[Path | Shard] = []
    budget = TokenBudget(configuration.token_budget or default_token_budget(pair.base.device))
    work = processes.share(list(enumerate(ranges)))
    shown = configuration.progress and processes.is_main
    with tqdm(
        total=sum(len(own) for _, own in work), desc="capture", unit="prompt", disable=not shown
    ) as bar:
        for number, own in work:
            path = None if folder is None else _shard_path(folder, number)
            if path is not None and readable_shard(path):
                bar.update(len(own))
                continue
            chosen = probes[own.start : own.stop]
            shard = capture_shard(models, chosen, sites, survey.kinds, budget, bar)
            if path is None:
                shards.append(shard)
            else:
                with replacing(path) as temporary:
                    save_file(shard, temporary)
    if folder is not None:
        shards = [_shard_path(folder, number) for number in range(len(ranges))]
        processes.wait()
        if processes.is_main:
            write_json(
                folder / INDEX,
                {
                    "key": key,
                    "finished": True,
                    "sites": sites,
                    "models": list(models),
                    "kinds": survey.kinds,
                    "hashes": hashes,
                    "shards": [shard.name for shard in shards if isinstance(shard, Path)],
                },
            )
        processes.wait()
    return ShiftSet(shards, sites=sites, models=list(models), kinds=survey.kinds, hashes=hashes)


def captured_files(folder: Path) -> list[Path]:
    """What a finished capture has written."""
    return [folder / INDEX, *sorted(folder.glob("shard-*.safetensors"))]


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class _Survey:
    """What one look at all probes gives: tokens and rows of each, the kinds, and an identity."""

    lengths: array[int]
    rows: array[int]
    kinds: tuple[str, ...]
    hash: str


def _survey(probes: Iterable[Probe]) -> _Survey:
    lengths, rows = array("q"), array("q")
    kinds: dict[str, None] = {}

    def seen() -> Iterator[Probe]:
        for probe in probes:
            lengths.append(len(probe.ids))
            rows.append(len(probe_positions(probe)))
            kinds.update(dict.fromkeys(probe.positions))
            yield probe

    found = content_hash(seen())
    return _Survey(lengths, rows, tuple(kinds), found)


def _shard_ranges(
    survey: _Survey, row_bytes: int, configuration: CaptureConfiguration
) -> Iterator[range]:
    start = tokens = rows = 0
    for index, (length, own) in enumerate(zip(survey.lengths, survey.rows, strict=True)):
        full = (
            index - start >= configuration.shard_sequences
            or tokens + length > configuration.shard_tokens
            or (rows + own) * row_bytes > configuration.shard_bytes
        )
        if full and index > start:
            yield range(start, index)
            start, tokens, rows = index, 0, 0
        tokens, rows = tokens + length, rows + own
    yield range(start, len(survey.lengths))


def _prepare_folder(folder: Path, key: str) -> None:
    """Keep the shards of the same capture; clear those of another one."""
    index = folder / INDEX
    if index.is_file():
        content = read_json(index)
        if isinstance(content, dict) and content.get("key") == key:
            return
    # Only what a capture wrote: the folder may be the user's own.
    old = list(folder.glob("shard-*.safetensors"))
    if old:
        logger.info("clearing %s: it holds another capture", folder)
    # What a killed process left half-written is in nobody's way, but for good.
    for path in (*old, *folder.glob(".shard-*.safetensors.partial")):
        path.unlink()
    write_json(index, {"key": key, "finished": False})
