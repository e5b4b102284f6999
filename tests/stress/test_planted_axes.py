"""Planted preference axes on given texts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences import PreferencePair, PreferenceSet
from dsteer_tl.preferences.exchanging import exchanged_at_random
from dsteer_tl.stress import planted_axes
from dsteer_tl.stress.planted_axes import (
    AXES,
    agreements,
    axis_names,
    deal_prompts,
    preferred_sides,
    ranked_by,
    without_ties,
)

SHORT, LONG = "A sad dog.", "He was so happy. They loved it very much."


def pairs(*texts: tuple[str, str], split: str = "train") -> PreferenceSet:
    return PreferenceSet(
        tuple(
            PreferencePair(f"prompt {index}", chosen, rejected, split)  # type: ignore[arg-type]
            for index, (chosen, rejected) in enumerate(texts)
        ),
        name="planted",
    )


def test_the_statistics_by_hand() -> None:
    text = "He said “don't go”. She did. It is cold!"
    assert planted_axes.brevity(text) == -9
    assert planted_axes.sentence_length(text) == 3
    # he said don't go she did it is cold: an apostrophe counts as a letter.
    assert planted_axes.word_length(text) == pytest.approx(27 / 9)
    assert planted_axes.pronouns(text) == pytest.approx(3 / 9)
    assert planted_axes.variety("a b a A") == pytest.approx(2 / 4)
    for statistic in ("sentence_length", "word_length", "pronouns", "variety"):
        assert getattr(planted_axes, statistic)("?!") == 0


def test_sides_and_conflict() -> None:
    found = pairs((SHORT, LONG), (LONG, SHORT), (SHORT, SHORT))
    assert preferred_sides(found.pairs, "brevity").tolist() == [1, -1, 0]
    assert preferred_sides(found.pairs, "sentiment").tolist() == [-1, 1, 0]
    assert agreements(found, ("sentiment", "brevity")) == {"agreement:sentiment:brevity": (0.0, 2)}


def test_every_group_is_ranked_by_its_own_axis() -> None:
    found = pairs((SHORT, LONG), (LONG, SHORT), (SHORT, LONG), (LONG, SHORT))
    groups = {"prompt 0": 0, "prompt 1": 0, "prompt 2": 1, "prompt 3": 1}
    ranked = ranked_by(found, ("sentiment", "brevity"), groups)
    assert [pair.chosen for pair in ranked] == [LONG, LONG, SHORT, SHORT]
    assert [{pair.chosen, pair.rejected} for pair in ranked] == [{SHORT, LONG}] * 4
    assert [pair.prompt for pair in ranked] == list(found.prompts)


def test_ties_leave_the_training_side_and_are_counted() -> None:
    training = pairs((SHORT, LONG), ("A red dog.", "A red cat."))
    held_out = pairs(("A red dog.", "A red cat."), split="held_out")
    whole = PreferenceSet(training.pairs + held_out.pairs, name="planted")
    kept, ties = without_ties(whole, ("brevity", "sentiment"))
    assert [pair.prompt for pair in kept] == ["prompt 0", "prompt 0"]
    assert ties == {"brevity": 1, "sentiment": 1}
    with pytest.raises(DataError, match="each of 1 training pairs is a tie"):
        without_ties(PreferenceSet(whole.pairs[1:], name="planted"), ("brevity",))


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 5))
def test_prompts_are_dealt_evenly(prompts: int, groups: int, seed: int) -> None:
    found = pairs(*[(SHORT, LONG)] * prompts, *[(SHORT, LONG)] * prompts)
    dealt = deal_prompts(found, groups, seed)
    assert set(dealt) == set(found.prompts)
    sizes = Counter(dealt.values())
    assert max(sizes.values()) - min(sizes[group] for group in range(groups)) <= 1
    assert dealt == deal_prompts(found, groups, seed)


@given(st.integers(1, 30), st.integers(0, 5))
def test_half_of_the_pairs_are_exchanged(count: int, seed: int) -> None:
    found = pairs(*[(f"{index} yes", f"{index} no") for index in range(count)])
    shuffled = exchanged_at_random(found, seed)
    exchanged = sum(pair.chosen.endswith("no") for pair in shuffled)
    assert exchanged == -(-count // 2)
    for before, after in zip(found, shuffled, strict=True):
        assert {before.chosen, before.rejected} == {after.chosen, after.rejected}


def test_axes_that_do_not_exist() -> None:
    assert axis_names(2) == ("sentiment", "brevity")
    for count in (0, len(AXES) + 1):
        with pytest.raises(ConfigurationError, match=f"stress.axes has {count}"):
            axis_names(count)
