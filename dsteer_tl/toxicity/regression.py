"""Logistic regressions that are judged on texts they have not seen."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dsteer_tl.errors import ConfigurationError, DataError

#: Inverse strengths of the L2 penalty to choose from, the strongest first.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_TUNING_SPLITS, _TUNING_SHARE = 3, 0.25
_MAX_ITERATIONS = 10_000
_WORD = r"(?u)\b\w+\b"


def held_out_rows(
    labels: Bool[np.ndarray, " text"], groups: Int[np.ndarray, " text"], share: float, seed: int
) -> Int[np.ndarray, " held_out"]:
    """Rows for the held-out side, whole groups of them, in rising order.

    Groups are drawn apart among those with the attribute, without it, and with texts of both kinds;
    from each as many as come nearest to the share of its texts.

    Raises:
        ConfigurationError: The share is not between 0 and 1.
        DataError: A side would have no text of a class.
    """
    if not 0 < share < 1:
        raise ConfigurationError(
            f"held_out_share is {share}; expected a number between 0 and 1, as 0.1"
        )
    _, owner, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shares = np.bincount(owner, weights=labels) / sizes
    kinds = np.where(shares == 1, 1, np.where(shares == 0, 0, 2))
    generator = np.random.default_rng(seed)
    taken: list[int] = []
    for kind in (0, 1, 2):
        order = generator.permutation(np.flatnonzero(kinds == kind))
        reached = np.concatenate([[0], np.cumsum(sizes[order])])
        count = int(np.argmin(np.abs(reached - share * reached[-1])))
        taken += order[:count].tolist()
    held_out: Bool[np.ndarray, " text"] = np.isin(owner, taken)
    for side, rows in (("training", ~held_out), ("held-out", held_out)):
        if not 0 < labels[rows].sum() < rows.sum():
            raise DataError(
                f"the {side} side has {int(labels[rows].sum())} texts with the attribute among "
                f"{int(rows.sum())}, expected some of each class: give more texts or smaller groups"
            )
    return np.flatnonzero(held_out)


def auroc(scores: Float[np.ndarray, " text"], labels: Bool[np.ndarray, " text"]) -> float:
    """P(score of a positive > score of a negative) + P(equal)/2; NaN without either class."""
    return auroc_of_ranks(np.unique(scores, return_inverse=True)[1].reshape(-1), labels)


def auroc_of_ranks(ranks: Int[np.ndarray, " text"], labels: Bool[np.ndarray, " text"]) -> float:
    """The same from ranks 0, 1, … of the distinct scores: no sorting in a bootstrap."""
    size = int(ranks.max()) + 1
    above = np.bincount(ranks[labels], minlength=size)
    below = np.bincount(ranks[~labels], minlength=size)
    pairs = int(above.sum()) * int(below.sum())
    return float(above @ (np.cumsum(below) - below / 2)) / pairs if pairs else float("nan")


def linear_direction(
    features: Float[np.ndarray, "text d_model"],
    labels: Bool[np.ndarray, " text"],
    penalty: float,
) -> tuple[Float[np.ndarray, " d_model"], float]:
    """Weight and bias of a logistic regression with classes of equal weight, in raw units.

    Features are centred, which moves the bias alone, and divided by one number, the median of the
    dimensions' standard deviations: dividing each by its own would turn the direction, and the root
    mean square would be that of a few outlier dimensions.

    Args:
        features: A row a text.
        labels: Of the texts.
        penalty: Inverse strength of the L2 penalty on the weight of the divided features.

    Raises:
        DataError: All features are equal, or the fit does not converge.
    """
    mean = features.mean(axis=0)
    scale = _scale(features)
    model = _regression((features - mean) / scale, labels, penalty)
    weight = np.asarray(model.coef_[0] / scale)
    return weight, float(model.intercept_[0] - weight @ mean)


def best_penalty(
    features: Float[np.ndarray, "text d_model"],
    labels: Bool[np.ndarray, " text"],
    groups: Int[np.ndarray, " text"],
    seed: int,
) -> float:
    """The penalty of `PENALTIES` with the best mean AUROC on held-out quarters of these texts.

    Raises:
        DataError: A class is too small to be split.
    """

    def scores(train: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
        weight, bias = linear_direction(features[train], labels[train], penalty)
        return np.asarray(features[test] @ weight + bias)

    return _tuned(scores, labels, groups, seed)


def word_scores(
    texts: Sequence[str],
    labels: Bool[np.ndarray, " train"],
    groups: Int[np.ndarray, " train"],
    asked: Sequence[str],
    seed: int,
) -> Float[np.ndarray, " asked"]:
    """Decision values of a regression on counts of single words, its penalty chosen as a probe's.

    Words are those of the training texts; without any there is nothing to tell texts apart by, and
    every value is 0.

    Args:
        texts: Training texts.
        labels: Theirs.
        groups: Theirs.
        asked: Texts to be judged.
        seed: Of the splits that choose the penalty.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    if not any(re.search(_WORD, text) for text in texts):
        return np.zeros(len(asked))
    vectorizer = CountVectorizer(token_pattern=_WORD)
    counts = vectorizer.fit_transform(texts).astype(float)

    def scores(train: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
        model = _regression(counts[train], labels[train], penalty)
        return np.asarray(model.decision_function(counts[test]))

    penalty = _tuned(scores, labels, groups, seed)
    model = _regression(counts, labels, penalty)
    return np.asarray(model.decision_function(vectorizer.transform(asked)), dtype=float)


def _tuned(
    scores: Callable[[np.ndarray, np.ndarray, float], np.ndarray],
    labels: Bool[np.ndarray, " text"],
    groups: Int[np.ndarray, " text"],
    seed: int,
) -> float:
    found = np.zeros(len(PENALTIES))
    for seeds in np.random.SeedSequence(seed).generate_state(_TUNING_SPLITS):
        test = held_out_rows(labels, groups, _TUNING_SHARE, int(seeds))
        train = np.setdiff1d(np.arange(len(labels)), test)
        found += [auroc(scores(train, test, penalty), labels[test]) for penalty in PENALTIES]
    return PENALTIES[int(np.argmax(found))]


def _scale(features: Float[np.ndarray, "text d_model"]) -> float:
    spread = features.std(axis=0)
    if not spread.any():
        raise DataError("all texts have the same features; expected features that tell them apart")
    return float(np.median(spread[spread > 0]))


def _regression(features: Any, labels: Bool[np.ndarray, " text"], penalty: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=penalty, class_weight="balanced", tol=1e-6, max_iter=_MAX_ITERATIONS
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return model.fit(features, labels)
        except ConvergenceWarning as error:
            raise DataError(
                f"logistic regression on {features.shape[0]} texts of {features.shape[1]} features "
                f"did not converge within {_MAX_ITERATIONS} iterations; look for outliers among "
                "the texts, give more of them, or read another site"
            ) from error
