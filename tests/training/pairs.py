"""Pairs enough for several updates of eight."""

from __future__ import annotations

from dsteer_tl.preferences import PreferencePair, PreferenceSet
from tests.training.conftest import WORDS


def many_pairs() -> PreferenceSet:
    """Twenty-four pairs to train on, four held out."""
    pairs = [
        PreferencePair(
            f"{opening} the {word} was",
            " happy and" + " blue" * (index % 3),
            " sad" + " no" * (index % 2),
            split="train" if index < 24 else "held_out",
        )
        for index, (opening, word) in enumerate(
            (opening, word) for opening in ("Once", "Then", "He said", "She") for word in WORDS
        )
    ]
    return PreferenceSet.from_pairs(pairs[:28], name="many")
