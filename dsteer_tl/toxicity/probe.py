"""The linear probe of an attribute on the residual stream, and what it must be compared with.

W_attribute of Lee et al. 2024 (sec. 3.1, W_toxic): logistic regression on the mean residual of a
text. A high accuracy says little by itself: beside it stand the majority class, a probe of shuffled
labels, and what the single words of the same texts give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from dsteer_tl.controls import Interval, bootstrap
from dsteer_tl.cosines import finite_rows
from dsteer_tl.errors import ConfigurationError, DataError, ShapeError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.sites import resid_post
from dsteer_tl.toxicity.labelled_texts import group_numbers
from dsteer_tl.toxicity.linear_probe import LinearProbe
from dsteer_tl.toxicity.regression import (
    auroc,
    auroc_of_ranks,
    best_penalty,
    held_out_rows,
    linear_direction,
    word_scores,
)
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.text_features import text_features
from dsteer_tl.toxicity.types import LabelledText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Control",
    "LinearProbe",
    "ProbeFit",
    "ProbeResult",
    "fit_probe",
    "fit_text_probe",
    "text_features",
]

Control = Literal["probe", "shuffled_labels", "majority", "words"]

#: Fewest texts of a class: with 20, a tenth of them still holds two of each.
_FEWEST = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeResult:
    """How a classifier does on the held-out texts.

    Attributes:
        control: ``"probe"``, or what it is compared with.
        balanced_accuracy: Mean of the two classes' recalls, with a bootstrap interval over groups;
            for shuffled_labels mean and 95 % range of the shuffles: one shuffle can lie far from
            chance, since texts differ along few directions, and its bootstrap would not show it.
        auroc: Area under the ROC curve, ties counted half, with such an interval.
        accuracy: Share of texts that are right: high for the majority class where classes differ
            in size.
        scores: Decision value of each held-out text; for shuffled_labels, of the first shuffle.
    """

    control: Control
    balanced_accuracy: Interval
    auroc: Interval
    accuracy: float
    scores: Float[np.ndarray, " held_out"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeFit:
    """A probe, its controls, and how all of them do on the same held-out texts.

    Attributes:
        probe: Fitted on the training texts.
        shuffled: Fitted on the same with their labels permuted; the first of the shuffles.
        results: Of probe, shuffled_labels, majority and words, in this order.
        held_out: Rows that took no part in fitting.
        labels: Their labels.
        penalty: Inverse strength of the L2 penalty of both probes.
        positive_share: Share of all texts that have the attribute.
    """

    probe: LinearProbe
    shuffled: LinearProbe
    results: tuple[ProbeResult, ...]
    held_out: Int[np.ndarray, " held_out"]
    labels: Bool[np.ndarray, " held_out"]
    penalty: float
    positive_share: float

    def result(self, control: Control) -> ProbeResult:
        """The result of one classifier."""
        return next(result for result in self.results if result.control == control)


def fit_text_probe(
    lens: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[LabelledText],
    settings: ToxicityConfiguration,
    *,
    progress: bool = True,
) -> ProbeFit:
    """Read texts at the last ``resid_post``, as the paper does, and `fit_probe` on them.

    Args:
        lens: The base.
        tokenizer: Its tokenizer.
        texts: With their labels.
        settings: Held-out share, draws, seed and tokens a pass.
        progress: Show a progress bar.

    Raises:
        DataError: As `text_features` and `fit_probe`.
    """
    site = resid_post(lens.n_layers - 1)
    features = text_features(
        lens,
        tokenizer,
        [item.text for item in texts],
        site,
        token_budget=settings.token_budget,
        progress=progress,
    )
    return fit_probe(
        features,
        texts,
        site=site,
        held_out_share=settings.held_out_share,
        draws=settings.draws,
        seed=settings.seed,
    )


def fit_probe(
    features: Float[np.ndarray, "text d_model"],
    texts: Sequence[LabelledText],
    *,
    site: str,
    held_out_share: float = 0.1,
    shuffles: int = 20,
    draws: int = 1000,
    seed: int = 0,
) -> ProbeFit:
    """Fit the probe and its controls on one side of a split and judge all of them on the other.

    Logistic regression with classes of equal weight and an L2 penalty, whose strength is chosen
    within the training texts (`regression` says how). Controls: ``shuffled_labels``, the same fit
    on permuted training labels; ``majority``, the larger class for every text; ``words``, logistic
    regression on counts of single words, its penalty chosen alike, which needs no model at all.

    Args:
        features: Of `text_features`.
        texts: The same texts; those of one group stay on one side.
        site: Where the features were read.
        held_out_share: Share of the texts that are held out (sec. 3.1: 10 %), drawn apart among
            groups with, without, and with both labels.
        shuffles: How often labels are permuted for the control shuffled_labels.
        draws: Bootstrap draws over held-out groups.
        seed: Of split, shuffles and bootstrap.

    Raises:
        DataError: Too few texts of a class, or a fit does not converge.
        ShapeError: Features and texts differ in number, or features are not finite.
        ConfigurationError: The share is not between 0 and 1, or there is no shuffle.
    """
    if shuffles < 1:
        raise ConfigurationError(f"shuffles is {shuffles}; expected at least 1, better 20")
    values = finite_rows(features, name="probe features")
    if len(values) != len(texts):
        raise ShapeError(f"probe: found {len(values)} features for {len(texts)} texts")
    labels = np.array([text.label for text in texts], dtype=bool)
    groups = group_numbers(texts)
    _check_classes(labels)
    test = held_out_rows(labels, groups, held_out_share, seed)
    train = np.setdiff1d(np.arange(len(texts)), test)
    penalty = best_penalty(values[train], labels[train], groups[train], seed)

    def fitted(training_labels: Bool[np.ndarray, " train"]) -> LinearProbe:
        weight, bias = linear_direction(values[train], training_labels, penalty)
        return LinearProbe(weight=weight, bias=bias, site=site, texts=len(train))

    probe = fitted(labels[train])
    generator = np.random.default_rng([seed, 1])
    shuffled = [fitted(generator.permutation(labels[train])) for _ in range(shuffles)]
    written = [text.text for text in texts]
    words = word_scores(
        [written[row] for row in train],
        labels[train],
        groups[train],
        [written[row] for row in test],
        seed,
    )
    majority = np.full(len(test), 1.0 if labels[train].mean() > 0.5 else -1.0)

    def judged(control: Control, scores: Float[np.ndarray, " held_out"]) -> ProbeResult:
        return _judge(control, scores, labels[test], groups[test], draws, seed)

    return ProbeFit(
        probe=probe,
        shuffled=shuffled[0],
        results=(
            judged("probe", probe.decision(values[test])),
            _over_shuffles([each.decision(values[test]) for each in shuffled], labels[test]),
            judged("majority", majority),
            judged("words", words),
        ),
        held_out=test,
        labels=labels[test],
        penalty=penalty,
        positive_share=float(labels.mean()),
    )


def _balanced_accuracy(
    found: Bool[np.ndarray, " text"], labels: Bool[np.ndarray, " text"]
) -> float:
    positive = int(labels.sum())
    if positive in (0, len(labels)):
        return float("nan")  # a resample without one of the classes
    return float(found[labels].mean() + 1 - found[~labels].mean()) / 2


def _judge(
    control: Control,
    scores: Float[np.ndarray, " held_out"],
    labels: Bool[np.ndarray, " held_out"],
    groups: Int[np.ndarray, " held_out"],
    draws: int,
    seed: int,
) -> ProbeResult:
    found = scores > 0
    ranks = np.unique(scores, return_inverse=True)[1].reshape(-1)
    return ProbeResult(
        control=control,
        balanced_accuracy=bootstrap(
            _balanced_accuracy, found, labels, groups=groups, draws=draws, seed=seed
        ),
        auroc=bootstrap(auroc_of_ranks, ranks, labels, groups=groups, draws=draws, seed=seed),
        accuracy=float(np.mean(found == labels)),
        scores=scores,
    )


def _over_shuffles(
    scores: Sequence[Float[np.ndarray, " held_out"]], labels: Bool[np.ndarray, " held_out"]
) -> ProbeResult:
    def spread(values: Sequence[float]) -> Interval:
        low, high = np.quantile(values, [0.025, 0.975])
        return Interval(
            value=float(np.mean(values)), low=float(low), high=float(high), draws=len(values)
        )

    return ProbeResult(
        control="shuffled_labels",
        balanced_accuracy=spread([_balanced_accuracy(each > 0, labels) for each in scores]),
        auroc=spread([auroc(each, labels) for each in scores]),
        accuracy=float(np.mean([(each > 0) == labels for each in scores])),
        scores=scores[0],
    )


def _check_classes(labels: Bool[np.ndarray, " text"]) -> None:
    positive, negative = int(labels.sum()), int((~labels).sum())
    if min(positive, negative) < _FEWEST:
        raise DataError(
            f"found {positive} texts with the attribute and {negative} without it, expected at "
            f"least {_FEWEST} of each: give more texts, or lower the margin of their labels"
        )
