"""Measurements: from captured residuals and a pair to tidy tables, one function a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from dsteer_tl.attribution.weight_spectra import weight_spectra_table
from dsteer_tl.capture import ShiftSet
from dsteer_tl.errors import DataError
from dsteer_tl.lens_model import LensModel, LoadOptions
from dsteer_tl.measurements.attribution_tables import (
    component_patching_table,
    contribution_table,
)
from dsteer_tl.measurements.gradient_tables import gradient_field_table, gradient_table
from dsteer_tl.measurements.localisation import patching_table
from dsteer_tl.measurements.margin_tables import margin_tables, token_shift_table
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
from dsteer_tl.measurements.separation_table import separation_table
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """Where the weights of base and policy lie, and how they are loaded.

    Attributes:
        base, policy: Directory, hub id, or ``tales``; a policy may be a LoRA adapter.
        options, policy_options: How each is loaded.
    """

    base: str
    policy: str
    options: LoadOptions = field(default_factory=LoadOptions)
    policy_options: LoadOptions = field(default_factory=LoadOptions)


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
        checkpoints: Where the weights lie; None where there are only models in memory.
        load_controls: Gives null models by name.
        progress: Show progress bars.
    """

    load_pair: Callable[[], ModelPair]
    shift_set: ShiftSet
    load_probes: Callable[[], Sequence[Probe]]
    load_encoded: Callable[[], Sequence[EncodedPair]]
    configuration: MeasurementConfiguration
    beta: float
    checkpoints: Checkpoints | None = None
    load_controls: Callable[[], Mapping[str, LensModel]] = dict
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

    @cached_property
    def margins(self) -> dict[str, pd.DataFrame]:
        """The tables ``margin_ledger`` and ``margin_terms``, made in one pass."""
        return margin_tables(
            self.pair, self.shift_set, self.encoded, self.configuration, progress=self.progress
        )


def _weight_spectra(inputs: MeasurementInputs) -> pd.DataFrame:
    if inputs.checkpoints is None:
        raise DataError(
            "weight changes need the checkpoints of base and policy: give their folders"
        )
    return weight_spectra_table(
        inputs.checkpoints.base,
        inputs.checkpoints.policy,
        inputs.shift_set,
        seed=inputs.configuration.seed,
        options=inputs.checkpoints.options,
        policy_options=inputs.checkpoints.policy_options,
    )


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

#: Tables on who writes the shift and what it does to the margin, in the order of a run.
AUDIT_TABLES: dict[str, Callable[[MeasurementInputs], pd.DataFrame]] = {
    "weight_spectra": _weight_spectra,
    "contributions": lambda i: contribution_table(
        i.pair, i.probes, i.shift_set, i.configuration, progress=i.progress
    ),
    "component_patching": lambda i: component_patching_table(
        i.pair, i.probes, i.encoded, i.configuration, progress=i.progress
    ),
    "margin_ledger": lambda i: i.margins["margin_ledger"],
    "margin_terms": lambda i: i.margins["margin_terms"],
    "token_shifts": lambda i: token_shift_table(
        i.pair, i.shift_set, i.encoded, i.configuration, progress=i.progress
    ),
    "separation": lambda i: separation_table(
        i.pair, i.encoded, i.configuration, controls=i.load_controls(), progress=i.progress
    ),
}

#: Tables that need chosen and rejected responses; prompts alone do not give them.
PAIR_TABLES = frozenset(
    {
        "margin_ledger",
        "margin_terms",
        "token_shifts",
        "separation",
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
    "AUDIT_TABLES",
    "Checkpoints",
    "GRADIENT_TABLES",
    "PAIR_TABLES",
    "TABLES",
    "MeasurementConfiguration",
    "MeasurementInputs",
]
