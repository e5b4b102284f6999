"""How the picture depends on β and on the number of training pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.preferences import PreferenceSet
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.variants import VariantBench


def sensitivity_table(inputs: StressInputs) -> pd.DataFrame:
    """The table ``stress_sensitivity``: values of β, then shares of the training pairs.

    Every condition makes as many updates as the run, so that a smaller share is seen more often and
    the number of pairs alone differs. Subsets are nested: the pairs of a share are among those of
    every larger one. The control is a random change of the weights as large as the run's.

    Raises:
        ConfigurationError: The policy was given, so that there is no recipe; there are no pairs; or
            a share leaves no prompt or is above 1.
    """
    bench = VariantBench(inputs, "sensitivity")
    reference = bench.measure_reference()
    settings = inputs.settings
    variants = [
        bench.variant(f"beta_{beta:g}", beta=beta)
        for beta in dict.fromkeys(settings.betas)
        if beta != bench.recipe().beta
    ]
    variants += [
        bench.variant(f"share_{share:g}", nested_share(bench.preferences, share, settings.seed))
        for share in dict.fromkeys(settings.shares)
        if share != 1
    ]
    return bench.summary([reference, *bench.measure(*variants), *bench.measure_random_weights()])


def nested_share(preferences: PreferenceSet, share: float, seed: int) -> PreferenceSet:
    """The held-out pairs, and the training pairs of a share of the training prompts.

    The seed orders the prompts once, and a share takes the first of them.

    Raises:
        ConfigurationError: The share is not above 0 and at most 1, or leaves no prompt.
    """
    prompts = list(dict.fromkeys(preferences.train.prompts))
    count = round(share * len(prompts))
    if not 0 < share <= 1 or count < 1:
        raise ConfigurationError(
            f"stress.shares has {share:g}, which is {count} of {len(prompts)} training prompts; "
            "expected a share above 0 and at most 1 with a prompt or more"
        )
    order = np.random.default_rng(seed).permutation(len(prompts))
    kept = {prompts[index] for index in order[:count]}
    pairs = tuple(p for p in preferences if p.split == "held_out" or p.prompt in kept)
    return replace(preferences, pairs=pairs, name=f"{preferences.name}, share {share:g}")
