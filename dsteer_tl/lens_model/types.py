"""What goes into a hooked model and comes out: edits, gathered positions, shared prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

EditFunction = Callable[[Tensor], Tensor]
#: From the logits of the next token, ``[batch, d_vocab]``, and the step counted from 0, to tokens.
ChooseTokens = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class Edit:
    """A function applied at one site or place during the forward pass.

    Attributes:
        site: ``"resid_post.<layer>"``, ``"h"``, or a place inside a block that can be written, as
            ``"attn_out.<layer>"`` (`dsteer_tl.lens_model.components`).
        function: Takes ``[batch, position, width]`` and returns the same shape. Must not write
            in place: other hooks may hold the same tensor.
    """

    site: str
    function: EditFunction


@dataclass(frozen=True, slots=True)
class Gather:
    """Which positions of a batch to keep: row ``rows[i]``, position ``positions[i]``."""

    rows: Int[Tensor, " kept"]
    positions: Int[Tensor, " kept"]


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompts that were run once, for several rows of generation each.

    Attributes:
        prompts: How many prompts.
        repeats: Rows a prompt.
        cache: Keys and values of the backend, or None where it has no cache.
    """

    prompts: int
    repeats: int
    cache: Any
