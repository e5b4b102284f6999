"""What the parts of the case study hand to each other: texts, scorers and groups of neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from dsteer_tl.errors import ShapeError


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text that has the attribute or has it not.

    Attributes:
        text: The text.
        label: Whether it has the attribute.
        group: Texts of one group, as a text and its rewrites, are never parted by a split; None is
            a group of its own.
    """

    text: str
    label: bool
    group: int | None = None


class AttributeScorer(Protocol):
    """Says how much of an attribute a text has."""

    @property
    def name(self) -> str:
        """Name in tables and settings."""
        ...

    @property
    def source(self) -> str:
        """Paper, package or weights that define it."""
        ...

    def obstacle(self) -> str:
        """Why it cannot run here: what is missing; or an empty string."""
        ...

    def score(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """A number in [0, 1] for every text, higher for more of the attribute; never NaN."""
        ...

    def words(self) -> frozenset[str]:
        """Case-folded words that have the attribute by themselves: to read lists of tokens with."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neurons:
    """A group of MLP neurons of one model.

    Attributes:
        group: ``"attribute"``, ``"random"``, ``"most_active"``, …
        layers: Layer of each.
        neurons: Index in its layer of each.
        signs: +1, or −1 where the value vector has the attribute when its activation is negative
            (gated MLPs alone).
    """

    group: str
    layers: Int[np.ndarray, " neuron"]
    neurons: Int[np.ndarray, " neuron"]
    signs: Int[np.ndarray, " neuron"]

    def __post_init__(self) -> None:
        if not len(self.layers) == len(self.neurons) == len(self.signs):
            raise ShapeError(
                f"neurons {self.group!r}: found {len(self.layers)} layers, {len(self.neurons)} "
                f"indices and {len(self.signs)} signs, expected one of each a neuron"
            )

    def __len__(self) -> int:
        return len(self.neurons)

    def of_layer(self, layer: int) -> Int[np.ndarray, " neuron"]:
        """Indices of the group's neurons in one layer, in the group's order."""
        found: np.ndarray = self.neurons[self.layers == layer]
        return found

    def first(self, count: int) -> Neurons:
        """The first ``count`` neurons."""
        return Neurons(
            group=self.group,
            layers=self.layers[:count],
            neurons=self.neurons[:count],
            signs=self.signs[:count],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTexts:
    """What the models of a study read.

    Attributes:
        prompts: Token ids that generation starts from.
        windows: Token ids of running text, all of one length: perplexity is measured on them, and
            F1 against the tokens after their first `window_prompt`.
        window_prompt: Tokens of a window that are given, the rest being its reference.
        continuations: For base and policy, the tokens that each wrote after each prompt.
    """

    prompts: tuple[tuple[int, ...], ...]
    windows: tuple[tuple[int, ...], ...]
    window_prompt: int
    continuations: dict[str, tuple[tuple[int, ...], ...]]
