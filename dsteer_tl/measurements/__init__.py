"""Measurements: from captured residuals and a pair to tidy tables, one function a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from dsteer_tl.capture import ShiftSet
from dsteer_tl.measurements.gradient_tables import gradient_field_table, gradient_table
from dsteer_tl.measurements.localisation import patching_table
from dsteer_tl.measurements.readout import (
    direction_table,
    divergence_directions,
    geometry_table,
    identity_table,
    logit_lens_table,
    projection_table,
    token_table,
)
from dsteer_tl.measurements.recovery_tables import kl_recovery_table, rank_recovery_table
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.measurements.shift_statistics import (
    cosine_null_table,
    cosine_table,
    mass_table,
    null_table,
    shift_table,
)
from dsteer_tl.measurements.spectral import entropy_table, spectra_table
from dsteer_tl.measurements.state_tables import cloud_table
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from dsteer_tl.preferences import EncodedPair


@dataclass(frozen=True)
class MeasurementInputs:
    """What tables are built from; models and tokens are loaded when a table first needs them.

    Attributes:
        load_pair: Gives base and policy.
        shift_set: Captured residuals.
        load_probes: Gives the sequences that were captured.
        load_encoded: Gives the tokenised pairs (empty where there are only prompts).
        configuration: How finely to measure.
        beta: β of the DPO loss whose gradients are computed.
        progress: Show progress bars.
    """

    load_pair: Callable[[], ModelPair]
    shift_set: ShiftSet
    load_probes: Callable[[], Sequence[Probe]]
    load_encoded: Callable[[], Sequence[EncodedPair]]
    configuration: MeasurementConfiguration
    beta: float
    progress: bool = True

    @cached_property
    def pair(self) -> ModelPair:
        """Base and policy."""
        return self.load_pair()

    @cached_property
    def probes(self) -> Sequence[Probe]:
        """The sequences that were captured."""
        return self.load_probes()

    @cached_property
    def encoded(self) -> Sequence[EncodedPair]:
        """The tokenised pairs."""
        return self.load_encoded()


def _kl_recovery(inputs: MeasurementInputs) -> pd.DataFrame:
    mean_preference = None
    if "divergence" in inputs.shift_set.kinds:
        mean_preference = divergence_directions(inputs.pair, inputs.probes).mean(axis=0)
        if not np.any(mean_preference):
            mean_preference = None
    return kl_recovery_table(inputs.pair, inputs.shift_set, mean_preference, inputs.configuration)


#: Every table in the order in which a run builds them: cheap ones that need no model first.
TABLES: dict[str, Callable[[MeasurementInputs], pd.DataFrame]] = {
    "shifts": lambda i: shift_table(i.shift_set),
    "cosines": lambda i: cosine_table(i.shift_set),
    "cosine_nulls": lambda i: cosine_null_table(i.shift_set, i.configuration),
    "nulls": lambda i: null_table(i.shift_set, i.configuration),
    "spectra": lambda i: spectra_table(i.shift_set),
    "entropy": lambda i: entropy_table(i.shift_set, i.configuration),
    "mass": lambda i: mass_table(i.shift_set, i.configuration),
    "clouds": lambda i: cloud_table(i.shift_set),
    "tokens": lambda i: token_table(i.pair, i.shift_set, i.configuration),
    "kl_recovery": _kl_recovery,
    "rank_recovery": lambda i: rank_recovery_table(i.pair, i.shift_set, i.configuration),
    "patching": lambda i: patching_table(i.pair, i.probes, i.configuration, progress=i.progress),
    "identity": lambda i: identity_table(i.pair, i.encoded[: i.configuration.gradient_pairs]),
    "directions": lambda i: direction_table(i.pair, i.shift_set, i.probes, i.configuration),
    "projections": lambda i: projection_table(i.pair, i.shift_set, i.probes, i.configuration),
    "logit_lens": lambda i: logit_lens_table(i.pair, i.shift_set, i.probes, i.configuration),
    "geometry": lambda i: geometry_table(i.pair, i.shift_set, i.probes),
    "gradients": lambda i: gradient_table(
        i.pair, i.encoded, i.configuration, beta=i.beta, progress=i.progress
    ),
    "gradient_field": lambda i: gradient_field_table(i.pair, i.shift_set, i.encoded, beta=i.beta),
}

#: Tables that need chosen and rejected responses; prompts alone do not give them.
PAIR_TABLES = frozenset(
    {
        "identity",
        "directions",
        "projections",
        "logit_lens",
        "geometry",
        "gradients",
        "gradient_field",
    }
)

#: Tables that β of the DPO loss enters.
GRADIENT_TABLES = frozenset({"gradients", "gradient_field"})

__all__ = [
    "GRADIENT_TABLES",
    "PAIR_TABLES",
    "TABLES",
    "MeasurementConfiguration",
    "MeasurementInputs",
]
