"""Captures that do not fit into memory at once, and what a shard and a look at the probes cost."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dsteer_tl.capture import (
    CaptureConfiguration,
    ShiftSet,
    _shard_ranges,
    _Survey,
    capture_shifts,
)
from dsteer_tl.errors import DataError
from dsteer_tl.experiment.configuration import build_configuration
from dsteer_tl.experiment.loaded_run import LoadedRun
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from dsteer_tl.processes import Processes
from tests.tiny_pairs import probes

QUIET = CaptureConfiguration(progress=False)


@dataclass
class Device:
    """A device on which only batches up to a size fit.

    Attributes:
        room: Padded tokens that fit.
        error: What is said of larger ones.
        tried: Padded tokens of all batches in order.
    """

    room: int
    error: Exception
    tried: list[int] = field(default_factory=list)


@contextmanager
def running_on(device: Device, pair: ModelPair) -> Iterator[Device]:
    """The policy runs out of memory when the base's rows are already there."""
    lens: Any = pair.policy
    original = lens.capture

    def capture(ids: Tensor, *arguments: Any, **settings: Any) -> Any:
        device.tried.append(ids.numel())
        if ids.numel() > device.room:
            raise device.error
        return original(ids, *arguments, **settings)

    lens.capture = capture
    try:
        yield device
    finally:
        del lens.capture


def rows(found: ShiftSet) -> dict[str, np.ndarray]:
    columns = {f"prompts {kind}": found.prompts(kind) for kind in found.kinds}
    columns |= {f"positions {kind}": found.positions(kind) for kind in found.kinds}
    return columns | {
        f"{site} {kind}": found.shifts(site, kind) for site in found.sites for kind in found.kinds
    }


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
LONGEST = max(len(probe.ids) for probe in probes())


@pytest.mark.parametrize(
    ("room", "error"),
    [
        (LONGEST, RuntimeError("DefaultCPUAllocator: can't allocate memory")),
        (2 * LONGEST, CUDA),
        (5 * LONGEST, MemoryError()),
    ],
)
def test_batches_that_do_not_fit_are_halved(
    tiny_pair: ModelPair, room: int, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    whole = rows(capture_shifts(tiny_pair, probes(), configuration=QUIET))
    with (
        running_on(Device(room, error), tiny_pair) as device,
        caplog.at_level(logging.WARNING, "dsteer_tl"),
    ):
        found = rows(capture_shifts(tiny_pair, probes(), configuration=QUIET))
    assert found.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5, err_msg=name)
    # Every failure halves at least what was tried, and nothing that large is tried again.
    refused = [size for size in device.tried if size > room]
    assert refused
    assert all(later <= before // 2 for before, later in pairwise(refused))
    last = max(index for index, size in enumerate(device.tried) if size > room)
    assert all(size <= max(refused[-1] // 2, LONGEST) for size in device.tried[last + 1 :])
    (record,) = caplog.records
    assert f"a batch of {refused[-1]} padded tokens did not fit" in record.message
    assert record.message.endswith(f"with at most {refused[-1] // 2}")


def test_the_smaller_budget_holds_for_later_shards(tiny_pair: ModelPair, tmp_path: Path) -> None:
    four = CaptureConfiguration(progress=False, shard_sequences=4)
    with running_on(Device(2 * LONGEST, CUDA), tiny_pair) as device:
        capture_shifts(tiny_pair, probes(), folder=tmp_path, configuration=four)
    refused = [index for index, size in enumerate(device.tried) if size > device.room]
    assert len(list(tmp_path.glob("shard-*"))) == 2
    assert refused == [0]


def test_one_sequence_that_does_not_fit(tiny_pair: ModelPair, tmp_path: Path) -> None:
    with (
        running_on(Device(LONGEST - 1, CUDA), tiny_pair),
        pytest.raises(DataError, match=rf"prompt \d+ has {LONGEST} tokens, .* even alone \(CUDA o"),
    ):
        capture_shifts(tiny_pair, probes(), folder=tmp_path, configuration=QUIET)
    assert not list(tmp_path.glob("*shard-*"))


def test_other_errors_are_not_taken_for_memory(tiny_pair: ModelPair) -> None:
    with (
        running_on(Device(0, RuntimeError("expected 2 dimensions")), tiny_pair) as device,
        pytest.raises(RuntimeError, match="expected 2 dimensions"),
    ):
        capture_shifts(tiny_pair, probes(), configuration=QUIET)
    assert len(device.tried) == 1


# What a shard holds


@given(
    sequences=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9)), min_size=1, max_size=60),
    limits=st.tuples(st.integers(1, 9), st.integers(1, 120), st.integers(1, 40)),
)
def test_shards_are_runs_of_sequences_within_three_limits(
    sequences: list[tuple[int, int]], limits: tuple[int, int, int]
) -> None:
    lengths, counts = (array("q", column) for column in zip(*sequences, strict=True))
    configuration = CaptureConfiguration(
        shard_sequences=limits[0], shard_tokens=limits[1], shard_bytes=10 * limits[2]
    )
    survey = _Survey(lengths, counts, (), "")
    ranges = list(_shard_ranges(survey, 10, configuration))
    assert [index for own in ranges for index in own] == list(range(len(sequences)))

    def fits(indices: Sequence[int]) -> bool:
        return (
            len(indices) <= limits[0]
            and sum(lengths[index] for index in indices) <= limits[1]
            and sum(counts[index] for index in indices) <= limits[2]
        )

    assert all(len(own) == 1 or fits(own) for own in ranges)
    # None ends before it is full.
    assert all(not fits([*own, own.stop]) for own in ranges[:-1])


class Lazy(Sequence[Probe]):
    """Probes that are made when they are asked for, each time anew."""

    def __init__(self) -> None:
        self.made = 0

    def __len__(self) -> int:
        return len(probes())

    @overload
    def __getitem__(self, index: int) -> Probe: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Probe, ...]: ...
    def __getitem__(self, index: int | slice) -> Probe | tuple[Probe, ...]:
        found = probes()[index]
        self.made += len(found) if isinstance(found, tuple) else 1
        return found

    def __iter__(self) -> Iterator[Probe]:
        for probe in probes():
            self.made += 1
            yield probe


def test_probes_may_lie_on_disk(tiny_pair: ModelPair, tmp_path: Path) -> None:
    lazy = Lazy()
    two = CaptureConfiguration(progress=False, shard_sequences=2)
    found = rows(capture_shifts(tiny_pair, lazy, folder=tmp_path, configuration=two))
    assert lazy.made == 2 * len(lazy)
    whole = rows(capture_shifts(tiny_pair, probes(), configuration=two))
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    # They are the same capture: nothing is read again but what says so.
    capture_shifts(tiny_pair, lazy, folder=tmp_path, configuration=two)
    assert lazy.made == 3 * len(lazy)


# GPUs


@pytest.mark.parametrize(
    ("device", "processes", "expected"),
    [
        ("cuda", Processes(5, 8, 1), "cuda:1"),
        ("cuda", Processes(), "cuda"),
        ("cuda:0", Processes(5, 8, 1), "cuda:0"),
        ("cpu", Processes(5, 8, 1), "cpu"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(
    device: str, processes: Processes, expected: str, tmp_path: Path
) -> None:
    settings = {"model": {"device": device}, "base": "b", "policy": "p"}
    run = LoadedRun(build_configuration(settings), tmp_path, processes=processes)
    assert (run.options.device, run.policy_options.device) == (expected, expected)
    assert run.progress is processes.is_main
