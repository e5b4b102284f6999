from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from dsteer_tl.behavior.detoxify_scorer import Detoxify
from dsteer_tl.behavior.lexicon import own_words, profane_words
from dsteer_tl.behavior.metric import Metric, Scores, Texts
from dsteer_tl.behavior.perspective import KEY_VARIABLE, Perspective
from dsteer_tl.errors import CheckpointError, ConfigurationError, RunError, ShapeError
from dsteer_tl.toxicity.attribute import FamilyScorer, get_attribute_scorer
from dsteer_tl.toxicity.types import AttributeScorer

KIND, PLAIN, UNKIND = "What a lovely, happy day.", "The box is on it.", "You are stupid and ugly."


@dataclass
class Family:
    """Answers with what it is given, and keeps what it was asked."""

    values: Sequence[float]
    asked: list[Texts] = field(default_factory=list)
    name: str = "made_up"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (
            Metric(name="other", unit="", better="lower", source="no"),
            Metric(name="harm", unit="", better="lower", source="a paper"),
        )

    def obstacle(self, texts: Texts) -> str:  # noqa: ARG002
        return "no weights"

    def score(self, texts: Texts) -> Scores:
        self.asked.append(texts)
        return {"harm": np.array(self.values), "other": np.full(len(texts), 0.25)}


# VADER


def test_vader_turns_the_compound_round() -> None:
    scorer: AttributeScorer = get_attribute_scorer("vader")
    analyzer = SentimentIntensityAnalyzer()
    texts = [KIND, PLAIN, UNKIND, ""]
    expected = [(1 - analyzer.polarity_scores(text)["compound"]) / 2 for text in texts]
    scores = scorer.score(texts)
    assert scores.tolist() == expected
    assert scores[0] < 0.3 < 0.7 < scores[2]
    assert scores[1] == scores[3] == 0.5
    assert (scorer.name, scorer.obstacle()) == ("vader", "") and "Hutto" in scorer.source


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=4))
def test_vader_scores_lie_between_0_and_1(texts: list[str]) -> None:
    scores = get_attribute_scorer("vader").score(texts)
    assert scores.shape == (len(texts),) and np.all((scores >= 0) & (scores <= 1))


def test_vader_words_are_plain_and_rated_low() -> None:
    words = get_attribute_scorer("vader").words()
    lexicon = SentimentIntensityAnalyzer().lexicon
    assert {"stupid", "hurt", "ugly"} <= words and not {"happy", "the", "kind"} & words
    assert max(lexicon[word] for word in words) <= -1
    assert all(word.isalpha() and word == word.casefold() for word in words)
    left_out = {word for word, valence in lexicon.items() if valence <= -1} - words
    assert left_out and not any(word.isalpha() for word in left_out)


# The families of `behavior`


def test_lexicon_says_whether_a_word_is_listed() -> None:
    scorer = get_attribute_scorer("lexicon")
    assert scorer.score([KIND, PLAIN, UNKIND, ""]).tolist() == [0, 0, 1, 0]
    assert (scorer.name, scorer.obstacle()) == ("lexicon", "")


@pytest.mark.parametrize("name", ["lexicon", "detoxify", "perspective"])
def test_words_of_the_lists(name: str) -> None:
    words = get_attribute_scorer(name).words()
    lists = own_words()
    assert {"stupid", "hurt", "threaten"} <= words
    assert words <= {*profane_words(), *lists.insult, *lists.threat}
    assert "shut up" in lists.insult and "shut up" not in words  # a phrase is no token
    assert words & set(profane_words()) - set(lists.insult) - set(lists.threat)


def test_detoxify_without_weights_says_so_and_gives_no_number(tmp_path: Path) -> None:
    scorer = get_attribute_scorer("detoxify", source=str(tmp_path))
    assert str(tmp_path) in scorer.obstacle() and "config.json" in scorer.obstacle()
    with pytest.raises(CheckpointError, match="config"):
        scorer.score([UNKIND])
    assert "Detoxify original" in scorer.source


def test_detoxify_means_the_toxicity_head_of_the_pinned_weights() -> None:
    scorer = get_attribute_scorer("detoxify")
    assert isinstance(scorer, FamilyScorer) and scorer.family == Detoxify()
    assert scorer.metric == "detoxify_toxicity"


def test_perspective_takes_its_key_from_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scorer = get_attribute_scorer("perspective", cache_folder=tmp_path)
    assert isinstance(scorer, FamilyScorer) and scorer.family == Perspective(cache=tmp_path)
    assert scorer.metric == "perspective_toxicity"
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert KEY_VARIABLE in scorer.obstacle()
    with pytest.raises(ConfigurationError, match=KEY_VARIABLE):
        scorer.score([UNKIND])
    monkeypatch.setenv(KEY_VARIABLE, "a-key")
    assert scorer.obstacle() == ""


def test_perspective_address_can_be_chosen() -> None:
    scorer = get_attribute_scorer("perspective", source="https://example.org/analyze")
    assert isinstance(scorer, FamilyScorer)
    assert scorer.family == Perspective(endpoint="https://example.org/analyze")


def test_a_family_is_asked_for_its_metric_without_prompts() -> None:
    family = Family([0.0, 1.0])
    scorer = FamilyScorer(family=family, metric="harm")
    assert scorer.score(["one", "two"]).tolist() == [0, 1]
    [asked] = family.asked
    assert asked.completions == ("one", "two") and asked.prompts == ("", "")
    assert (scorer.name, scorer.source, scorer.obstacle()) == ("made_up", "a paper", "no weights")
    assert scorer.score([]).shape == (0,) and len(family.asked) == 1


def test_a_missing_answer_is_an_error_and_no_number() -> None:
    with pytest.raises(RunError, match="no harm for 1 of 2 texts"):
        FamilyScorer(family=Family([0.5, np.nan]), metric="harm").score(["one", "two"])


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_scores_outside_the_range_are_refused(value: float) -> None:
    with pytest.raises(ShapeError, match="lies in"):
        FamilyScorer(family=Family([0.5, value]), metric="harm").score(["one", "two"])


def test_unknown_scorers_and_sources() -> None:
    with pytest.raises(ConfigurationError, match="expected one of vader, lexicon"):
        get_attribute_scorer("mood")
    for name in ("vader", "lexicon"):
        with pytest.raises(ConfigurationError, match="no source to choose"):
            get_attribute_scorer(name, source="somewhere")
