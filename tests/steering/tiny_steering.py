"""Vectors, stacks and sequences for the tiny pairs of `tests.tiny_pairs`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsteer_tl.directions import SteeringVector
from dsteer_tl.lens_model import LensModel
from dsteer_tl.steering.interventions import Intervention, Positions
from dsteer_tl.steering.scored import TokenSequence
from tests.models import VOCABULARY

WIDTH = 32


def tokens(length: int, seed: int = 0) -> tuple[int, ...]:
    """Random token ids without the special ones."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist())


#: Ragged, with a prompt and a completion of one token among them.
SEQUENCES = tuple(
    TokenSequence(tokens(prompt, 1), tokens(completion, 2))
    for prompt, completion in ((6, 4), (1, 5), (9, 1), (3, 7), (1, 1))
)
PROMPTS = tuple(tokens(length, 3) for length in (7, 1, 4))


def vector(site: str, *, seed: int = 0, size: float = 2.0, width: int = WIDTH) -> SteeringVector:
    """A random direction of a given norm that may act on any readout."""
    values = np.random.default_rng([seed, *site.encode()]).normal(size=width)
    return SteeringVector(values * size / np.linalg.norm(values), site, "v_star", "last_prompt", 1)


def at(
    *sites: str,
    positions: Positions = "all",
    seed: int = 0,
    size: float = 2.0,
    name: str = "v_star",
    width: int = WIDTH,
) -> Intervention:
    """A vector at a site, or one at each of several."""
    vectors = tuple(vector(site, seed=seed, size=size, width=width) for site in sites)
    return Intervention(name=name, vectors=vectors, positions=positions)


def bias(
    *, positions: Positions = "all", seed: int = 0, size: float = 1.0, vocabulary: int = VOCABULARY
) -> Intervention:
    """A random constant on the logits."""
    values = size * np.random.default_rng(seed).normal(size=vocabulary)
    return Intervention(name="logit_bias", logit_bias=values, positions=positions)


@contextmanager
def counted_passes() -> Iterator[list[str]]:
    """The names of the models that read scored tokens, pass by pass."""
    passes: list[str] = []
    original = LensModel.logits_at

    def counted(self: LensModel, *arguments: Any) -> Tensor:
        passes.append(self.name)
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LensModel, "logits_at", counted)
        yield passes
