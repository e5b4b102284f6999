"""A policy trained on the same pairs with chosen and rejected swapped at random: a null model.

It keeps texts, loss, steps and optimiser and breaks the preference alone, so that what it does as
well was not learnt from preferences.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.experiment.run_directory import StageReport
from dsteer_tl.experiment.study_inputs import StudyInputs
from dsteer_tl.lens_model import LensModel, load_lens_model
from dsteer_tl.lens_model.adapter import is_adapter
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences.exchanging import exchanged_at_random
from dsteer_tl.training import train_dpo

SHUFFLED_PAIRS = "shuffled_pairs"


def train_shuffled_pairs(inputs: StudyInputs) -> StageReport:
    """Train it, unless it is up to date.

    Raises:
        ConfigurationError: The policy was not trained in this run, so that there is no recipe.
    """
    preferences, training = inputs.preferences, inputs.training
    if preferences is None or training is None:
        raise ConfigurationError(
            "toxicity.shuffled_pairs needs the recipe of the policy, which was given and not "
            "trained here: set toxicity.shuffled_pairs=false"
        )

    def run() -> list[Path]:
        shuffled = exchanged_at_random(preferences, inputs.configuration.seed)
        result = train_dpo(
            inputs.base,
            shuffled,
            inputs.folder / SHUFFLED_PAIRS,
            training,
            options=inputs.options,
            progress=inputs.progress,
        )
        return [path for path in result.policy.rglob("*") if path.is_file()]

    keys = [asdict(training), inputs.keys, inputs.directory.output_hashes("preferences")]
    keys.append(inputs.configuration.seed)
    return inputs.directory.stage(f"toxicity/{SHUFFLED_PAIRS}", keys, run, divided=True)


def load_shuffled_pairs(inputs: StudyInputs) -> LensModel:
    """The trained null model, hooked."""
    folder = inputs.folder / SHUFFLED_PAIRS
    if is_adapter(folder):
        return ModelPair.from_adapter(inputs.base, folder, options=inputs.options).policy
    return load_lens_model(folder, backend=inputs.backend, options=inputs.options)
