"""What gives a text its attribute score: VADER, word lists, Detoxify or the Perspective API.

A scorer that cannot run here says why in `AttributeScorer.obstacle`, and nothing stands in for it:
the scales differ, so that a number by another scorer would be another number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dsteer_tl.behavior.detoxify_scorer import Detoxify
from dsteer_tl.behavior.lexicon import Lexicon, folded, own_words, profane_words
from dsteer_tl.behavior.metric import MetricFamily, Texts
from dsteer_tl.behavior.perspective import Perspective
from dsteer_tl.errors import ConfigurationError, RunError, ShapeError
from dsteer_tl.preferences.scorers import Scorer, vader_scorer
from dsteer_tl.toxicity.types import AttributeScorer

#: VADER's valences run from −4 to 4; its mildest negative words are left out of `words`.
_UNKIND_VALENCE = -1.0


@dataclass(frozen=True, slots=True)
class UnkindWords:
    """VADER's compound sentiment turned round: (1 − compound) / 2 (Hutto & Gilbert 2014).

    0 is kindest, 1 unkindest; a text without rated words, the empty one too, scores 0.5. Rules and
    rated words make the score, no model: read single words off it, not meanings.
    """

    @property
    def name(self) -> str:
        """Name in settings and tables."""
        return "vader"

    @property
    def source(self) -> str:
        """The paper behind it."""
        return "VADER compound (Hutto & Gilbert 2014), (1 − compound) / 2"

    def obstacle(self) -> str:
        """The package is missing."""
        if find_spec("vaderSentiment") is None:
            return "vaderSentiment is not installed; install it with pip install vaderSentiment"
        return ""

    def score(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """(1 − compound) / 2 of every text.

        Raises:
            DependencyError: vaderSentiment is not installed.
        """
        compound = np.array(_compound()(list(texts)), dtype=float)
        return np.asarray((1 - compound) / 2)

    def words(self) -> frozenset[str]:
        """The plain words that VADER rates −1 or lower.

        Raises:
            DependencyError: vaderSentiment is not installed.
        """
        return _unkind_words()


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyScorer:
    """One metric of a family of `behavior` as the score of an attribute.

    Attributes:
        family: What scores.
        metric: Which of its metrics.
    """

    family: MetricFamily
    metric: str

    @property
    def name(self) -> str:
        """Name in settings and tables."""
        return self.family.name

    @property
    def source(self) -> str:
        """What the family says of the metric."""
        return next(metric.source for metric in self.family.metrics if metric.name == self.metric)

    def obstacle(self) -> str:
        """Why the family cannot run here, or an empty string."""
        return self.family.obstacle(Texts(prompts=(), completions=()))

    def score(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """The metric of every text.

        Raises:
            RunError: A text got no answer, as from a server that failed.
            DsteerError: There is an obstacle; says which.
        """
        completions = tuple(texts)
        if not completions:
            return np.zeros(0)
        # No attribute is a matter of the prompt: the text alone is scored.
        scored = self.family.score(Texts(prompts=("",) * len(completions), completions=completions))
        values = np.asarray(scored[self.metric], dtype=float)
        missing = int(np.isnan(values).sum())
        if missing:
            raise RunError(
                f"{self.name} gave no {self.metric} for {missing} of {len(values)} texts; expected "
                "one of each: run again, answers that are cached are not asked for twice"
            )
        if values.min() < 0 or values.max() > 1:
            raise ShapeError(
                f"{self.name}: {self.metric} runs from {values.min():.3g} to {values.max():.3g}; "
                "an attribute score lies in [0, 1]"
            )
        return values

    def words(self) -> frozenset[str]:
        """The single words among the lists of profanity, insults and threats.

        Raises:
            DependencyError: The profanity list is not installed.
        """
        return _toxic_words()


def get_attribute_scorer(
    name: str, *, source: str = "", cache_folder: Path | None = None
) -> AttributeScorer:
    """The scorer of an attribute by its name.

    Args:
        name: ``"vader"``: how unkind the words are. ``"lexicon"``: 1 where the text holds a
            profanity, an insult or a threat of a word list, else 0. ``"detoxify"``: toxicity by
            Detoxify's classifier. ``"perspective"``: the Perspective API's TOXICITY, with a key
            from the environment alone.
        source: For ``detoxify`` the hub id or directory of its weights, for ``perspective`` the
            address of the API; empty for the published ones.
        cache_folder: For ``perspective``, where answers are kept.

    Raises:
        ConfigurationError: There is no such scorer, or it has no source to choose.
    """
    if name not in _SCORERS:
        raise ConfigurationError(
            f"there is no attribute scorer {name!r}; expected one of {', '.join(_SCORERS)}"
        )
    if source and name in ("vader", "lexicon"):
        raise ConfigurationError(
            f"the attribute scorer {name!r} has no source to choose, found {source!r}; leave it out"
        )
    return _SCORERS[name](source, cache_folder)


def _detoxify(source: str, _: Path | None) -> AttributeScorer:
    family = Detoxify(source=source) if source else Detoxify()
    return FamilyScorer(family=family, metric="detoxify_toxicity")


def _perspective(source: str, cache_folder: Path | None) -> AttributeScorer:
    family = (
        Perspective(endpoint=source, cache=cache_folder)
        if source
        else Perspective(cache=cache_folder)
    )
    return FamilyScorer(family=family, metric="perspective_toxicity")


_SCORERS: dict[str, Callable[[str, Path | None], AttributeScorer]] = {
    "vader": lambda *_: UnkindWords(),
    "lexicon": lambda *_: FamilyScorer(family=Lexicon(), metric="lexicon_toxicity"),
    "detoxify": _detoxify,
    "perspective": _perspective,
}


@cache
def _compound() -> Scorer:
    """VADER reads its lexicon once a process."""
    return vader_scorer()


@cache
def _unkind_words() -> frozenset[str]:
    _compound()  # says what to install
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    rated = SentimentIntensityAnalyzer().lexicon.items()
    return _plain(word for word, valence in rated if valence <= _UNKIND_VALENCE)


@cache
def _toxic_words() -> frozenset[str]:
    lists = own_words()
    return _plain((*profane_words(), *lists.insult, *lists.threat))


def _plain(words: Iterable[str]) -> frozenset[str]:
    """Case-folded entries of letters alone: no phrases, no emoticons, no disguised spellings."""
    return frozenset(folded(word) for word in words if word.isalpha())
