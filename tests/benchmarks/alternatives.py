"""Other ways to read the last prompt token of every layer of two models, in this environment.

Each is written as its own documentation shows it. Where the caller chooses the batches, an
alternative is given those that capture makes: sorting by length is not held against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsteer_tl.lens_model import PaddedBatch, pad
from dsteer_tl.positions import Probe
from dsteer_tl.sites import FINAL, resid_post
from tests.benchmarks.works import Models, Rows, last_rows, sorted_batches

Read = Callable[[PaddedBatch], dict[str, Tensor]]


def hidden_state_sites(layers: int) -> list[str]:
    """What transformers' hidden states are after the embeddings: the last one is h."""
    return [resid_post(layer) for layer in range(layers - 1)] + [FINAL]


def all_sites(layers: int) -> list[str]:
    """Every layer and h."""
    return [resid_post(layer) for layer in range(layers)] + [FINAL]


@torch.no_grad()
def collect(batches: Iterable[PaddedBatch], read: Read) -> dict[str, np.ndarray]:
    """The rows of every batch, put into the order of the prompts."""
    parts: dict[str, list[Tensor]] = {}
    order: list[int] = []
    for batch in batches:
        order += batch.indices
        for site, rows in read(batch).items():
            parts.setdefault(site, []).append(rows)
    places = np.argsort(order)
    return {site: torch.cat(rows).numpy()[places] for site, rows in parts.items()}


def hidden_states(models: Models, probes: Sequence[Probe]) -> Rows:
    """(b) Transformers with ``output_hidden_states=True``."""

    def reader(model: Any) -> Read:
        sites = hidden_state_sites(model.config.num_hidden_layers)

        def read(batch: PaddedBatch) -> dict[str, Tensor]:
            outputs = model(
                input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True
            )
            states = zip(sites, outputs.hidden_states[1:], strict=True)
            return {site: last_rows(tensor, batch) for site, tensor in states}

        return read

    return {name: collect(sorted_batches(probes), reader(model)) for name, model in models.items()}


def prompt_by_prompt(models: Models, probes: Sequence[Probe]) -> Rows:
    """(d) One prompt a pass, as in the program that D-STEER published.

    There, hidden states are stacked, the last token is taken, and the embeddings are dropped.
    """

    def reader(model: Any) -> Read:
        sites = hidden_state_sites(model.config.num_hidden_layers)

        def read(batch: PaddedBatch) -> dict[str, Tensor]:
            outputs = model(
                input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True
            )
            stacked = torch.stack(outputs.hidden_states, dim=0)
            rows = stacked[:, :, -1, :][1:].cpu()
            return dict(zip(sites, rows, strict=True))

        return read

    singles = [pad([probe.ids], indices=[index]) for index, probe in enumerate(probes)]
    return {name: collect(singles, reader(model)) for name, model in models.items()}


def booted(folder: Path) -> Any:
    """A checkpoint in TransformerLens, as its documentation loads one."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(folder), device="cpu")


def run_with_cache(bridges: dict[str, Any], probes: Sequence[Probe], *, filtered: bool) -> Rows:
    """(c) TransformerLens's ``run_with_cache``: everything, or the sites that are wanted."""

    def reader(bridge: Any) -> Read:
        layers = bridge.cfg.n_layers
        names = [f"blocks.{layer}.hook_resid_post" for layer in range(layers)]
        names.append("unembed.hook_in")
        extra = {"names_filter": names} if filtered else {}

        def read(batch: PaddedBatch) -> dict[str, Tensor]:
            _, cache = bridge.run_with_cache(batch.ids, attention_mask=batch.mask, **extra)
            found = zip(all_sites(layers), names, strict=True)
            return {site: last_rows(cache[name], batch) for site, name in found}

        return read

    return {
        name: collect(sorted_batches(probes), reader(bridge)) for name, bridge in bridges.items()
    }
