"""Variants of the policy: trained once, captured on the tokens that every other variant sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from dsteer_tl.capture import CaptureConfiguration, capture_shifts
from dsteer_tl.errors import ConfigurationError, DataError, RunError
from dsteer_tl.lens_model import LensModel, load_lens_model
from dsteer_tl.lens_model.adapter import is_adapter
from dsteer_tl.null_models import random_weights_model
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import probes_from_pairs
from dsteer_tl.preferences import PreferenceSet
from dsteer_tl.preflight import run_preflight
from dsteer_tl.shift_set import FEWEST_PROMPTS
from dsteer_tl.sites import FINAL, resid_post
from dsteer_tl.stress.columns import CONTROL, MEASURED
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.shift_samples import ConditionRows
from dsteer_tl.stress.shift_summary import OWN_DATA, summary_table
from dsteer_tl.stress.variant_rows import Captured, place_rows, response_log_probabilities
from dsteer_tl.stress.variant_training import Variant, trained_once, update_count
from dsteer_tl.training import TrainingConfiguration

#: The condition that repeats the run: the reference of every comparison.
AS_RUN = "as_run"
#: The control that keeps how far each tensor moved and learnt nothing.
RANDOM_WEIGHTS = "random_weights"
#: The control without a model.
RANDOM_VECTOR = "random_vector"
#: The run's recipe with the next seed: how much two trainings of one recipe differ.
OTHER_SEED = "other_seed"
#: Where shifts are summarised: a prompt's end, and its response.
POSITION_KINDS = ("last_prompt", "response")

#: Statistics that a vector has without a model behind it.
VECTOR_STATISTICS = ("v_norm", "cos_to_reference", "recovered_of_reference")


class VariantBench:
    """Trains variants of one run and measures all of them on the same tokens.

    Every variant makes as many updates as the run's policy, or `StressConfiguration.max_steps` if
    that is fewer; in that case the run's own recipe is trained anew, too, to compare like with
    like.

    Args:
        inputs: The run.
        test: Name of the test, for messages.
        measured: Pairs to measure on; by default those that the run measures.

    Raises:
        ConfigurationError: The run has no recipe or no pairs.
        DataError: There are too few measured prompts to halve.
    """

    def __init__(
        self, inputs: StressInputs, test: str, measured: PreferenceSet | None = None
    ) -> None:
        measured = measured if measured is not None else inputs.measured
        if inputs.training is None:
            raise ConfigurationError(
                f"the stress test {test!r} trains variants of the policy, which was given and not "
                "trained here, so that there is no recipe: leave the test out, or let the "
                "run train its policy (policy='')"
            )
        if inputs.preferences is None or measured is None:
            raise ConfigurationError(
                f"the stress test {test!r} trains variants of the policy on preference pairs, and "
                "this run has prompts only: leave the test out"
            )
        self.inputs, self.test = inputs, test
        self.preferences: PreferenceSet = inputs.preferences
        self.measured = measured.limit(inputs.settings.prompts, inputs.settings.seed)
        prompts = len(set(self.measured.prompts))
        if prompts < FEWEST_PROMPTS:
            raise DataError(
                f"stress test {test!r}: {self.measured.name} would be measured on {prompts} "
                f"prompts; expected at least {FEWEST_PROMPTS}, as vectors are estimated "
                "and judged on different ones: hold out more, or raise stress.prompts"
            )
        whole = update_count(inputs.training, len(self.preferences.train))
        cap = inputs.settings.max_steps
        self._capped = 0 < cap < whole
        #: Updates of every variant.
        self.updates = cap if self._capped else whole
        self._training = inputs.training
        self._base_log_probabilities: Float[np.ndarray, "side pair"] | None = None
        self._reference: Captured | None = None

    def recipe(self, **changes: Any) -> TrainingConfiguration:
        """The run's recipe with its number of updates spelled out, and these changes."""
        return replace(self._training, **{"max_steps": self.updates, **changes})

    def variant(
        self, name: str, preferences: PreferenceSet | None = None, **changes: Any
    ) -> Variant:
        """A variant that differs from the run in its pairs or in these settings alone."""
        pairs = self.preferences if preferences is None else preferences
        return Variant(name=name, training=self.recipe(**changes), preferences=pairs)

    def other_seed(self) -> Variant:
        """The run's recipe with the next seed."""
        return self.variant(OTHER_SEED, seed=self._training.seed + 1)

    @cached_property
    def base(self) -> LensModel:
        """The base, loaded once."""
        return self.inputs.pair.base

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's."""
        return self.inputs.pair.tokenizer

    def policy_folder(self, variant: Variant) -> Path:
        """Where the variant's policy lies, trained if it is not up to date.

        The run's own policy is never trained again.
        """
        if self._is_the_run(variant):
            return Path(self.inputs.pair.policy.name)
        name = AS_RUN if self._has_its_recipe(variant) else variant.name
        return trained_once(self.inputs, replace(variant, name=name), self.base.weights_hash)

    def _has_its_recipe(self, variant: Variant) -> bool:
        return (
            variant.training == self.recipe()
            and variant.preferences.content_hash() == self.preferences.content_hash()
        )

    def _is_the_run(self, variant: Variant) -> bool:
        return not self._capped and self._has_its_recipe(variant)

    def capture(self, variant: Variant) -> Captured:
        """Train the variant if need be, load it, and capture it on the measured pairs."""
        if self._is_the_run(variant):
            return self.captured(variant.name, self.inputs.pair)
        return self.captured(variant.name, self._load(self.policy_folder(variant)))

    def captured(self, name: str, pair: ModelPair, role: str = MEASURED) -> Captured:
        """Capture any pair on the measured pairs' tokens."""
        probes = probes_from_pairs(
            pair.tokenizer,
            self.measured,
            POSITION_KINDS,
            response_limit=self.inputs.measurement.response_limit,
        )
        shift_set = capture_shifts(
            pair,
            probes,
            sites=(resid_post(pair.base.n_layers - 1), FINAL),
            configuration=CaptureConfiguration(
                token_budget=self.inputs.measurement.token_budget, progress=self.inputs.progress
            ),
        )
        return Captured(name, role, pair, shift_set)

    def _load(self, folder: Path) -> ModelPair:
        inputs = self.inputs
        if is_adapter(folder):
            return ModelPair.from_adapter(
                inputs.base, folder, tokenizer=self.tokenizer, options=inputs.options
            )
        policy = load_lens_model(folder, backend=inputs.backend, options=inputs.options)
        return self._pair_with(policy)

    def _pair_with(self, policy: LensModel) -> ModelPair:
        shared = run_preflight(self.base, policy, self.tokenizer)
        return ModelPair(self.base, policy, self.tokenizer, shared)

    def rows(
        self, captured: Captured, role: str | None = None, random_seed: int | None = None
    ) -> ConditionRows:
        """What the summaries need of a condition, after which its models may go."""
        margins, prompts = self._margins(captured)
        shift_set, seed = captured.shift_set, self.inputs.measurement.seed
        return ConditionRows(
            name=captured.name,
            role=role or captured.role,
            places=tuple(
                place_rows(captured, site, kind, seed, self._reference, random_seed)
                for site in shift_set.sites
                for kind in shift_set.kinds
                if shift_set.count(kind) > 1
            ),
            margins=margins,
            prompts=prompts,
        )

    def measure(self, *variants: Variant, role: str = MEASURED) -> list[ConditionRows]:
        """Rows of variants, one model at a time."""
        return [self.rows(self.capture(variant), role) for variant in variants]

    def measure_reference(self, variant: Variant | None = None) -> ConditionRows:
        """Rows of the condition that those measured after it are compared with.

        Args:
            variant: By default the run's own recipe, under the name ``as_run``.
        """
        self._reference = self.capture(variant or self.variant(AS_RUN))
        return self.rows(self._reference)

    def measure_random_weights(self, variant: Variant | None = None) -> list[ConditionRows]:
        """Rows of random weight changes, each tensor's as large as the variant's.

        None for an adapter, which has no weights of its own for each tensor.
        """
        folder = self.policy_folder(variant or self.variant(AS_RUN))
        if is_adapter(folder):
            return []
        model = random_weights_model(
            self.inputs.base,
            folder,
            seed=self.inputs.settings.seed,
            backend=self.inputs.backend,
            options=self.inputs.options,
        )
        return [self.rows(self.captured(RANDOM_WEIGHTS, self._pair_with(model), CONTROL))]

    def random_vector(self) -> ConditionRows:
        """A random vector of the length of the reference's v* in its place: it has no model.

        Raises:
            RunError: There is no reference yet.
        """
        if self._reference is None:
            raise RunError("a random vector has the length of a reference: measure that first")
        return replace(
            self.rows(self._reference, CONTROL, random_seed=self.inputs.settings.seed),
            name=RANDOM_VECTOR,
            statistics=VECTOR_STATISTICS,
        )

    def summary(
        self, conditions: Sequence[ConditionRows], ratios: Sequence[str] = (), data: str = OWN_DATA
    ) -> pd.DataFrame:
        """The table of conditions, the first of which is the reference."""
        return summary_table(
            self.test,
            conditions,
            reference=conditions[0].name,
            draws=self.inputs.measurement.draws,
            seed=self.inputs.measurement.seed,
            data=data,
            ratios=ratios,
        )

    def _margins(self, captured: Captured) -> tuple[Float[np.ndarray, " pair"], np.ndarray]:
        """Per measured pair, Δ log p(chosen) − Δ log p(rejected) against the base, in nats."""
        budget = self.inputs.measurement.token_budget
        if self._base_log_probabilities is None:
            self._base_log_probabilities = response_log_probabilities(
                captured.pair.base, self.tokenizer, self.measured, token_budget=budget
            )
        found = response_log_probabilities(
            captured.pair.policy, self.tokenizer, self.measured, token_budget=budget
        )
        change = found - self._base_log_probabilities
        numbers: dict[str, int] = {}
        prompts = [numbers.setdefault(p.prompt, index) for index, p in enumerate(self.measured)]
        return change[0] - change[1], np.asarray(prompts)
