"""Moments against the rows that they stand for, and accumulation against capture."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.capture import CaptureConfiguration, capture_shifts
from dsteer_tl.cosines import cosines_to_mean, unit_rows
from dsteer_tl.errors import ConfigurationError, DataError, HookError, RunError, ShapeError
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe, probes_from_pairs, probes_from_prompts
from dsteer_tl.processes import Processes
from dsteer_tl.spectra import spectrum
from dsteer_tl.streaming.accumulation import AccumulationConfiguration, accumulate_shifts
from dsteer_tl.streaming.moments import FOLDS, Moments, folds_and_signs
from dsteer_tl.streaming.probe_table import probe_table_from_prompts
from dsteer_tl.streaming.shift_moments import ShiftMoments
from tests.tiny_pairs import PAIRS, tiny_pair

D = 5
QUIET = CaptureConfiguration(progress=False, shard_sequences=3, token_budget=64)
EAGER = AccumulationConfiguration(groups=4, checkpoint_seconds=0)
PROMPTS = tuple(
    f"{beginning} the {noun} {end}"
    for beginning in ("Once upon a time", "He said", "Nobody knew", "Once upon a time")
    for noun in ("river", "dog", "bird")
    for end in ("was low", "came")
)


def sample(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((n, D)) * np.arange(1, D + 1) + 1.0
    rows[generator.integers(n)] = 0.0
    return rows, generator.integers(2**53, size=n // 3)[generator.integers(n // 3, size=n)]


def moments_of(rows: np.ndarray, prompts: np.ndarray) -> Moments:
    found = Moments(rows.shape[1])
    found.update(rows, prompts)
    return found


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 60), v_seed=st.integers(0, 99))
def test_moments_are_what_the_rows_say(seed: int, cut: int, v_seed: int) -> None:
    rows, prompts = sample(seed)
    found = moments_of(rows[:cut], prompts[:cut])
    found.merge(moments_of(rows[cut:], prompts[cut:]))
    norms = np.linalg.norm(rows, axis=1)
    assert found.n == 60
    assert found.mean_norm == pytest.approx(norms.mean())
    assert found.mean_square_norm == pytest.approx(np.mean(norms**2))
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-12)
    assert found.cos_mean() == pytest.approx(cosines_to_mean(rows).mean())
    vector = np.random.default_rng(v_seed).standard_normal(D)
    mean_cosine = np.mean(unit_rows(rows) @ vector) / np.linalg.norm(vector)
    assert found.mean_direction @ vector / np.linalg.norm(vector) == pytest.approx(mean_cosine)
    for centred in (False, True):
        assert found.gram.spectrum(centred=centred).entropy == pytest.approx(
            spectrum(rows, centred=centred).entropy, abs=1e-9
        )


@pytest.mark.parametrize("flipped", [False, True])
def test_a_fold_is_judged_by_the_others(flipped: bool) -> None:
    rows, prompts = sample(0)
    found = moments_of(rows, prompts)
    folds, signs = folds_and_signs(prompts)
    if flipped:
        rows = rows * signs[:, None]
    expected = np.zeros(len(rows))
    for fold in set(folds.tolist()):
        own = folds == fold
        vector = rows[~own].mean(axis=0)
        expected[own] = unit_rows(rows[own]) @ (vector / np.linalg.norm(vector))
    assert found.cos_held_out(flipped=flipped) == pytest.approx(expected.mean())
    assert found.cos_mean(flipped=flipped) == pytest.approx(cosines_to_mean(rows).mean())
    if flipped:
        np.testing.assert_allclose(found.flipped_mean(), rows.mean(axis=0), atol=1e-12)


def test_folds_and_signs_are_even_and_independent() -> None:
    """Of consecutive numbers, which are the least random; within four standard deviations."""
    n = 100_000
    folds, signs = folds_and_signs(np.arange(n))
    assert set(signs) == {-1.0, 1.0}
    counts = np.bincount(folds, minlength=FOLDS)
    assert np.abs(counts - n / FOLDS).max() < 4 * math.sqrt(n / FOLDS)
    sums = np.bincount(folds, weights=signs, minlength=FOLDS)
    assert np.abs(sums).max() < 4 * math.sqrt(n / FOLDS)
    again, same = folds_and_signs(np.arange(n)[::-1])
    np.testing.assert_array_equal(again[::-1], folds)
    np.testing.assert_array_equal(same[::-1], signs)


def test_noise_has_no_held_out_cosine() -> None:
    """A row inside its own mean has a cosine of about 1/√n with it; held out it has none."""
    n, d = 400, 400
    rows = np.random.default_rng(0).standard_normal((n, d))
    found = moments_of(rows, np.arange(n))
    assert found.cos_mean() == pytest.approx(1 / math.sqrt(n), rel=0.1)
    assert abs(found.cos_held_out()) < 4 / math.sqrt(n * d)
    assert abs(found.cos_held_out(flipped=True)) < 4 / math.sqrt(n * d)


def test_little_or_nothing() -> None:
    found = Moments(D)
    found.update(np.zeros((0, D)), np.zeros(0, dtype=int))
    found.merge(Moments(D))
    assert found.n == 0 and math.isnan(found.mean_norm) and math.isnan(found.cos_mean())
    found.update(np.ones((3, D)), np.zeros(3, dtype=int))
    assert found.cos_mean() == pytest.approx(1.0)
    assert math.isnan(found.cos_held_out())  # one prompt alone
    found = moments_of(np.zeros((4, D)), np.arange(4))
    assert found.mean_norm == 0 and math.isnan(found.cos_mean())


def test_refused_blocks() -> None:
    found = moments_of(*sample(1))
    before = found.to_state()
    with pytest.raises(ShapeError, match=r"prompts: found shape \(2,\), expected \(3,\)"):
        found.update(np.ones((3, D)), np.zeros(2, dtype=int))
    with pytest.raises(ShapeError, match="NaN or infinite"):
        found.update(np.full((1, D), np.nan), np.zeros(1, dtype=int))
    with pytest.raises(ShapeError, match="found d_model 4, expected 5"):
        found.update(np.ones((1, 4)), np.zeros(1, dtype=int))
    with pytest.raises(ShapeError, match="found d_model 4, expected 5"):
        found.merge(Moments(4))
    for name, values in found.to_state().items():
        np.testing.assert_array_equal(values, before[name])
    with pytest.raises(ShapeError, match="found nothing for norms"):
        Moments.from_state({name: values for name, values in before.items() if name != "norms"})
    with pytest.raises(ShapeError, match=r"found \(2, 10, 4\) for sums, expected \(2, 10, 5\)"):
        Moments.from_state(before | {"sums": np.zeros((2, FOLDS, 4))})


def state_of(moments: ShiftMoments) -> dict[str, np.ndarray]:
    return {
        f"{site} {kind} {name}": values
        for site, kind, found in moments.places()
        for name, values in found.to_state().items()
    }


def assert_same(one: ShiftMoments, other: ShiftMoments) -> None:
    first, second = state_of(one), state_of(other)
    assert first.keys() == second.keys() and one.hashes == other.hashes
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values, err_msg=name)


def test_saved_moments_come_back_exactly(tmp_path: Path) -> None:
    found = ShiftMoments.empty(D, sites=["resid_post.0", "h"], kinds=["a", "b"], hashes={"x": "y"})
    for number, (_, _, own) in enumerate(found.places()):
        own.update(*sample(number))
    found.save(tmp_path / "moments")
    assert [path.name for path in tmp_path.iterdir()] == ["moments"]
    again = ShiftMoments.open(tmp_path / "moments")
    assert_same(found, again)
    loaded = again.loaded()
    for moments in (found, loaded):
        for _, _, own in moments.places():
            own.update(*sample(9))
    assert_same(found, loaded)
    found.save(tmp_path / "moments")  # over the first
    assert_same(found, again)
    with pytest.raises(ShapeError, match=r"no moments of 'a' at 'resid_post\.1'"):
        found.at("resid_post.1", "a")
    (tmp_path / "moments" / "h.a.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"h\.a\.safetensors is missing or damaged"):
        again.at("h", "a")
    with pytest.raises(RunError, match=r"moments\.json is missing"):
        ShiftMoments.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*; free the space or mend the path"):
        found.save(tmp_path / "file" / "moments")


# Accumulation


def probes(pair: ModelPair) -> tuple[Probe, ...]:
    return probes_from_prompts(pair.tokenizer, PROMPTS)


def assert_close_to_capture(moments: ShiftMoments, pair: ModelPair, own: tuple[Probe, ...]) -> None:
    shifts = capture_shifts(pair, own, sites=moments.sites, configuration=QUIET)
    for site, kind, found in moments.places():
        rows = shifts.shifts(site, kind)
        assert found.n == len(rows)
        np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(found.gram.gram, rows.T @ rows, atol=1e-5)
        assert found.cos_mean() == pytest.approx(cosines_to_mean(rows).mean(), abs=1e-6)


def test_moments_are_those_of_the_captured_rows() -> None:
    pair = tiny_pair()
    own = probes(pair)
    assert_close_to_capture(accumulate_shifts(pair, own, configuration=QUIET), pair, own)
    pairs = probes_from_pairs(pair.tokenizer, PAIRS)
    found = accumulate_shifts(pair, pairs, sites=["h"], configuration=QUIET)
    assert found.sites == ("h",) and found.kinds == ("last_prompt", "divergence", "response")
    assert_close_to_capture(found, pair, pairs)
    some = accumulate_shifts(pair, pairs, sites=["h"], kinds=["response"], configuration=QUIET)
    assert some.kinds == ("response",)
    assert some.at("h", "response").n == found.at("h", "response").n


def test_memory_disk_and_tables_agree(tmp_path: Path) -> None:
    pair = tiny_pair()
    settings = {"configuration": QUIET, "accumulation": EAGER}
    memory = accumulate_shifts(pair, probes(pair), **settings)  # type: ignore[arg-type]
    folder = tmp_path / "moments"
    disk = accumulate_shifts(pair, probes(pair), folder=folder, **settings)  # type: ignore[arg-type]
    assert_same(memory, disk)
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "total"]
    source = tmp_path / "prompts.txt"
    source.write_text("\n".join(PROMPTS))
    table = probe_table_from_prompts(pair.tokenizer, source, tmp_path / "probes")
    streamed = accumulate_shifts(pair, table, **settings)  # type: ignore[arg-type]
    for site, kind, found in streamed.places():
        expected = memory.at(site, kind)
        np.testing.assert_array_equal(found.gram.gram, expected.gram.gram)
        assert found.cos_mean() == pytest.approx(expected.cos_mean(), abs=1e-12)


@dataclass(frozen=True)
class Together(Processes):
    """Processes that are threads of this one, each with models of its own."""

    barrier: Any = None

    def wait(self) -> None:
        self.barrier.wait(60)

    def agreed(self, value: Any) -> Any:
        return value


def in_threads(count: int, folder: Path, pairs: list[ModelPair]) -> list[ShiftMoments]:
    barrier = threading.Barrier(count)
    found: dict[int, ShiftMoments] = {}

    def run(index: int) -> None:
        found[index] = accumulate_shifts(
            pairs[index],
            probes(pairs[index]),
            folder=folder,
            configuration=QUIET,
            accumulation=EAGER,
            processes=Together(index, count, index, barrier),
        )

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[index] for index in range(count)]


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    pairs = [tiny_pair.__wrapped__() for _ in range(3)]
    alone = in_threads(1, tmp_path / "1", pairs)[0]
    for count in (2, 3):
        for found in in_threads(count, tmp_path / str(count), pairs):
            assert_same(alone, found)


@contextmanager
def failing(pair: ModelPair, after: int) -> Iterator[list[int]]:
    """Counts the passes of the base and ends the process at one of them."""
    lens: Any = pair.base
    original, passes = lens.capture, []

    def capture(*arguments: Any, **keywords: Any) -> Any:
        if len(passes) == after:
            raise KeyboardInterrupt
        passes.append(1)
        return original(*arguments, **keywords)

    lens.capture = capture
    try:
        yield passes
    finally:
        del lens.capture


#: One sequence a pass, two a shard: 24 prompts, 12 shards, 4 groups of 3.
ONE_BY_ONE = CaptureConfiguration(progress=False, shard_sequences=2, token_budget=1)


def test_an_interrupted_accumulation_goes_on_with_other_processes(tmp_path: Path) -> None:
    pair = tiny_pair()
    settings: dict[str, Any] = {"configuration": ONE_BY_ONE, "accumulation": EAGER}
    whole = accumulate_shifts(pair, probes(pair), **settings)
    with failing(pair, after=11), pytest.raises(KeyboardInterrupt):
        accumulate_shifts(pair, probes(pair), folder=tmp_path, **settings)
    # The sixth shard was half done: the second of two processes has nothing, the first two groups.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "group-000-000000003",
        "group-001-000000002",
        "index.json",
    ]
    done = threading.Barrier(1)
    with failing(pair, after=99) as passes:
        second = Together(1, 2, 1, done)
        with pytest.raises(RunError, match="is missing"):  # the main process has not merged yet
            accumulate_shifts(pair, probes(pair), folder=tmp_path, processes=second, **settings)
    assert len(passes) == 2 + 6
    with failing(pair, after=99) as passes:
        resumed = accumulate_shifts(pair, probes(pair), folder=tmp_path, **settings)
    assert len(passes) == 6
    assert_same(whole, resumed)
    with failing(pair, after=0):
        assert_same(whole, accumulate_shifts(pair, probes(pair), folder=tmp_path, **settings))


def test_a_state_on_disk_is_not_written_too_often(tmp_path: Path) -> None:
    pair = tiny_pair()
    rare = AccumulationConfiguration(groups=4, checkpoint_seconds=3600)
    with failing(pair, after=11), pytest.raises(KeyboardInterrupt):
        accumulate_shifts(
            pair, probes(pair), folder=tmp_path, configuration=ONE_BY_ONE, accumulation=rare
        )
    assert [path.name for path in tmp_path.glob("group-*")] == ["group-000-000000003"]


def test_other_work_replaces_the_states_and_nothing_else(tmp_path: Path) -> None:
    pair = tiny_pair()
    (tmp_path / "thesis.tex").write_text("mine")
    settings: dict[str, Any] = {"configuration": ONE_BY_ONE, "accumulation": EAGER}
    with failing(pair, after=11), pytest.raises(KeyboardInterrupt):
        accumulate_shifts(pair, probes(pair), folder=tmp_path, **settings)
    (tmp_path / ".group-001-000000003.partial").mkdir()  # of a process that was killed
    with failing(pair, after=99) as passes:
        found = accumulate_shifts(pair, probes(pair)[:4], folder=tmp_path, sites=["h"], **settings)
    assert len(passes) == 4 and found.sites == ("h",) and found.at("h", "last_prompt").n == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "thesis.tex", "total"]


def test_refusals(tmp_path: Path) -> None:
    pair = tiny_pair()
    with pytest.raises(ShapeError, match="there is nothing to accumulate: 0 probes"):
        accumulate_shifts(pair, [])
    with pytest.raises(HookError, match="does not exist"):
        accumulate_shifts(pair, probes(pair), sites=["resid_post.9"])
    with pytest.raises(DataError, match="more than the context"):
        accumulate_shifts(pair, [Probe(0, (2,) * 65, {"last_prompt": (64,)})])
    with pytest.raises(RunError, match="2 processes accumulate shifts without a folder"):
        accumulate_shifts(pair, probes(pair), processes=Processes(0, 2))
    with pytest.raises(ConfigurationError, match="found 0 groups"):
        AccumulationConfiguration(groups=0)
