"""One variant of the policy: its recipe and pairs, trained unless it is up to date."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from dsteer_tl.files import hash_content, read_json, write_json
from dsteer_tl.preferences import PreferenceSet
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.training import TrainingConfiguration, train_dpo

_KEY = "variant.json"
#: How the steering vector forms is recorded on few pairs: nobody reads it here.
_PROBE_PAIRS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A policy to train.

    Attributes:
        name: Its condition in tables, and its folder.
        training: Its recipe.
        preferences: Its pairs, split.
    """

    name: str
    training: TrainingConfiguration
    preferences: PreferenceSet


def update_count(training: TrainingConfiguration, pairs: int) -> int:
    """Updates that a recipe makes on so many pairs, as transformers counts them."""
    if training.max_steps > 0:
        return training.max_steps
    batches = math.ceil(pairs / training.batch_size)
    an_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    return math.ceil(training.epochs * an_epoch)


def trained_once(inputs: StressInputs, variant: Variant, base_hash: str) -> Path:
    """The folder of the variant's policy, trained unless recipe, pairs and base are as before.

    Raises:
        DsteerError: As `train_dpo`.
    """
    folder = inputs.folder / variant.name
    key = hash_content([asdict(variant.training), variant.preferences.content_hash(), base_hash])
    marker, policy = folder / _KEY, folder / "policy"
    if policy.is_dir() and marker.is_file() and read_json(marker) == key:
        return policy
    # Else a crash between the policy and its key would leave a new policy beside the old key.
    marker.unlink(missing_ok=True)
    train_dpo(
        inputs.base,
        variant.preferences,
        policy,
        variant.training,
        probe_pairs=_PROBE_PAIRS,
        options=inputs.options,
        progress=inputs.progress,
    )
    write_json(marker, key)
    return policy
