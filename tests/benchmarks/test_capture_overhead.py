"""What reading every layer of two models costs over running them.

Collected only when asked for: `pytest tests/benchmarks`. Ratios go into `figures/benchmarks.json`;
no time is asserted, since it depends on the machine and on what else runs there.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from tests.benchmarks.results import (
    median_seconds,
    not_run_entry,
    ratio_entry,
    timed_in_turn,
    write_result,
)
from tests.benchmarks.works import (
    KIND,
    WORKS,
    Work,
    captured,
    floor,
    ragged_probes,
    sorted_batches,
    usable_backends,
)

TARGET = 1.10


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_capture_overhead(work: Work) -> None:
    models = work.models()
    layers = models["base"].config.num_hidden_layers
    probes = ragged_probes(work.prompts, models["base"].config.vocab_size)
    order = [index for batch in sorted_batches(probes) for index in batch.indices]
    usable, lacking = usable_backends()
    pairs = {backend: work.pair(backend) for backend in usable}

    plain = partial(floor, models, probes)
    states = plain()  # warm-up, and the work compared
    for pair in pairs.values():
        shift_set = captured(pair, probes)
        assert shift_set.sites == pair.base.sites and len(shift_set.sites) == layers + 1
        for place, model in enumerate(("base", "policy")):
            expected = torch.cat(states[place::2])[np.argsort(order)]
            found = torch.from_numpy(shift_set.residuals(model, "h", KIND))
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)

    runs = [partial(captured, pair, probes) for pair in pairs.values()]
    floor_times, *times = timed_in_turn([plain, *runs])
    for backend, found_times in zip(pairs, times, strict=True):
        entry = ratio_entry(found_times, floor_times, target=TARGET, direction="<=")
        assert np.isfinite(entry["ratio"])
        write_result(
            f"capture_overhead_{work.name}_{backend}",
            entry
            | {
                "prompts": work.prompts,
                "floor_seconds": round(median_seconds(floor_times), 4),
                "prompts_per_second": round(work.prompts / median_seconds(found_times), 1),
            },
        )
    for backend, reason in lacking.items():
        write_result(
            f"capture_overhead_{work.name}_{backend}",
            not_run_entry(reason, target=TARGET, direction="<="),
        )
