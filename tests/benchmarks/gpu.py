"""The benchmarks on a machine with a GPU, at the size of a real model with random weights.

``python -m tests.benchmarks.gpu --shape llama-2-7b --out figures/benchmarks.json``

Base and policy are made on the device, so nothing is downloaded: 27 GB of bfloat16 for the pair at
the 7B shape. Without CUDA every entry says that it was not run. ``--device cpu --shape tiny`` goes
through all of it where there is no GPU, to see that it works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dsteer_tl.capture import CaptureConfiguration, capture_shifts
from dsteer_tl.directions import SteeringVector
from dsteer_tl.lens_model import LensModel, pad
from dsteer_tl.pair import ModelPair
from dsteer_tl.sites import FINAL, resid_post
from dsteer_tl.steering.interventions import Intervention
from dsteer_tl.steering.packed_generation import generate_rows
from dsteer_tl.steering.scored import TokenSequence
from dsteer_tl.steering.teacher_forced import Engine, Setting, score_sequences
from dsteer_tl.steering.token_choice import Decoding
from tests.benchmarks.gpu_shapes import SHAPES, random_pair
from tests.benchmarks.results import (
    REPETITIONS,
    median_seconds,
    not_run_entry,
    ratio_entry,
    read_results,
    timed_in_turn,
    value_entry,
    write_result,
)
from tests.benchmarks.works import KIND, floor, ragged_probes
from tests.models import tiny_tokenizer

#: Target and direction of every entry.
ENTRIES = {
    "gpu_correctness_float32": (1e-3, "<="),
    "gpu_correctness_bfloat16": (3e-2, "<="),
    "gpu_capture_overhead": (1.10, "<="),
    "gpu_peak_memory": (1.10, "<="),
    "gpu_sweep_grid_against_one_coefficient": (1.3, "<="),
    "gpu_sweep_middle_layer_against_whole_passes": (0.575, "<="),
    "gpu_sweep_generation": (2.5, ">="),
}
_FINE_GRID = tuple(float(value) for value in np.linspace(-2, 2, 41))
_GRID = tuple(float(value) for value in np.linspace(-1, 1, 9))


def hooked(models: dict[str, PreTrainedModel]) -> ModelPair:
    """The pair; the models are consumed."""
    return ModelPair.load(models["base"], models["policy"], tokenizer=tiny_tokenizer())


def relative_error(device: str, dtype: torch.dtype) -> float:
    """Greatest ‖found − expected‖ / ‖expected‖ over models and sites of a small shape.

    Expected is the capture on the CPU in float32 of the same weights, rounded to the dtype.
    """
    configuration = copy.deepcopy(SHAPES["tiny"].configuration)
    configuration.hidden_size, configuration.intermediate_size = 256, 704
    models = random_pair(configuration, "cpu", dtype)
    probes = ragged_probes(16, configuration.vocab_size)
    settings = CaptureConfiguration(progress=False)
    found = []
    for place, kind in (("cpu", torch.float32), (device, dtype)):
        pair = hooked(
            {name: copy.deepcopy(model).to(place, kind) for name, model in models.items()}  # type: ignore[call-overload]
        )
        found.append(capture_shifts(pair, probes, configuration=settings))
    expected, measured = found
    errors = [
        np.linalg.norm(measured.residuals(name, site, KIND) - values) / np.linalg.norm(values)
        for name in models
        for site in expected.sites
        for values in [expected.residuals(name, site, KIND)]
    ]
    return float(max(errors))


def direction(lens: LensModel, site: str) -> Intervention:
    """A random direction of a tenth of the norm of the residual at a site."""
    ids = torch.arange(2, 34)[None]
    with torch.inference_mode(), lens.reading([site]) as kept:
        lens.forward(ids, torch.ones_like(ids))
    size = 0.1 * float(kept[site].float().norm(dim=-1).mean())
    values = np.random.default_rng(0).normal(size=lens.d_model)
    vector = SteeringVector(values * size / np.linalg.norm(values), site, "random", "none", 1)
    return Intervention(name="random", vectors=(vector,))


class Bench:
    """One pair on one device, and the entries about it."""

    def __init__(
        self, shape_name: str, device: str, dtype: torch.dtype, repetitions: int = REPETITIONS
    ) -> None:
        self.shape, self.device, self.dtype = SHAPES[shape_name], device, dtype
        self.repetitions = repetitions
        self.facts = {"shape": shape_name, "dtype": str(dtype).removeprefix("torch.")}
        self.models = random_pair(self.shape.configuration, device, dtype)
        self.probes = ragged_probes(self.shape.prompts, self.shape.configuration.vocab_size)

    def timed(self, functions: Sequence[Callable[[], Any]]) -> list[list[tuple[float, float]]]:
        """In turn, each until the device is done."""

        def finished(function: Callable[[], Any]) -> None:
            function()
            if self.device != "cpu":
                torch.cuda.synchronize()

        for function in functions:
            finished(function)
        runs = [partial(finished, function) for function in functions]
        return timed_in_turn(runs, self.repetitions)

    def capture(self) -> dict[str, dict[str, Any]]:
        """Capture against the floor, in time and in memory; hooks the models."""
        plain = copy.copy(self.models)
        batched = partial(
            floor, plain, self.probes, token_budget=self.shape.token_budget, device=self.device
        )
        floors, floor_peak = self.timed([batched])[0], self.peak(partial(batched, keep=False))
        self.pair = hooked(self.models)
        settings = CaptureConfiguration(
            token_budget=self.shape.token_budget,
            shard_sequences=self.shape.prompts,
            progress=False,
        )
        run = partial(capture_shifts, self.pair, self.probes, configuration=settings)
        times, peak = self.timed([run])[0], self.peak(run)
        rate = self.shape.prompts / median_seconds(times)
        target, way = ENTRIES["gpu_capture_overhead"]
        found = {
            "gpu_capture_overhead": ratio_entry(times, floors, target=target, direction=way)
            | {"prompts_per_second": round(rate, 1), "prompts": self.shape.prompts}
        }
        target, way = ENTRIES["gpu_peak_memory"]
        if peak is None or floor_peak is None:
            found["gpu_peak_memory"] = not_run_entry("no CUDA device", target=target, direction=way)
        else:
            sites, width = len(self.pair.base.sites), self.pair.base.d_model
            rows = 2 * sites * self.shape.prompts * width * self.dtype.itemsize
            found["gpu_peak_memory"] = value_entry(
                [peak / (floor_peak + rows)], target=target, direction=way
            ) | {"capture_mib": round(peak / 2**20, 1), "floor_mib": round(floor_peak / 2**20, 1)}
        return found

    def peak(self, function: Callable[[], Any]) -> int | None:
        """Bytes on the device above what is loaded."""
        if self.device == "cpu":
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before

    def sweeps(self) -> dict[str, dict[str, Any]]:
        """Coefficients at h against one of them, and at the middle layer against whole passes."""
        lens = self.pair.base
        generator = np.random.default_rng(1)

        def tokens(length: int) -> tuple[int, ...]:
            return tuple(int(token) for token in generator.integers(2, lens.d_vocab, length))

        rows = [
            TokenSequence(tokens(int(length)), tokens(24))
            for length in generator.integers(8, 25, self.shape.sequences)
        ]
        middle = lens.n_layers // 2

        def scored(item: Intervention, scales: tuple[float, ...], engine: Engine) -> Any:
            setting = [Setting.by_norm(item, scales)]
            return score_sequences(
                self.pair, setting, rows, "interpolate", engine=engine, progress=False
            )

        at_h, inside = direction(lens, FINAL), direction(lens, resid_post(middle - 1))
        one, grid, replayed, whole = self.timed(
            [
                partial(scored, at_h, (1.0,), "algebra"),
                partial(scored, at_h, _FINE_GRID, "algebra"),
                partial(scored, inside, _GRID, "replay"),
                partial(scored, inside, _GRID, "hooks"),
            ]
        )
        found = {}
        for name, above, below, count in (
            ("gpu_sweep_grid_against_one_coefficient", grid, one, len(_FINE_GRID)),
            ("gpu_sweep_middle_layer_against_whole_passes", replayed, whole, len(_GRID)),
        ):
            target, way = ENTRIES[name]
            rate = count * len(rows) / median_seconds(above)
            found[name] = ratio_entry(above, below, target=target, direction=way) | {
                "sequences": len(rows),
                "coefficients": count,
                "scores_per_second": round(rate, 1),
            }
        return found

    def generation(self) -> dict[str, dict[str, Any]]:
        """Prompts × coefficients in one batch, against one batch of prompts a coefficient."""
        lens, item = self.pair.base, direction(self.pair.base, FINAL)
        prompts = [probe.ids[:16] for probe in ragged_probes(16, lens.d_vocab)]
        batch = pad(prompts, side="left")
        decoding = Decoding(max_new_tokens=self.shape.new_tokens)

        def packed() -> Any:
            return generate_rows(lens, prompts, [(item, scale) for scale in _GRID], decoding)

        def looped() -> None:
            for scale in _GRID:
                with item.vectors[0].apply(lens, scale):
                    lens.generate(batch.ids, batch.mask, max_new_tokens=decoding.max_new_tokens)

        one, many = self.timed([packed, looped])
        target, way = ENTRIES["gpu_sweep_generation"]
        rate = len(prompts) * len(_GRID) / median_seconds(one)
        return {
            "gpu_sweep_generation": ratio_entry(many, one, target=target, direction=way)
            | {"completions_per_second": round(rate, 1), "new_tokens": self.shape.new_tokens}
        }


def run(shape_name: str, device: str, repetitions: int = REPETITIONS) -> dict[str, dict[str, Any]]:
    """Every entry."""
    if device != "cpu" and not torch.cuda.is_available():
        return {
            name: not_run_entry("no CUDA device", target=target, direction=way)
            for name, (target, way) in ENTRIES.items()
        }
    found: dict[str, dict[str, Any]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = f"gpu_correctness_{str(dtype).removeprefix('torch.')}"
        target, way = ENTRIES[name]
        found[name] = value_entry([relative_error(device, dtype)], target=target, direction=way)
    bench = Bench(shape_name, device, torch.bfloat16, repetitions)
    for part in (bench.capture, bench.sweeps, bench.generation):
        found |= {name: entry | bench.facts for name, entry in part().items()}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the entries into a file of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-2-7b")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script out")
    parser.add_argument("--out", type=Path, required=True, help="file of results, added to")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    settings = parser.parse_args(arguments)
    found = run(settings.shape, settings.device, settings.repetitions)
    measured = read_results(settings.out)
    for name, entry in found.items():
        # What another machine measured stays, with that machine's name in it.
        if "ratio" in entry or "ratio" not in measured.get(name, {}):
            write_result(name, entry, settings.out)


if __name__ == "__main__":
    main()
