"""What one coefficient costs at a layer, against a whole pass.

Collected only when asked for: `pytest tests/benchmarks`. Ratios within one run go into
`figures/benchmarks.json`; no time is asserted, since it depends on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from dsteer_tl.lens_model import LensModel, load_lens_model
from dsteer_tl.sites import resid_post
from dsteer_tl.steering.interventions import Intervention
from dsteer_tl.steering.reference import Reference, compare
from dsteer_tl.steering.replay import Replay, logits_by_hooks, unsteered_logits
from dsteer_tl.steering.scored import batches
from tests.benchmarks.results import ratio_entry, timed_in_turn, write_result
from tests.benchmarks.sweep_work import default_pair, sequences, vector


@pytest.fixture(scope="module", params=["default", "24_layers"])
def host(request: pytest.FixtureRequest) -> tuple[str, LensModel]:
    """The embedded model, and a random Llama of 24 layers."""
    if request.param == "default":
        return "", default_pair().base
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=24,
        num_attention_heads=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    return "24_layers_", load_lens_model(LlamaForCausalLM(settings).eval())


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_replay_costs_the_blocks_above(host: tuple[str, LensModel], share: float) -> None:
    """One coefficient at layer l from the kept residual, against a pass under a hook.

    L − l − 1 of L blocks are above resid_post.l. The ratio is the measured share of a whole pass
    over that; what both sides have besides blocks, above all the unembedding of the scored tokens,
    lifts it. `operations` is the share by multiplications with the unembedding, the floor;
    `share_with_statistics` has the comparison with base and policy on both sides.
    """
    prefix, lens = host
    layer = min(lens.n_layers - 2, int(share * lens.n_layers))
    item = Intervention(name="random", vectors=(vector(lens, resid_post(layer)),))
    (batch,) = batches(sequences(lens, 64), 10**6)
    logits, residuals = unsteered_logits(lens, batch, [resid_post(layer)])
    replay = Replay(lens, batch, resid_post(layer), residuals[resid_post(layer)])
    reference = Reference({"base": logits, "policy": logits.roll(1, dims=0)})

    def replayed() -> Tensor:
        return replay.logits(item, 0.5)

    def whole() -> Tensor:
        return logits_by_hooks(lens, item, 0.5, batch)

    torch.testing.assert_close(replayed(), whole(), rtol=1e-4, atol=1e-3)
    replay_times, whole_times, statistics_times = timed_in_turn(
        [replayed, whole, lambda: compare(logits, batch, reference)]
    )
    expected = (lens.n_layers - layer - 1) / lens.n_layers
    scaled = [(clock / expected, cpu / expected) for clock, cpu in replay_times]
    entry = ratio_entry(scaled, whole_times, target=1.15, direction="<=")
    assert math.isfinite(entry["ratio"])
    with_statistics = [
        [(clock + more, cpu + more_cpu) for (clock, cpu), (more, more_cpu) in pairs]
        for pairs in (
            zip(replay_times, statistics_times, strict=True),
            zip(whole_times, statistics_times, strict=True),
        )
    ]
    whole_share = ratio_entry(*with_statistics, target=1.15, direction="<=")["ratio"]
    write_result(
        f"sweep_replay_{prefix}layer_{layer}",
        entry
        | {
            "layers": lens.n_layers,
            "blocks_above": round(expected, 4),
            "share": round(entry["ratio"] * expected, 4),
            "operations": round(multiplications(replayed) / multiplications(whole), 4),
            "share_with_statistics": whole_share,
        },
    )


def multiplications(function: Callable[[], Tensor]) -> int:
    """Of the matrix products that a function does."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
