"""What patches recover, as shares with intervals over prompts and ranges over random groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float

from dsteer_tl.controls import bootstrap_ratio
from dsteer_tl.toxicity.types import Neurons

#: ``probe_projection``: ⟨last resid_post, probe⟩. ``kl``: the divergence from the policy.
STATISTICS = ("probe_projection", "kl")
#: ``total``: the base runs on with the patched activations, and later layers react. ``direct``:
#: Σ Δm_i v_i is added to the last residual, and nothing reacts.
EFFECTS = ("total", "direct")

_COLUMNS = [
    *("group", "neurons", "statistic", "effect", "share", "low", "high"),
    *("draws", "draws_low", "draws_high", "whole", "whole_low", "whole_high", "prompts"),
]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Neurons that get the policy's activations, the effects to measure, and by what."""

    neurons: Neurons
    effects: tuple[str, ...] = EFFECTS
    statistics: tuple[str, ...] = STATISTICS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchingSums:
    """What each prompt gives to the shares: a share is Σ recovered / Σ whole over prompts.

    Attributes:
        whole: For each statistic, what the models differ by: policy minus base of the projection,
            averaged over the tokens read, or KL(policy‖base) summed over all tokens, in nats.
        recovered: For each patch by statistic and effect, what it moved of that: patched minus
            base, or KL(policy‖base) − KL(policy‖patched).
    """

    whole: Mapping[str, Float[np.ndarray, " prompt"]]
    recovered: Sequence[Mapping[tuple[str, str], Float[np.ndarray, " prompt"]]]


def share_table(
    patches: Sequence[Patch], sums: PatchingSums, *, draws: int, seed: int
) -> pd.DataFrame:
    """Shares of each group and size; patches of one group and size are draws and are averaged.

    Raises:
        ShapeError: Fewer than two prompts.
    """
    members: dict[tuple[str, int, str, str], list[np.ndarray]] = {}
    for patch, recovered in zip(patches, sums.recovered, strict=True):
        for (statistic, effect), values in recovered.items():
            key = (patch.neurons.group, len(patch.neurons), statistic, effect)
            members.setdefault(key, []).append(values)
    interval = partial(bootstrap_ratio, draws=draws, seed=seed)
    rows = []
    for key, found in members.items():
        whole = sums.whole[key[2]]
        numbers: list[float] = []
        for above, below in ((np.mean(found, axis=0), whole), (whole, np.ones_like(whole))):
            ratio = interval(above, below)
            numbers += (ratio.value, ratio.low, ratio.high)
        ends = [np.nan, np.nan]
        if len(found) > 1 and whole.sum() != 0:
            each = np.sum(found, axis=1) / whole.sum()
            ends = [each.min(), each.max()]
        rows.append((*key, *numbers[:3], len(found), *ends, *numbers[3:], len(whole)))
    return pd.DataFrame(rows, columns=_COLUMNS)
