"""Batches of made-up states."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from dsteer_tl.toxicity.component_reading import ComponentBatch


def batch_of(
    states: Mapping[str, Mapping[str, np.ndarray]], prompts: np.ndarray, kinds: np.ndarray
) -> ComponentBatch:
    """One batch; every row is of the kind that `kinds` names."""
    return ComponentBatch(
        prompts=prompts,
        positions=np.arange(len(prompts)),
        members={kind: kinds == kind for kind in np.unique(kinds).tolist()},
        states={
            model: {place: torch.tensor(rows, dtype=torch.float32) for place, rows in found.items()}
            for model, found in states.items()
        },
    )
