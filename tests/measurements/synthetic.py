"""Captures made of known numbers, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from dsteer_tl.capture import ShiftSet
from dsteer_tl.measurements import MeasurementConfiguration

SITES = ("resid_post.0", "resid_post.1", "resid_post.2", "h")
QUICK = MeasurementConfiguration(draws=50, null_draws=3, coefficients=(0.0, 0.5, 1.0))


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def capture(
    base: np.ndarray,
    shifts: np.ndarray,
    *,
    prompts: Sequence[int] | None = None,
    kind: str = "last_prompt",
    sites: Sequence[str] = SITES,
    others: Mapping[str, np.ndarray] | None = None,
) -> ShiftSet:
    """The same base rows and shifts at every site; ``others`` are shifts of further models.

    Rows are stored in reverse, so that only a reader that restores their order gives them back.
    """
    n = len(base)
    prompts = list(range(n)) if prompts is None else list(prompts)
    found = {"base": np.zeros_like(base), "policy": shifts, **(others or {})}
    shard = {
        "prompt": torch.tensor(prompts).flip(0),
        "position": torch.arange(n).flip(0),
        f"kind.{kind}": torch.ones(n, dtype=torch.long),
    }
    for name, moved in found.items():
        rows = torch.tensor(base + moved, dtype=torch.float32).flip(0)
        shard.update({f"{name}/{site}": rows for site in sites})
    return ShiftSet(
        [shard], sites=sites, models=list(found), kinds=[kind], hashes=dict.fromkeys(found, "")
    )


def constant(n: int = 12, d_model: int = 16, *, norm: float = 3.0, seed: int = 0) -> np.ndarray:
    """One shift for every row."""
    direction = normal(d_model, seed=seed)
    return np.tile(norm * direction / np.linalg.norm(direction), (n, 1))


def subspace(n: int = 60, d_model: int = 32, rank: int = 8, *, seed: int = 0) -> np.ndarray:
    """Shifts that depend on the prompt, spread evenly over ``rank`` directions."""
    basis = np.linalg.qr(normal(d_model, rank, seed=seed))[0]
    return normal(n, rank, seed=seed + 1) @ basis.T
