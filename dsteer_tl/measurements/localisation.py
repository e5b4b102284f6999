"""Causal patching by layer: table patching (claim 10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dsteer_tl.attribution.layers import patch_sites
from dsteer_tl.controls import bootstrap_ratio
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from dsteer_tl.sites import FINAL


def patching_table(
    pair: ModelPair,
    probes: Sequence[Probe],
    configuration: MeasurementConfiguration,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """The table ``patching``: share of KL(policy‖base) recovered when one site is patched."""
    found = patch_sites(
        pair,
        probes[: configuration.patching_pairs],
        [site for site in pair.base.sites if site != FINAL],
        token_budget=configuration.token_budget,
        seed=configuration.seed,
        progress=progress,
    )
    rows = []
    for result in found:
        kinds = np.array(result.kinds)
        for kind in dict.fromkeys(result.kinds):
            chosen = kinds == kind
            left, whole = result.kl[chosen], result.kl_base[chosen]
            groups = result.prompts[chosen]
            interval = bootstrap_ratio(
                left, whole, groups, draws=configuration.draws, seed=configuration.seed
            )
            rows.append(
                {
                    "site": result.site,
                    "position_kind": kind,
                    "source": result.source,
                    "kl": float(left.mean()),
                    "recovered": 1 - interval.value,
                    "ci_low": 1 - interval.high,
                    "ci_high": 1 - interval.low,
                    "n": int(chosen.sum()),
                }
            )
    return pd.DataFrame(rows)
