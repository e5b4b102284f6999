"""Measures how much of preference tuning is a steering vector, with a control beside every number.

The public names below are loaded when first used, so that ``import dsteer_tl`` stays light.

Example:
    >>> import dsteer_tl as ds  # doctest: +SKIP
    >>> pair = ds.ModelPair.load("tales", "runs/tales/policy")
    >>> probes = ds.probes_from_prompts(pair.tokenizer, ["Once upon a time", "The old king"])
    >>> shifts = ds.capture_shifts(pair, probes)
    >>> v_star = ds.mean_shift_vector(pair, shifts, "h", "last_prompt")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsteer_tl.capture import capture_shifts
    from dsteer_tl.claims import judge
    from dsteer_tl.directions import (
        mean_preference_vector,
        mean_shift_vector,
        principal_vector,
    )
    from dsteer_tl.errors import DsteerError
    from dsteer_tl.experiment.run_directory import RunDirectory
    from dsteer_tl.experiment.stages import Experiment
    from dsteer_tl.lens_model import Edit, LensModel, load_lens_model
    from dsteer_tl.pair import ModelPair
    from dsteer_tl.plots.show import show
    from dsteer_tl.positions import probes_from_pairs, probes_from_prompts
    from dsteer_tl.preferences import PreferencePair, PreferenceSet, load_preferences
    from dsteer_tl.shift_set import ShiftSet
    from dsteer_tl.steering import Decoding, Intervention, SweepPlan, SweepResult, plan_sweep
    from dsteer_tl.steering.sweep import sweep
    from dsteer_tl.steering_vector import SteeringVector
    from dsteer_tl.streaming.accumulation import accumulate_shifts
    from dsteer_tl.streaming.probe_table import probe_table_from_prompts
    from dsteer_tl.training import TrainingConfiguration, train_dpo

__version__ = "0.1.0"

#: Public name → module, in the order of the data.
_EXPORTS = {
    "PreferencePair": "dsteer_tl.preferences",
    "PreferenceSet": "dsteer_tl.preferences",
    "load_preferences": "dsteer_tl.preferences",
    "train_dpo": "dsteer_tl.training",
    "TrainingConfiguration": "dsteer_tl.training",
    "LensModel": "dsteer_tl.lens_model",
    "load_lens_model": "dsteer_tl.lens_model",
    "Edit": "dsteer_tl.lens_model",
    "ModelPair": "dsteer_tl.pair",
    "probes_from_prompts": "dsteer_tl.positions",
    "probes_from_pairs": "dsteer_tl.positions",
    "capture_shifts": "dsteer_tl.capture",
    "ShiftSet": "dsteer_tl.shift_set",
    "probe_table_from_prompts": "dsteer_tl.streaming.probe_table",
    "accumulate_shifts": "dsteer_tl.streaming.accumulation",
    "SteeringVector": "dsteer_tl.steering_vector",
    "mean_shift_vector": "dsteer_tl.directions",
    "principal_vector": "dsteer_tl.directions",
    "mean_preference_vector": "dsteer_tl.directions",
    "Intervention": "dsteer_tl.steering",
    "Decoding": "dsteer_tl.steering",
    "sweep": "dsteer_tl.steering.sweep",
    "plan_sweep": "dsteer_tl.steering",
    "SweepPlan": "dsteer_tl.steering",
    "SweepResult": "dsteer_tl.steering",
    "Experiment": "dsteer_tl.experiment.stages",
    "RunDirectory": "dsteer_tl.experiment.run_directory",
    "judge": "dsteer_tl.claims",
    "show": "dsteer_tl.plots.show",
    "DsteerError": "dsteer_tl.errors",
}

__all__ = [
    "PreferencePair",
    "PreferenceSet",
    "load_preferences",
    "train_dpo",
    "TrainingConfiguration",
    "LensModel",
    "load_lens_model",
    "Edit",
    "ModelPair",
    "probes_from_prompts",
    "probes_from_pairs",
    "capture_shifts",
    "ShiftSet",
    "probe_table_from_prompts",
    "accumulate_shifts",
    "SteeringVector",
    "mean_shift_vector",
    "principal_vector",
    "mean_preference_vector",
    "Intervention",
    "Decoding",
    "sweep",
    "plan_sweep",
    "SweepPlan",
    "SweepResult",
    "Experiment",
    "RunDirectory",
    "judge",
    "show",
    "DsteerError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dsteer_tl' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
