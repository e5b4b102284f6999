"""Pairs of tiny models in which it is known how much of the difference is a steering vector.

The base is a random GPT-2 of two blocks. Its residual stream has nothing in two of its dimensions,
so that a vector along their difference is orthogonal to every state, as any two vectors nearly are
in a large model. Policies are made from it by editing weights; captures and tables are the real
ones.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.measurements import TABLES, MeasurementConfiguration, MeasurementInputs
from dsteer_tl.null_models import random_weights_model
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from tests.models import CONTEXT, VOCABULARY, policy_of, random_model, save_checkpoint

#: ``vector`` adds one vector where norms of the residual differ eightfold, ``equal_norms`` where
#: they are equal, both by the value vector of a neuron that is always on; ``bias_alone`` by a bias;
#: ``scatter`` adds shifts of rank eight that depend on the prompt and have no mean; ``noise`` is a
#: random change of every weight of the blocks.
Plant = Literal["vector", "equal_norms", "bias_alone", "scatter", "noise"]

SETTINGS = MeasurementConfiguration(draws=60, null_draws=5, coefficients=(0.0, 1.0))
READ = ("shifts", "cosines", "nulls", "mass", "kl_recovery")
WIDTH, PROMPTS, RANK = 64, 64, 8
#: Largest norm of an embedding over the smallest.
_SPREAD = 8.0
_SMALLEST = 6.0
#: The neuron of each MLP that is on, with this activation, whatever is read.
_CONSTANT, _BEFORE_GELU, _ACTIVATION = 0, 1.0, 0.8411920071


@torch.no_grad()
def planted_base(seed: int, *, spread: float, blocks: float = 0.1) -> PreTrainedModel:
    """A random GPT-2 whose first two residual dimensions are empty.

    Args:
        seed: Of the weights.
        spread: Largest norm of a token's embedding over the smallest.
        blocks: Factor on what the blocks write.
    """
    model: Any = random_model("gpt2", seed=seed, n_embd=WIDTH, tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(seed + 100)
    inner = model.transformer
    embeddings = inner.wte.weight
    embeddings[:, :2] = 0
    embeddings[:, 2:] -= embeddings[:, 2:].mean(dim=1, keepdim=True)
    norms = spread ** torch.rand(len(embeddings), generator=generator)
    embeddings *= (_SMALLEST * norms / embeddings.norm(dim=1))[:, None]
    inner.wpe.weight.zero_()
    for block in inner.h:
        for written in (block.attn.c_proj, block.mlp.c_proj):
            written.weight *= blocks
            written.bias *= blocks
            written.weight[:, :2] = 0
            written.bias[:2] = 0
        block.mlp.c_fc.weight[:, _CONSTANT] = 0
        block.mlp.c_fc.bias[_CONSTANT] = _BEFORE_GELU
    found: PreTrainedModel = model
    return found


def planted_probes(seed: int) -> tuple[Probe, ...]:
    """Prompts of random tokens, each read at its last one and at its last four."""
    generator = np.random.default_rng(seed)
    found = []
    for index in range(PROMPTS):
        length = int(generator.integers(6, CONTEXT // 4))
        ids = tuple(int(token) for token in generator.integers(2, VOCABULARY, length))
        positions = {"last_prompt": (length - 1,), "response": tuple(range(length - 4, length))}
        found.append(Probe(index, ids, positions))
    return tuple(found)


@torch.no_grad()
def _edited(plant: Plant, base: PreTrainedModel, seed: int) -> PreTrainedModel:
    policy: Any = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed + 200)
    written = policy.transformer.h[-1].mlp.c_proj
    vector = torch.zeros(WIDTH)
    vector[:2] = torch.tensor([1.0, -1.0])
    if plant in ("vector", "equal_norms"):
        written.weight[_CONSTANT] += vector / _ACTIVATION
    elif plant == "bias_alone":
        written.bias += vector
    elif plant == "scatter":
        inputs = torch.randn(written.weight.shape[0], RANK, generator=generator)
        outputs = torch.linalg.qr(torch.randn(WIDTH, RANK, generator=generator))[0]
        written.weight += 0.05 * inputs @ outputs.T
        written.bias -= _mean_change(base, policy, seed)
    else:
        return policy_of(base, seed=seed + 200, scale=0.02)
    found: PreTrainedModel = policy
    return found


@torch.no_grad()
def _mean_change(base: Any, policy: Any, seed: int) -> torch.Tensor:
    """What the policy adds to the residual stream on average over other prompts."""
    means = []
    for model in (base, policy):
        rows = []
        handle = model.transformer.h[-1].register_forward_hook(
            lambda _module, _inputs, output, rows=rows: rows.append(
                (output[0] if isinstance(output, tuple) else output).reshape(-1, WIDTH)
            )
        )
        for probe in planted_probes(seed + 1000):
            model(torch.tensor([probe.ids]))
        handle.remove()
        means.append(torch.cat(rows).mean(dim=0))
    return means[1] - means[0]


def plant_pair(plant: Plant, seed: int, folder: Path) -> tuple[ModelPair, ShiftSet]:
    """A planted pair, saved and loaded as any other, with residuals of both and of a null model."""
    base = planted_base(
        seed,
        spread=1.0 if plant == "equal_norms" else _SPREAD,
        blocks=0.0 if plant == "equal_norms" else 0.1,
    )
    policy = _edited(plant, base, seed)
    paths = [
        save_checkpoint(model, folder / name)
        for name, model in (("base", base), ("policy", policy))
    ]
    pair = ModelPair.load(*paths, self_check=False)
    control = random_weights_model(*paths, seed=seed)
    shift_set = capture_shifts(
        pair,
        planted_probes(seed),
        controls={"random_weights": control},
        configuration=CaptureConfiguration(progress=False),
    )
    return pair, shift_set


@cache
def planted_tables(plant: Plant, seed: int = 0) -> dict[str, pd.DataFrame]:
    """The real tables of a planted pair."""
    with TemporaryDirectory() as folder:
        pair, shift_set = plant_pair(plant, seed, Path(folder))
        inputs = MeasurementInputs(
            load_pair=lambda: pair,
            shift_set=shift_set,
            load_probes=lambda: planted_probes(seed),
            load_encoded=tuple,
            configuration=SETTINGS,
            beta=0.1,
            progress=False,
        )
        return {name: TABLES[name](inputs) for name in READ}
