"""Who writes v*: tables contributions and component_patching (claim 10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dsteer_tl.attribution.component_patching import (
    PatchedRows,
    component_patches,
    patch_components,
)
from dsteer_tl.attribution.contributions import Contributions, direct_contributions
from dsteer_tl.capture import ShiftSet
from dsteer_tl.controls import bootstrap_ratio
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from dsteer_tl.preferences import EncodedPair

#: Most pairs whose components are patched: every pair runs some hundred times.
PATCHED_PAIRS = 32


def contribution_table(
    pair: ModelPair,
    probes: Sequence[Probe],
    shift_set: ShiftSet,
    configuration: MeasurementConfiguration,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """The table ``contributions``: what each component writes along v*.

    ``base`` and ``policy`` are mean projections on the unit v*, estimated on the other half of the
    prompts; ``share`` is Σ change / Σ⟨δ, v̂*⟩ with a bootstrap over prompts. Shares of embed,
    attention and mlp add up to 1, those of the heads and the bias of a layer to its attention's.
    ``null_low`` and ``null_high`` hold 95 % of 20 shares along random unit directions, of the same
    ⟨δ, v̂*⟩.

    Raises:
        DataError: The probes are not those that were captured.
        HookError: The blocks add more to the stream than attention and MLP.
    """
    found = direct_contributions(
        pair,
        probes,
        shift_set,
        token_budget=configuration.token_budget,
        seed=configuration.seed,
        progress=progress,
    )
    return pd.concat(
        [_contribution_rows(kind, kept, configuration) for kind, kept in found.items()],
        ignore_index=True,
    )


def _contribution_rows(
    kind: str, found: Contributions, configuration: MeasurementConfiguration
) -> pd.DataFrame:
    rows = []
    total, n = found.shift.sum(), int(found.rows.sum())
    random = found.random.sum(axis=0) / (total if total else np.nan)
    nulls = np.quantile(random, (0.025, 0.975), axis=1)
    for index, component in enumerate(found.components):
        change = found.policy[:, index] - found.base[:, index]
        interval = bootstrap_ratio(
            change,
            found.shift,
            found.prompts,
            draws=configuration.draws,
            seed=configuration.seed,
        )
        rows.append(
            {
                "component": component.name,
                "kind": component.kind,
                "layer": component.layer,
                "position_kind": kind,
                "base": float(found.base[:, index].sum() / n),
                "policy": float(found.policy[:, index].sum() / n),
                "change": float(change.sum() / n),
                "share": interval.value,
                "low": interval.low,
                "high": interval.high,
                "null_low": float(nulls[0, index]),
                "null_high": float(nulls[1, index]),
                "n": n,
            }
        )
    return pd.DataFrame(rows)


def component_patching_table(
    pair: ModelPair,
    probes: Sequence[Probe],
    encoded: Sequence[EncodedPair],
    configuration: MeasurementConfiguration,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """The table ``component_patching``: effects recovered by the policy's writes in the base.

    ``recovered`` is 1 − ΣKL(policy‖patched)/ΣKL(policy‖base) for the effect ``kl`` at a position
    kind, and the ratio of the changes of the margin log p(y_w) − log p(y_l), patched over policy,
    for ``margin``, whose position kind is ``response``; intervals by bootstrap over prompts.
    ``null`` is the same for a random change of equal norm. The first 32 pairs are patched, or
    fewer by `MeasurementConfiguration.patching_pairs`.

    Args:
        pair: Base and policy.
        probes: Sequences and positions.
        encoded: The pairs that the probes were made from; empty for prompts without responses.
        configuration: Pairs, draws, token budget and seed.
        progress: Show a progress bar.

    Raises:
        HookError: The blocks add more to the stream than attention and MLP.
        ShapeError: A probe is not prompt and chosen response of its pair.
    """
    chosen = probes[: min(configuration.patching_pairs, PATCHED_PAIRS)]
    patches = component_patches(pair.base.n_layers, responses=bool(encoded))
    found = patch_components(
        pair,
        chosen,
        encoded,
        patches,
        token_budget=configuration.token_budget,
        seed=configuration.seed,
        progress=progress,
    )
    rows = []
    for patch in patches:
        policy, random = found[patch, "policy"], found[patch, "random"]
        for kind, effect in _effects(policy):
            shares = [_share(kept, kind, effect, configuration) for kept in (policy, random)]
            if shares[0] is None or shares[1] is None:
                continue
            rows.append(
                {
                    "group": patch.group,
                    "component": patch.component,
                    "layer": patch.layer,
                    "positions": patch.positions,
                    "position_kind": kind,
                    "effect": effect,
                    "recovered": shares[0][0],
                    "low": shares[0][1],
                    "high": shares[0][2],
                    "null": shares[1][0],
                    "n": shares[0][3],
                }
            )
    return pd.DataFrame(rows)


def _effects(found: PatchedRows) -> list[tuple[str, str]]:
    effects = [(kind, "kl") for kind in dict.fromkeys(found.kinds)]
    return [*effects, ("response", "margin")] if len(found.margin) else effects


def _share(
    found: PatchedRows, kind: str, effect: str, configuration: MeasurementConfiguration
) -> tuple[float, float, float, int] | None:
    """Value, ends and number of rows; None with fewer than two prompts."""
    if effect == "margin":
        above, below, prompts = found.margin, found.margin_policy, found.margin_prompts
    else:
        chosen = np.array(found.kinds) == kind
        below, prompts = found.kl_base[chosen], found.prompts[chosen]
        above = below - found.kl[chosen]
    if len(np.unique(prompts)) < 2:
        return None
    interval = bootstrap_ratio(
        above, below, prompts, draws=configuration.draws, seed=configuration.seed
    )
    return interval.value, interval.low, interval.high, len(below)
