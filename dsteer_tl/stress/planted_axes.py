"""Preference axes that can be planted on given texts: simple statistics, each a scorer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from jaxtyping import Int

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences import PreferencePair, PreferenceSet, Scorer, vader_scorer
from dsteer_tl.preferences.exchanging import exchanged

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+")
_PRONOUNS = frozenset(
    {"he", "she", "it", "they", "him", "her", "them", "his", "hers", "its", "their", "theirs"}
)


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _each(score: Callable[[str], float]) -> Callable[[], Scorer]:
    return lambda: lambda texts: [score(text) for text in texts]


def brevity(text: str) -> float:
    """Fewer words: minus their number."""
    return -float(len(text.split()))


def sentence_length(text: str) -> float:
    """Longer sentences: words a sentence."""
    sentences = [part for part in _SENTENCE_END.split(text) if part.strip()]
    return len(text.split()) / len(sentences) if sentences else 0.0


def word_length(text: str) -> float:
    """Longer words: letters a word."""
    words = _words(text)
    return sum(map(len, words)) / len(words) if words else 0.0


def variety(text: str) -> float:
    """Fewer repetitions: share of words that are not a repetition."""
    words = _words(text)
    return len(set(words)) / len(words) if words else 0.0


def pronouns(text: str) -> float:
    """More pronouns of the third person: their share of the words."""
    words = _words(text)
    return sum(word in _PRONOUNS for word in words) / len(words) if words else 0.0


#: Axes in the order in which k of them are planted. Brevity disagrees with sentiment and with
#: longer sentences on most pairs, as longer texts have room for both.
AXES: Mapping[str, Callable[[], Scorer]] = {
    "sentiment": vader_scorer,
    "brevity": _each(brevity),
    "sentence_length": _each(sentence_length),
    "word_length": _each(word_length),
    "pronouns": _each(pronouns),
    "variety": _each(variety),
}


def axis_names(count: int) -> tuple[str, ...]:
    """The first axes.

    Raises:
        ConfigurationError: There are not as many, or none was asked for.
    """
    if not 1 <= count <= len(AXES):
        raise ConfigurationError(
            f"stress.axes has {count}; expected numbers from 1 to {len(AXES)}, as the axes are "
            f"{', '.join(AXES)}"
        )
    return tuple(AXES)[:count]


def preferred_sides(pairs: Sequence[PreferencePair], axis: str) -> Int[np.ndarray, " pair"]:
    """Which completion each pair's axis prefers: 1 for chosen, −1 for rejected, 0 for a tie."""
    scorer = AXES[axis]()
    chosen = np.array(scorer([pair.chosen for pair in pairs]), dtype=np.float64)
    rejected = np.array(scorer([pair.rejected for pair in pairs]), dtype=np.float64)
    return np.sign(chosen - rejected).astype(np.int64)


def without_ties(
    preferences: PreferenceSet, axes: Sequence[str]
) -> tuple[PreferenceSet, Mapping[str, int]]:
    """The training pairs on which every axis has a preference, and the held-out pairs.

    The same texts can then be ranked by any of the axes, so that the number of pairs does not
    depend on how many are planted.

    Returns:
        The set, and for each axis the number of training pairs that it ties.

    Raises:
        DataError: No training pair is left.
    """
    sides = {axis: preferred_sides(preferences.pairs, axis) for axis in axes}
    training = np.array([pair.split == "train" for pair in preferences])
    kept = ~training | np.all([side != 0 for side in sides.values()], axis=0)
    if not (kept & training).any():
        raise DataError(
            f"{preferences.name}: each of {int(training.sum())} training pairs is a tie on one of "
            f"the axes {', '.join(axes)}; expected pairs that differ in all of them"
        )
    ties = {axis: int(np.sum((side == 0) & training)) for axis, side in sides.items()}
    pairs = tuple(pair for pair, keep in zip(preferences, kept, strict=True) if keep)
    return replace(preferences, pairs=pairs), ties


def deal_prompts(preferences: PreferenceSet, groups: int, seed: int) -> dict[str, int]:
    """A group for every prompt, at random and of equal size up to one prompt."""
    prompts = list(dict.fromkeys(preferences.prompts))
    order = np.random.default_rng([seed, groups]).permutation(len(prompts))
    return {prompts[index]: place % groups for place, index in enumerate(order.tolist())}


def ranked_by(
    preferences: PreferenceSet, axes: Sequence[str], group: Mapping[str, int]
) -> PreferenceSet:
    """The same pairs, each ranked by the axis of its prompt's group; ties stay as they are."""
    sides = [preferred_sides(preferences.pairs, axis) for axis in axes]
    pairs = tuple(
        exchanged(pair) if sides[group[pair.prompt]][index] < 0 else pair
        for index, pair in enumerate(preferences)
    )
    return replace(
        preferences, pairs=pairs, name=f"{preferences.name}, ranked by {', '.join(axes)}"
    )


def agreements(preferences: PreferenceSet, axes: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Share of training pairs, ties apart, on which two axes prefer the same completion.

    Returns:
        ``agreement:<axis>:<axis>`` → share and number of pairs.
    """
    pairs = preferences.train.pairs
    sides = {axis: preferred_sides(pairs, axis) for axis in axes}
    found = {}
    for first, second in combinations(axes, 2):
        both = (sides[first] != 0) & (sides[second] != 0)
        same = sides[first][both] == sides[second][both]
        share = float(same.mean()) if both.any() else float("nan")
        found[f"agreement:{first}:{second}"] = (share, int(both.sum()))
    return found
