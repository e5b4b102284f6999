"""The works that capture is measured on: three pairs of models, and ragged prompts for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.capture_shard import default_token_budget
from dsteer_tl.errors import CheckpointError, DependencyError
from dsteer_tl.lens_model import (
    Backend,
    LoadOptions,
    PaddedBatch,
    length_sorted_batches,
    load_model,
    pad,
)
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from tests.models import policy_of, tiny_tokenizer

#: The batches of every way of reading that lets its caller choose them, and of the floor.
TOKEN_BUDGET = default_token_budget(torch.device("cpu"))
VOCABULARY = 8192
KIND = "last_prompt"
#: Rows of each model by site, ``[prompt, d_model]``, in the order of the prompts.
Rows = Mapping[str, Mapping[str, np.ndarray]]
Models = Mapping[str, PreTrainedModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A pair of models, and how many prompts are run through it.

    Attributes:
        name: How entries name it.
        make: Makes the base, always the same one.
        prompts: For capture against the floor.
        shared_prompts: For capture against the alternatives, the slowest of which are slow.
    """

    name: str
    make: Callable[[], PreTrainedModel]
    prompts: int
    shared_prompts: int

    def models(self) -> dict[str, PreTrainedModel]:
        """Base and policy."""
        base = self.make()
        return {"base": base, "policy": policy_of(base)}

    def pair(self, backend: Backend) -> ModelPair:
        """The same two, hooked."""
        models = self.models()
        return ModelPair.load(
            models["base"], models["policy"], tokenizer=tiny_tokenizer(), backend=backend
        )


def random_llama(layers: int, seed: int = 0) -> PreTrainedModel:
    """A random Llama, of ten million parameters with eight layers."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).eval()


EIGHT_LAYERS = Work(name="8_layers", make=lambda: random_llama(8), prompts=512, shared_prompts=64)
WORKS = (
    EIGHT_LAYERS,
    Work(name="24_layers", make=lambda: random_llama(24), prompts=128, shared_prompts=16),
    Work(
        name="tales",
        make=lambda: load_model("tales", LoadOptions()),
        prompts=512,
        shared_prompts=64,
    ),
)


def usable_backends() -> tuple[dict[Backend, None], dict[Backend, str]]:
    """The backends that this environment has, and why it lacks the others."""
    usable: dict[Backend, None] = {}
    lacking: dict[Backend, str] = {}
    for backend in get_args(Backend):
        base = random_llama(1)
        try:
            ModelPair.load(base, policy_of(base), tokenizer=tiny_tokenizer(), backend=backend)
        except (CheckpointError, DependencyError) as error:
            lacking[backend] = str(error).splitlines()[0]
        else:
            usable[backend] = None
    return usable, lacking


def ragged_probes(count: int, vocabulary: int = VOCABULARY) -> tuple[Probe, ...]:
    """Prompts of 8 to 128 tokens, read at the last one."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 129, count)
    return tuple(
        Probe(
            index,
            tuple(int(token) for token in generator.integers(3, vocabulary, length)),
            {KIND: (int(length) - 1,)},
        )
        for index, length in enumerate(lengths)
    )


def sorted_batches(
    probes: Sequence[Probe], token_budget: int = TOKEN_BUDGET, device: str = "cpu"
) -> Iterator[PaddedBatch]:
    """The batches that capture makes, with the places of their rows."""
    for indices in length_sorted_batches([len(probe.ids) for probe in probes], token_budget):
        yield pad([probes[index].ids for index in indices], indices=indices, device=device)


def last_rows(states: torch.Tensor, batch: PaddedBatch) -> torch.Tensor:
    """The rows of the last prompt token."""
    return states[torch.arange(len(states)), batch.mask.sum(1) - 1]


@torch.inference_mode()
def floor(
    models: Models,
    probes: Sequence[Probe],
    *,
    keep: bool = True,
    token_budget: int = TOKEN_BUDGET,
    device: str = "cpu",
) -> list[torch.Tensor]:
    """The same batches through plain transformers, up to h, without the unembedding."""
    found = []
    for batch in sorted_batches(probes, token_budget, device):
        for model in models.values():
            states = model.base_model(
                input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
            ).last_hidden_state
            if keep:
                found.append(last_rows(states, batch))
    return found


def captured(pair: ModelPair, probes: Sequence[Probe]) -> ShiftSet:
    """What is measured: every layer and h, base and policy."""
    configuration = CaptureConfiguration(
        token_budget=TOKEN_BUDGET, shard_sequences=len(probes), progress=False
    )
    return capture_shifts(pair, probes, configuration=configuration)


def assert_same_rows(rows: Rows, shift_set: ShiftSet, sites: Sequence[str]) -> None:
    """Another way of reading found what capture found."""
    for model in ("base", "policy"):
        missing = set(sites) - set(rows[model])
        assert not missing, f"no rows of {model} at {sorted(missing)}"
        for site in sites:
            np.testing.assert_allclose(
                rows[model][site],
                shift_set.residuals(model, site, KIND),
                atol=1e-3,
                rtol=1e-3,
                err_msg=f"{model} at {site}",
            )
