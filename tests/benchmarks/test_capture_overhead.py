"""What reading every layer of two models costs over running them.

Collected only when asked for: `pytest tests/benchmarks`. Times go into `figures/benchmarks.json`;
no time is asserted, since it depends on the machine and on what else runs there.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.experiment.run_directory import hardware
from dsteer_tl.lens_model import length_sorted_batches, pad
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from tests.models import policy_of, tiny_tokenizer

TARGET = 1.10
REPETITIONS = 5
TOKEN_BUDGET = 4096
VOCABULARY = 8192
RESULTS = Path(__file__).resolve().parents[2] / "figures" / "benchmarks.json"


def ten_million(seed: int) -> PreTrainedModel:
    """A random Llama of ten million parameters."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).eval()


def ragged_probes(count: int) -> tuple[Probe, ...]:
    """Prompts of 8 to 128 tokens, read at the last one."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 129, count)
    return tuple(
        Probe(
            index,
            tuple(int(token) for token in generator.integers(2, VOCABULARY, length)),
            {"last_prompt": (int(length) - 1,)},
        )
        for index, length in enumerate(lengths)
    )


@torch.inference_mode()
def floor(models: Sequence[PreTrainedModel], probes: Sequence[Probe]) -> list[torch.Tensor]:
    """The same batches through plain transformers, up to h, without the unembedding."""
    found = []
    for indices in length_sorted_batches([len(probe.ids) for probe in probes], TOKEN_BUDGET):
        batch = pad([probes[index].ids for index in indices])
        for model in models:
            states = model.base_model(
                input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
            ).last_hidden_state
            found.append(states[torch.arange(len(states)), batch.mask.sum(1) - 1])
    return found


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and of CPU time: the latter leaves out waiting for other programs."""
    clock, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - clock, time.process_time() - cpu


def write_result(name: str, entry: dict[str, Any]) -> None:
    """Put one entry into the file and leave the others."""
    content = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    content[name] = entry
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


@pytest.mark.parametrize("prompts", [128, 512])
def test_capture_overhead(prompts: int) -> None:
    plain = ten_million(0)
    models = (plain, policy_of(plain))
    pair = ModelPair.load(ten_million(0), policy_of(plain), tokenizer=tiny_tokenizer())
    probes = ragged_probes(prompts)
    configuration = CaptureConfiguration(
        token_budget=TOKEN_BUDGET, shard_sequences=prompts, progress=False
    )

    def captured() -> ShiftSet:
        return capture_shifts(pair, probes, configuration=configuration)

    def forward_only() -> list[torch.Tensor]:
        return floor(models, probes)

    shift_set, states = captured(), forward_only()  # warm-up, and the work compared
    order = [
        index
        for batch in length_sorted_batches([len(probe.ids) for probe in probes], TOKEN_BUDGET)
        for index in batch
    ]
    for place, model in enumerate(("base", "policy")):
        expected = torch.cat(states[place::2])[np.argsort(order)]
        found = torch.from_numpy(shift_set.residuals(model, "h", "last_prompt"))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert shift_set.sites == pair.base.sites

    pairs = []
    for repetition in range(REPETITIONS):
        # Alternate which goes first, so that neither always finds the caches warm.
        if repetition % 2:
            capture_seconds, floor_seconds = timed(captured), timed(forward_only)
        else:
            floor_seconds, capture_seconds = timed(forward_only), timed(captured)
        pairs.append((capture_seconds, floor_seconds))
    ratios, cpu_ratios = (
        [capture[clock] / floor[clock] for capture, floor in pairs] for clock in (0, 1)
    )
    ratio = statistics.median(ratios)
    assert np.isfinite(ratio)
    write_result(
        f"capture_overhead_{prompts}",
        {
            "ratio": round(ratio, 4),
            "target": TARGET,
            "direction": "<=",
            "repetitions": REPETITIONS,
            "ratios": [round(value, 4) for value in ratios],
            "cpu_ratio": round(statistics.median(cpu_ratios), 4),
            "cpu_ratios": [round(value, 4) for value in cpu_ratios],
            "floor_seconds": round(statistics.median(floor[0] for _, floor in pairs), 4),
            "hardware": hardware(),
        },
    )
