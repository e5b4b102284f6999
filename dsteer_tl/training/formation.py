"""How the steering vector forms: shifts on a fixed probe set, recorded during training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from dsteer_tl.cosines import cosines_to_mean
from dsteer_tl.files import replacing
from dsteer_tl.lens_model import PaddedBatch, length_sorted_batches, pad
from dsteer_tl.lens_model.readout import output_transform
from dsteer_tl.preferences import EncodedPair
from dsteer_tl.processes import processes
from dsteer_tl.sites import FINAL
from dsteer_tl.spectra import spectrum

_TOKEN_BUDGET = 8192


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """What is read from the model in training at one step.

    Attributes:
        h: Final hidden state at the last prompt token of every probe pair.
        chosen_logp, rejected_logp: log π(y | x) summed over the response, in nats.
    """

    h: Float[Tensor, "pair d_model"]
    chosen_logp: Float[Tensor, " pair"]
    rejected_logp: Float[Tensor, " pair"]


@torch.no_grad()
def record(
    model: PreTrainedModel, pairs: Sequence[EncodedPair], *, sharded: bool = False
) -> ProbeRecord:
    """Read hidden states and log-probabilities of the probe pairs.

    Args:
        model: The model in training; its mode is kept.
        pairs: Prompts with both responses.
        sharded: The model is divided among processes, all of which call this with the same pairs.
            Its parts come together only in a pass through the whole model, so the log-probabilities
            are those that TRL's patched forward pass gives, in the precision of training.
    """
    was_training = model.training
    model.eval()
    # PEFT replaces modules in place, so that the model inside it has the adapter at work.
    wrapped: Any = model
    plain: PreTrainedModel = (
        wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    )
    read = _read_sharded if sharded else _read
    h = torch.zeros(len(pairs), plain.get_output_embeddings().weight.shape[1])
    log_probabilities = {name: torch.zeros(len(pairs)) for name in ("chosen", "rejected")}
    for name, store in log_probabilities.items():
        responses = [pair.chosen_ids if name == "chosen" else pair.rejected_ids for pair in pairs]
        rows = [
            (*pair.prompt_ids, *response) for pair, response in zip(pairs, responses, strict=True)
        ]
        starts = [len(pair.prompt_ids) - 1 for pair in pairs]
        for indices in length_sorted_batches([len(row) for row in rows], _TOKEN_BUDGET):
            batch = pad([rows[index] for index in indices], device=model.device)
            spans = [(starts[index], len(rows[index]) - 1) for index in indices]
            hidden, found = read(model, plain, batch, spans)
            chosen = torch.as_tensor(indices)
            store[chosen] = found.cpu()
            if name == "chosen":
                h[chosen] = hidden.float().cpu()
    model.train(was_training)
    return ProbeRecord(h, log_probabilities["chosen"], log_probabilities["rejected"])


def _read(
    model: PreTrainedModel,  # noqa: ARG001
    plain: PreTrainedModel,
    batch: PaddedBatch,
    spans: Sequence[tuple[int, int]],
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
    """State where each response begins, and log π of the tokens after ``start`` up to ``end``."""
    unembedding = plain.get_output_embeddings()
    softcap, scale = output_transform(plain.config)
    hidden = plain.base_model(
        input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    sums = []
    for place, (start, end) in enumerate(spans):
        logits = unembedding(hidden[place, start:end]).float() * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        targets = batch.ids[place, start + 1 : end + 1, None]
        sums.append(logits.log_softmax(-1).gather(-1, targets).sum())
    return torch.stack([hidden[place, start] for place, (start, _) in enumerate(spans)]), (
        torch.stack(sums)
    )


def _read_sharded(
    model: PreTrainedModel,
    plain: PreTrainedModel,
    batch: PaddedBatch,
    spans: Sequence[tuple[int, int]],
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
    """The same in one pass through the root, by TRL's ``fused_lm_head``."""
    states: list[Tensor] = []
    labels = torch.full_like(batch.ids, -100)
    for place, (start, end) in enumerate(spans):
        labels[place, start + 1 : end + 1] = batch.ids[place, start + 1 : end + 1]
    handle = plain.base_model.register_forward_hook(
        lambda _, __, output: states.append(output.last_hidden_state)
    )
    forward: Any = model
    try:
        found = forward(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            use_cache=False,
            labels=labels,
            fused_lm_head=True,
        ).log_probs
    finally:
        handle.remove()
    first = [start for start, _ in spans]
    return states[0][range(len(first)), first], found.float().sum(1)


class FormationCallback(TrainerCallback):
    """Writes a `ProbeRecord` to a folder every few updates; a resumed run keeps earlier ones.

    Every process records, as passes through a sharded model need all; the main one writes.
    """

    def __init__(
        self, pairs: Sequence[EncodedPair], folder: Path, every: int, *, sharded: bool = False
    ) -> None:
        self._pairs, self._folder, self._every = list(pairs), folder, every
        self._sharded = sharded

    def _write(self, model: PreTrainedModel, step: int) -> None:
        found = record(model, self._pairs, sharded=self._sharded)
        if not processes().is_main:
            return
        with replacing(self._folder / f"step-{step:06d}.safetensors") as temporary:
            save_file(
                {
                    "h": found.h,
                    "chosen_logp": found.chosen_logp,
                    "rejected_logp": found.rejected_logp,
                },
                temporary,
            )

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Record the base before the first update."""
        if state.global_step == 0:
            self._write(kwargs["model"], 0)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Record after every ``every``-th update and after the last."""
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._write(kwargs["model"], state.global_step)


def formation_table(folder: Path) -> pd.DataFrame:
    """The table ``formation``: one row a recorded step.

    ``cos_to_final`` is the mean over probe pairs of cos(δ⁽ⁱ⁾ at this step, v* at the last step),
    with the standard deviation beside it; ``sigma_ratio`` is σ2/σ1 of the uncentred ΔH. At step 0
    every shift is zero and the cosines are undefined.
    """
    records = {
        int(path.stem.removeprefix("step-")): load_file(path)
        for path in sorted(folder.glob("step-*.safetensors"))
    }
    base = records[0]["h"].double().numpy()
    final = records[max(records)]["h"].double().numpy() - base
    direction = final.mean(axis=0)
    rows = []
    for step, found in records.items():
        shifts = found["h"].double().numpy() - base
        moved = step > 0 and bool(np.any(shifts))
        several = moved and len(shifts) > 1  # one row has no spread and no second direction
        cosines = _cosines_to(shifts, direction) if moved else np.array([np.nan])
        chosen, rejected = float(found["chosen_logp"].mean()), float(found["rejected_logp"].mean())
        rows.append(
            {
                "step": step,
                "site": FINAL,
                "cos_to_final": float(cosines.mean()),
                "cos_to_own_mean": float(cosines_to_mean(shifts).mean()) if several else np.nan,
                "cos_sd": float(cosines.std()),
                "sigma_ratio": spectrum(shifts).sigma_ratio if several else np.nan,
                "v_norm": float(np.linalg.norm(shifts.mean(axis=0))),
                "chosen_logp": chosen,
                "rejected_logp": rejected,
                "margin": chosen - rejected,
            }
        )
    return pd.DataFrame(rows)


def _cosines_to(
    shifts: Float[np.ndarray, "row d_model"], direction: Float[np.ndarray, " d_model"]
) -> Float[np.ndarray, " row"]:
    norms = np.linalg.norm(shifts, axis=1) * np.linalg.norm(direction)
    products = shifts @ direction
    cosines: np.ndarray = np.zeros_like(products)
    np.divide(products, norms, out=cosines, where=norms > 0)
    return cosines
