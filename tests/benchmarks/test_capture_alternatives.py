"""Capture against other ways to read the same residuals of the same two models.

Every alternative reads the last prompt token of all layers of both models, is checked to find what
capture finds, and is timed in turn with it on the same prompts. Collected only when asked for:
`pytest tests/benchmarks`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsteer_tl.lens_model import Backend
from dsteer_tl.pair import ModelPair
from tests.benchmarks.alternatives import (
    all_sites,
    booted,
    hidden_state_sites,
    hidden_states,
    prompt_by_prompt,
    run_with_cache,
)
from tests.benchmarks.other_environment import Unavailable, Worker, save_models
from tests.benchmarks.results import (
    Timer,
    median_seconds,
    not_run_entry,
    ratio_entry,
    timed,
    times_in_turn,
    write_result,
)
from tests.benchmarks.works import (
    WORKS,
    Rows,
    Work,
    assert_same_rows,
    captured,
    floor,
    ragged_probes,
    usable_backends,
)

#: How many times as fast as each alternative capture should be.
TARGETS = {
    "hidden_states": 1.0,
    "run_with_cache": 3.0,
    "run_with_cache_filtered": 1.0,
    "prompt_by_prompt": 3.0,
    "steering_vectors": 3.0,
    "steering_vectors_batched": 3.0,
    "repeng": 3.0,
    "nnsight": 1.0,
}
WITHOUT_H = ("steering_vectors", "steering_vectors_batched")
WITHOUT_LAST_BLOCK = ("hidden_states", "prompt_by_prompt", "repeng")
ELSEWHERE = ("steering_vectors", "steering_vectors_batched", "repeng", "nnsight")
DEFAULT_BACKEND: Backend = inspect.signature(ModelPair.load).parameters["backend"].default


def sites_of(alternative: str, layers: int) -> list[str]:
    """What an alternative reads; each leaves out no more than what its package cannot give."""
    if alternative in WITHOUT_H:
        return all_sites(layers)[:-1]
    if alternative in WITHOUT_LAST_BLOCK:
        return hidden_state_sites(layers)
    return all_sites(layers)


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_capture_against_alternatives(work: Work, tmp_path: Path) -> None:
    models = work.models()
    layers = models["base"].config.num_hidden_layers
    probes = ragged_probes(work.shared_prompts, models["base"].config.vocab_size)
    folders = save_models(models, tmp_path)
    bridges = {name: booted(folder) for name, folder in folders.items()}
    ours = {
        backend: partial(captured, work.pair(backend), probes) for backend in usable_backends()[0]
    }
    expected = ours[DEFAULT_BACKEND]()

    here: dict[str, Callable[[], Rows]] = {
        "hidden_states": partial(hidden_states, models, probes),
        "run_with_cache": partial(run_with_cache, bridges, probes, filtered=False),
        "run_with_cache_filtered": partial(run_with_cache, bridges, probes, filtered=True),
        "prompt_by_prompt": partial(prompt_by_prompt, models, probes),
    }
    timers: dict[str, Timer] = {name: partial(timed, run) for name, run in here.items()}
    facts: dict[str, dict[str, Any]] = {name: {"package": package(name, {})} for name in here}
    lacking: dict[str, str] = {}
    for name, run in here.items():  # warm-up, and the work compared
        assert_same_rows(run(), expected, sites_of(name, layers))
    with contextlib.ExitStack() as stack:
        for name in ELSEWHERE:
            try:
                worker = stack.enter_context(Worker(name, folders, probes))
                worker.run()
                rows = worker.rows()
            except Unavailable as error:
                lacking[name] = str(error)
                continue
            assert_same_rows(rows, expected, sites_of(name, layers))
            timers[name] = worker.run
            facts[name] = {"package": package(name, worker.versions), "batch": worker.batch}
        own = [partial(timed, run) for run in ours.values()]
        plain = partial(timed, partial(floor, models, probes))
        floor_times, *times = times_in_turn([plain, *own, *timers.values()])
    own_times = dict(zip(ours, times, strict=False))
    for name, found in zip(timers, times[len(own) :], strict=True):
        # No way of reading can be faster than running: as much as any capture could win.
        most = ratio_entry(found, floor_times, target=TARGETS[name], direction=">=")["ratio"]
        by_backend = {
            backend: ratio_entry(found, other, target=TARGETS[name], direction=">=")
            for backend, other in own_times.items()
        }
        entry = by_backend[DEFAULT_BACKEND]
        assert np.isfinite(entry["ratio"])
        write_result(
            f"capture_against_{name}_{work.name}",
            entry
            | facts[name]
            | {
                "prompts": work.shared_prompts,
                "seconds": round(median_seconds(found), 4),
                "ratio_of_floor": most,
                "backend": DEFAULT_BACKEND,
                "ratio_by_backend": {key: one["ratio"] for key, one in by_backend.items()},
            },
        )
    for name, reason in lacking.items():
        write_result(
            f"capture_against_{name}_{work.name}",
            not_run_entry(reason, target=TARGETS[name], direction=">="),
        )


def package(alternative: str, versions: dict[str, str]) -> str:
    """What an alternative was run with."""
    if not versions:
        names = ("transformers", "torch")
        if alternative.startswith("run_with_cache"):
            names = ("transformer-lens", *names)
        versions = {name: version(name) for name in names}
    return ", ".join(f"{name} {found}" for name, found in versions.items())
