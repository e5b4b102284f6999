"""Scorers of completions: callables from texts to numbers, higher is better."""

from __future__ import annotations

from collections.abc import Callable

from dsteer_tl.errors import ConfigurationError, DependencyError

Scorer = Callable[[list[str]], list[float]]


def vader_scorer() -> Scorer:
    """The compound sentiment of VADER, in [−1, 1] (Hutto & Gilbert 2014): words, no model.

    Raises:
        DependencyError: vaderSentiment is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise DependencyError(
            "the vader scorer needs vaderSentiment; install it with pip install vaderSentiment"
        ) from error
    analyzer = SentimentIntensityAnalyzer()

    def score(texts: list[str]) -> list[float]:
        return [float(analyzer.polarity_scores(text)["compound"]) for text in texts]

    return score


def length_scorer() -> Scorer:
    """The number of words: a preference without content, for controls and tests."""

    def score(texts: list[str]) -> list[float]:
        return [float(len(text.split())) for text in texts]

    return score


#: The scorers that a configuration can name.
SCORERS: dict[str, Callable[[], Scorer]] = {"vader": vader_scorer, "length": length_scorer}


def get_scorer(name: str) -> Scorer:
    """The scorer of that name.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in SCORERS:
        raise ConfigurationError(
            f"there is no scorer {name!r}; expected one of {', '.join(sorted(SCORERS))}"
        )
    return SCORERS[name]()
