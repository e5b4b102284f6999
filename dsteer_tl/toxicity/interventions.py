"""Subtracting vectors at the last layer, at the policy's perplexity (Lee et al. 2024, Table 2).

Any vector lowers an attribute once it breaks the text. So each is given the coefficient at which
the running text is exactly as surprising as to the policy; what is left to compare is the
attribute, and a random direction, a value vector without the attribute and a constant on the
logits stand beside it at the same perplexity.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from dsteer_tl.controls import random_like
from dsteer_tl.directions import SteeringVector
from dsteer_tl.errors import ConfigurationError, ShapeError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.steering.interventions import Intervention
from dsteer_tl.steering.packed_generation import generate_rows
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.steering.vectors import control_seed
from dsteer_tl.toxicity.continuing import length_batches
from dsteer_tl.toxicity.evaluation import (
    CONTINUATION_COLUMNS,
    Evaluation,
    continuation_rows,
    evaluate,
    evaluation_of,
    start_texts,
    summary,
    to_continue,
)
from dsteer_tl.toxicity.perplexity import LastLayerWindows, WindowLosses, coefficient_at
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import AttributeScorer, StudyTexts

logger = logging.getLogger(__name__)

PROBE, RANDOM, LOGIT_BIAS = "probe", "random", "logit_bias"
#: Multiples of the matched coefficient that are measured too.
DOSES = (0.5, 2.0)
#: The base's perplexity times this is aimed at where the policy's is not above the base's.
FALLBACK = 1.05
# The perplexity aimed at is met to half a percent, and to this share of its rise above the base's.
_TOLERANCE, _SHARE_OF_RISE = 0.005, 0.02
_START = 0.25  # where a search starts, in mean norms of the residuals
_SETTING_COLUMNS = ("vector", "role", "coefficient", "norm", "matched")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredInterventions:
    """What subtracting vectors does, beside what training did.

    Attributes:
        tables: ``toxicity_interventions`` and ``toxicity_continuations``.
        anchors: Evaluations of the unsteered models by name: base, policy and null models.
    """

    tables: dict[str, pd.DataFrame]
    anchors: dict[str, Evaluation]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Setting:
    """One intervention with one coefficient; a vector is subtracted, a logit bias added."""

    intervention: Intervention
    role: str
    coefficient: float
    matched: bool = False
    continued: bool = True  # whether windows are continued, for F1

    @property
    def scale(self) -> float:
        """What the intervention is multiplied by."""
        return -self.coefficient if self.intervention.vectors else self.coefficient

    @property
    def row(self) -> tuple[str, str, float, float, bool]:
        """By `_SETTING_COLUMNS`."""
        norm = self.coefficient * self.intervention.norm
        return (self.intervention.name, self.role, self.coefficient, norm, self.matched)

    def losses(self, windows: LastLayerWindows) -> WindowLosses:
        """Of the windows under this setting."""
        if self.intervention.logit_bias is not None:
            return windows.losses(self.scale, logit_bias=self.intervention.logit_bias)
        return windows.losses(self.scale, vector=self.intervention.vectors[0].values)


def measure_interventions(
    models: Mapping[str, LensModel],
    tokenizer: PreTrainedTokenizerBase,
    texts: StudyTexts,
    scorer: AttributeScorer | None,
    vectors: Sequence[SteeringVector],
    controls: Sequence[SteeringVector] = (),
    *,
    configuration: ToxicityConfiguration,
    decoding: Decoding,
    batch_rows: int = 256,
) -> MeasuredInterventions:
    """Subtracts vectors from the base's last ``resid_post`` at every token: x − αv.

    α is such that the perplexity of the windows is the policy's, to half a percent. Where the
    policy's is not above the base's there is no such α above 0: then the base's times `FALLBACK` is
    aimed at, a warning says so, and no setting counts as matched. Each vector is also measured at
    `DOSES` times its α, where windows are not continued (F1 is NaN).

    Made here, matched on their own, are ``random``, an isotropic Gaussian direction with the norm
    of the probe (each entry has mean 0; measured also at the probe's α, with equal norm and not
    matched), and ``logit_bias``, the mean change of the logits over the windows that subtracting
    the matched probe makes, added at every token: what is left of the probe when it reads no
    context. Its coefficient is a multiple of that change, its norm one of logits.

    Args:
        models: ``base``, ``policy`` and null models by name; all are anchors.
        tokenizer: Decodes continuations.
        texts: Prompts and windows.
        scorer: Scores continuations; scores are NaN where it cannot run.
        vectors: At the base's last ``resid_post``, pointing towards the attribute; one is named
            ``probe``.
        controls: Further vectors there without the attribute, as ``random_value_vector``.
        configuration: Seed, bootstrap draws and token budget.
        decoding: Length and sampling of continuations.
        batch_rows: Most rows of one packed generation, unless settings alone are more.

    Raises:
        ConfigurationError: Base, policy or probe is missing, or two vectors have one name.
        SpaceError: A vector belongs elsewhere than the base's last ``resid_post``.
        ShapeError: Texts do not fit the models, or a vector is zero.
    """
    _check(models, vectors, controls)
    base, reading = models["base"], (texts, tokenizer, scorer, decoding)
    anchors = {
        name: evaluate(
            lens, *reading, token_budget=configuration.token_budget, batch_rows=batch_rows
        )
        for name, lens in models.items()
    }
    windows = LastLayerWindows(base, texts.windows, token_budget=configuration.token_budget)
    matching = _Matching(windows, anchors["base"].losses, anchors["policy"].losses)
    settings = _settings(base, windows, matching, vectors, controls, configuration.seed)
    written = _continue(base, texts, settings, decoding, batch_rows)
    starts = start_texts(texts, tokenizer)
    rows: list[dict[str, object]] = []
    continuations: list[dict[str, object]] = []
    unsteered = [(name, (name, "anchor", 0.0, 0.0, False), each) for name, each in anchors.items()]
    steered = (
        ("base", setting.row, evaluation_of(tokens, setting.losses(windows), *reading))
        for setting, tokens in zip(settings, written, strict=True)
    )
    for host, row, found in (*unsteered, *steered):
        name, _, coefficient, *_ = row
        means = summary(found, anchors["base"], draws=configuration.draws, seed=configuration.seed)
        rows.append(dict(zip(_SETTING_COLUMNS, row, strict=True)) | means)
        continuations += continuation_rows(found, starts, name, host, coefficient)
    tables = {
        "toxicity_interventions": pd.DataFrame(rows),
        "toxicity_continuations": pd.DataFrame(continuations, columns=list(CONTINUATION_COLUMNS)),
    }
    return MeasuredInterventions(tables=tables, anchors=anchors)


def random_control(probe: SteeringVector, seed: int) -> SteeringVector:
    """A direction uniform on the sphere, with the norm of the probe.

    Not uniform numbers from [0, 1): those share the direction (1, …, 1), so that all "random"
    vectors would be nearly one and the same.
    """
    values = random_like(probe.values, control_seed(seed, RANDOM, probe.space))
    return probe.with_values(values, RANDOM)


class _Matching:
    """Finds coefficients at which the windows have the policy's perplexity."""

    def __init__(self, windows: LastLayerWindows, base: WindowLosses, policy: WindowLosses) -> None:
        self._windows, self._unsteered = windows, windows.losses().loss
        self._aim = policy.loss - base.loss
        self._possible = self._aim > _TOLERANCE
        if not self._possible:
            logger.warning(
                "the policy's perplexity, %.4g, is not above the base's, %.4g, by half a percent: "
                "vectors are matched to the base's times %g and none counts as matched",
                *(policy.perplexity, base.perplexity, FALLBACK),
            )
            self._aim = float(np.log(FALLBACK))

    def __call__(self, setting: _Setting) -> _Setting:
        """The setting with its coefficient; a warning, and as it was, where there is none."""

        def rise(coefficient: float) -> float:
            tried = replace(setting, coefficient=coefficient)
            return tried.losses(self._windows).loss - self._unsteered

        tolerance = min(_TOLERANCE, _SHARE_OF_RISE * self._aim)
        start = setting.coefficient
        found = coefficient_at(rise, self._aim, start=start, tolerance=tolerance)
        if found is None:
            logger.warning(
                "no coefficient of %s raises the loss of the windows by %.4g nats a token: it is "
                "measured at %.4g and does not count as matched",
                *(setting.intervention.name, self._aim, start),
            )
            return setting
        return replace(setting, coefficient=found, matched=self._possible)


def _settings(
    base: LensModel,
    windows: LastLayerWindows,
    matching: _Matching,
    vectors: Sequence[SteeringVector],
    controls: Sequence[SteeringVector],
    seed: int,
) -> list[_Setting]:
    probe = next(vector for vector in vectors if vector.name == PROBE)
    drawn = random_control(probe, seed)
    every = [(vector, "attribute") for vector in vectors]
    every += [(vector, "control") for vector in (drawn, *controls)]
    matched: dict[str, _Setting] = {}
    for vector, role in every:
        vector.require_space(base, windows.site)
        # Nothing reads the last resid_post but the readout of its own token, so that steering the
        # prompt changes no continuation; this way the prompt is run once for all settings.
        item = Intervention(name=vector.name, vectors=(vector,), positions="response")
        start = _START * windows.mean_norm / vector.norm
        matched[vector.name] = matching(_Setting(intervention=item, role=role, coefficient=start))
    alpha = matched[PROBE].coefficient
    bias = Intervention(
        name=LOGIT_BIAS,
        logit_bias=windows.mean_logit_change(-alpha, probe.values),
        positions="response",
        control_for=windows.site,
    )
    matched[LOGIT_BIAS] = matching(_Setting(intervention=bias, role="control", coefficient=1.0))
    equal_norm = replace(matched[RANDOM], coefficient=alpha, matched=False)
    doses = [
        replace(setting, coefficient=dose * setting.coefficient, matched=False, continued=False)
        for setting in matched.values()
        for dose in DOSES
    ]
    return [*matched.values(), equal_norm, *doses]


def _continue(
    base: LensModel,
    texts: StudyTexts,
    settings: Sequence[_Setting],
    decoding: Decoding,
    batch_rows: int,
) -> list[list[tuple[int, ...]]]:
    """Continuations under every setting, in the order of `to_continue`; windows for some."""
    starts, seeds = to_continue(texts)
    count = len(texts.prompts)
    found: list[dict[int, tuple[int, ...]]] = [{} for _ in settings]
    parts = (
        (range(count), list(range(len(settings)))),
        (range(count, len(starts)), [i for i, each in enumerate(settings) if each.continued]),
    )
    for places, kept in parts:
        own = [(settings[index].intervention, settings[index].scale) for index in kept]
        prompts = [starts[place] for place in places]
        for batch in length_batches(prompts, max(1, batch_rows // len(own))):
            generated = generate_rows(
                base,
                [prompts[index] for index in batch],
                own,
                decoding,
                seeds=[seeds[places[index]] for index in batch],
            )
            for index, completions in zip(batch, generated, strict=True):
                for setting, completion in zip(kept, completions, strict=True):
                    found[setting][places[index]] = completion.tokens
    return [[row[place] for place in sorted(row)] for row in found]


def _check(
    models: Mapping[str, LensModel],
    vectors: Sequence[SteeringVector],
    controls: Sequence[SteeringVector],
) -> None:
    names = [vector.name for vector in (*vectors, *controls)]
    taken = [*names, RANDOM, LOGIT_BIAS, *models]
    if not {"base", "policy"} <= set(models) or PROBE not in names[: len(vectors)]:
        raise ConfigurationError(
            f"interventions: found models {', '.join(models)} and vectors {', '.join(names)}, "
            f"expected base and policy among the former and {PROBE!r} among the latter"
        )
    if len(set(taken)) < len(taken):
        raise ConfigurationError(f"interventions: {', '.join(taken)} are not all different names")
    for vector in (*vectors, *controls):
        if vector.norm == 0:
            raise ShapeError(f"interventions: {vector.name} is zero, so there is nothing to match")
