from __future__ import annotations

import sys

import pytest

from dsteer_tl.errors import ConfigurationError, DependencyError
from dsteer_tl.preferences import get_scorer


def test_vader_orders_texts_by_sentiment() -> None:
    good, neutral, bad = get_scorer("vader")(["A wonderful day!", "A table.", "A horrible day!"])
    assert 1 >= good > 0.5 > neutral == 0 > -0.5 > bad >= -1


def test_length_counts_words() -> None:
    assert get_scorer("length")(["", "one", " two  words\n"]) == [0.0, 1.0, 2.0]


def test_unknown_scorers_are_listed() -> None:
    with pytest.raises(ConfigurationError, match="no scorer 'bert'; expected one of length, vader"):
        get_scorer("bert")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(DependencyError, match="pip install vaderSentiment"):
        get_scorer("vader")
