"""Shifts of any number of prompts into their moments: resumable, and divided among processes."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm.auto import tqdm

from dsteer_tl import positions
from dsteer_tl.capture import CaptureConfiguration
from dsteer_tl.capture_shard import TokenBudget, capture_shard, default_token_budget
from dsteer_tl.errors import ConfigurationError, RunError, ShapeError
from dsteer_tl.files import hash_content, read_json, write_json
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe, check_lengths
from dsteer_tl.processes import Processes
from dsteer_tl.shift_set import ShiftSet
from dsteer_tl.sites import check_site
from dsteer_tl.streaming.moments import Moments
from dsteer_tl.streaming.probe_table import ProbeTable
from dsteer_tl.streaming.shift_moments import ShiftMoments

logger = logging.getLogger(__name__)

_FORMAT = 1
_INDEX = "index.json"
_TOTAL = "total"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccumulationConfiguration:
    """How the work is cut; none of it changes the numbers beyond rounding.

    Attributes:
        groups: Parts that the prompts are cut into, each with a state of its own on disk, whatever
            their number. At least as many as processes, best a multiple.
        checkpoint_seconds: Least time between two states of a group on disk: what a process that
            is killed loses.
    """

    groups: int = 16
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.groups < 1 or self.checkpoint_seconds < 0:
            raise ConfigurationError(
                f"found {self.groups} groups and {self.checkpoint_seconds} s between states; "
                "expected at least 1 group and no negative time"
            )


def accumulate_shifts(
    pair: ModelPair,
    probes: Sequence[Probe],
    *,
    sites: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    folder: Path | None = None,
    configuration: CaptureConfiguration | None = None,
    accumulation: AccumulationConfiguration | None = None,
    processes: Processes | None = None,
) -> ShiftMoments:
    """Run base and policy over the same tokens and keep the moments of the shifts alone.

    As `capture_shifts`, but no row is kept: neither memory nor disk grow with the prompts. Memory
    is one state, sites · kinds · d_model² · 8 bytes (4.4 GB for 33 sites of 4,096 dimensions:
    choose sites), and the rows of one shard. On disk lie up to `AccumulationConfiguration.groups`
    states until they are merged into one.

    The prompts are cut into groups of shards. Each group is accumulated by one process, shard by
    shard, and the groups are merged in their order at the end. So the result does not depend on how
    many processes there were, and an interrupted call continues at the last state of each group,
    with any number of processes.

    Args:
        pair: Base and policy.
        probes: Sequences and positions; a `ProbeTable` for more than fit into memory.
        sites: Default: every ``resid_post`` and ``h``.
        kinds: Position kinds; default all of the probes.
        folder: Where states and result are kept; all processes see the same one.
        configuration: Batch and shard sizes.
        accumulation: How the work is cut.
        processes: The processes of the launch; one without it.

    Raises:
        DataError: A sequence is longer than the context.
        HookError: A site does not exist.
        ShapeError: There is nothing to accumulate.
        RunError: The folder cannot be written, or several processes have none.
    """
    configuration = configuration or CaptureConfiguration()
    accumulation = accumulation or AccumulationConfiguration()
    processes = processes or Processes()
    work = _Work(
        pair=pair,
        probes=probes,
        sites=tuple(sites or pair.base.sites),
        kinds=tuple(kinds or _kinds(probes)),
        configuration=configuration,
        accumulation=accumulation,
        budget=TokenBudget(configuration.token_budget or default_token_budget(pair.base.device)),
    )
    work.check()
    if folder is None:
        if processes.count > 1:
            raise RunError(
                f"{processes.count} processes accumulate shifts without a folder: give one that "
                "all of them see, through which they exchange what they found"
            )
        total = work.empty()
        for number in range(len(work.groups)):
            group = work.accumulated(number, None, show=True)
            for site, kind, own in total.places():
                own.merge(group.at(site, kind))
        return total
    key = work.key()
    if processes.is_main:
        _prepare(folder, key)
    processes.wait()
    if not processes.agreed(_is_finished(folder)):
        for number in processes.share(range(len(work.groups))):
            work.accumulated(number, folder, show=processes.is_main)
        processes.wait()
        if processes.is_main:
            _finish(folder, key, work)
    processes.wait()
    return ShiftMoments.open(folder / _TOTAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    pair: ModelPair
    probes: Sequence[Probe]
    sites: tuple[str, ...]
    kinds: tuple[str, ...]
    configuration: CaptureConfiguration
    accumulation: AccumulationConfiguration
    budget: TokenBudget

    @property
    def hashes(self) -> dict[str, str]:
        return {"base": self.pair.base.weights_hash, "policy": self.pair.policy.weights_hash}

    @property
    def groups(self) -> list[list[int]]:
        """For each group the numbers of its shards."""
        shards = -(-len(self.probes) // self.configuration.shard_sequences)
        count = min(self.accumulation.groups, shards)
        return [part.tolist() for part in np.array_split(np.arange(shards), count)]

    def check(self) -> None:
        base, policy = self.pair.base, self.pair.policy
        for site in self.sites:
            check_site(site, base.n_layers, base.name)
        if not (len(self.probes) and self.kinds):
            raise ShapeError(
                f"there is nothing to accumulate: {len(self.probes)} probes were given, with "
                f"{len(self.kinds)} kinds of positions"
            )
        n_ctx = min(base.n_ctx, policy.n_ctx)
        if not (isinstance(self.probes, ProbeTable) and self.probes.longest <= n_ctx):
            check_lengths(self.probes, n_ctx, base.name)

    def key(self) -> str:
        content = (
            self.probes.content_hash()
            if isinstance(self.probes, ProbeTable)
            else positions.content_hash(self.probes)
        )
        size, groups = self.configuration.shard_sequences, len(self.groups)
        return hash_content([_FORMAT, self.hashes, self.sites, self.kinds, content, size, groups])

    def empty(self) -> ShiftMoments:
        return ShiftMoments.empty(
            self.pair.base.d_model, sites=self.sites, kinds=self.kinds, hashes=self.hashes
        )

    def accumulated(self, number: int, folder: Path | None, *, show: bool) -> ShiftMoments:
        """The moments of a group; with a folder, from the last state there to its own on disk."""
        shards = self.groups[number]
        done, moments = (0, None) if folder is None else _last_state(folder, number)
        if folder is not None and done == len(shards) and moments is not None:
            return moments
        found = self.empty() if moments is None else moments.loaded()
        saved = time.monotonic()
        with tqdm(
            total=self._sequences(shards),
            initial=self._sequences(shards[:done]),
            desc=f"moments {number + 1}/{len(self.groups)}",
            unit="prompt",
            disable=not (show and self.configuration.progress),
        ) as bar:
            for place in range(done, len(shards)):
                self._add(self._shard(shards[place]), found, bar)
                last = place + 1 == len(shards)
                late = time.monotonic() - saved >= self.accumulation.checkpoint_seconds
                if folder is not None and (last or late):
                    _save_state(folder, number, place + 1, found)
                    saved = time.monotonic()
        return found

    def _shard(self, shard: int) -> Sequence[Probe]:
        size = self.configuration.shard_sequences
        return self.probes[shard * size : (shard + 1) * size]

    def _sequences(self, shards: Sequence[int]) -> int:
        size = self.configuration.shard_sequences
        return sum(min(size, len(self.probes) - shard * size) for shard in shards)

    def _add(self, probes: Sequence[Probe], moments: ShiftMoments, bar: tqdm[NoReturn]) -> None:
        wanted = [
            replace(probe, positions={k: p for k, p in probe.positions.items() if k in self.kinds})
            for probe in probes
        ]
        models = {"base": self.pair.base, "policy": self.pair.policy}
        shard = capture_shard(models, wanted, self.sites, self.kinds, self.budget, bar)
        named = {"sites": self.sites, "models": list(models), "kinds": self.kinds}
        shifts = ShiftSet([shard], **named, hashes=self.hashes)
        for site, kind, own in moments.places():
            own.update(shifts.shifts(site, kind), shifts.prompts(kind))


def _kinds(probes: Sequence[Probe]) -> tuple[str, ...]:
    if isinstance(probes, ProbeTable):
        return probes.kinds
    return tuple(dict.fromkeys(kind for probe in probes for kind in probe.positions))


def _prepare(folder: Path, key: str) -> None:
    """Keep the states of the same work; clear those of another one."""
    index = folder / _INDEX
    content = read_json(index) if index.is_file() else {}
    same = content.get("key") == key
    merged = same and content["finished"] and (folder / _TOTAL).is_dir()
    # Only what an accumulation wrote: the folder may be the user's own.
    old = [*folder.glob(".group-*.partial"), *folder.glob(f".{_TOTAL}.partial")]
    if merged:
        old += folder.glob("group-*-*")
    if not same:
        own = [*folder.glob("group-*-*"), *folder.glob(_TOTAL)]
        if own:
            logger.info("clearing %s: it holds other moments", folder)
        old += own
    for path in old:
        shutil.rmtree(path)
    if not same:
        write_json(index, {"key": key, "finished": False})


def _is_finished(folder: Path) -> bool:
    return bool(read_json(folder / _INDEX)["finished"]) and (folder / _TOTAL).is_dir()


def _states(folder: Path, number: int) -> list[Path]:
    """The states of a group, that with the fewest shards first."""
    return sorted(folder.glob(f"group-{number:03d}-*"))


def _last_state(folder: Path, number: int) -> tuple[int, ShiftMoments | None]:
    """How many shards of a group are done, and their moments."""
    states = _states(folder, number)
    if not states:
        return 0, None
    return int(states[-1].name.rpartition("-")[2]), ShiftMoments.open(states[-1])


def _save_state(folder: Path, number: int, done: int, moments: ShiftMoments) -> None:
    older = _states(folder, number)
    moments.save(folder / f"group-{number:03d}-{done:09d}")
    for path in older:
        shutil.rmtree(path)


def _finish(folder: Path, key: str, work: _Work) -> None:
    states = [_last_state(folder, number)[1] for number in range(len(work.groups))]
    groups = [state for state in states if state is not None]
    if len(groups) < len(work.groups):
        raise RunError(
            f"{folder} has the moments of {len(groups)} groups of {len(work.groups)}: a process "
            "ended early; run the same command again"
        )

    def merged(site: str, kind: str) -> Moments:
        total = Moments(work.pair.base.d_model)
        for group in groups:
            total.merge(group.at(site, kind))
        return total

    total = ShiftMoments(merged, sites=work.sites, kinds=work.kinds, hashes=work.hashes)
    total.save(folder / _TOTAL)
    write_json(folder / _INDEX, {"key": key, "finished": True})
    for path in folder.glob("group-*-*"):
        shutil.rmtree(path)
