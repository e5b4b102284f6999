"""Planted, partly conflicting preference axes: does the rank follow their number? (row 32)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd

from dsteer_tl.cosines import cosine, mean_shift
from dsteer_tl.errors import ConfigurationError
from dsteer_tl.preferences import PreferenceSet
from dsteer_tl.preferences.exchanging import exchanged_at_random
from dsteer_tl.stress.columns import CONTROL
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.planted_axes import (
    agreements,
    axis_names,
    deal_prompts,
    preferred_sides,
    ranked_by,
    without_ties,
)
from dsteer_tl.stress.shift_samples import ConditionRows
from dsteer_tl.stress.shift_summary import added_rows
from dsteer_tl.stress.variants import VariantBench

#: Statistics whose ratio to one axis is given: whether they follow k.
RANKS = ("effective_rank", "effective_rank_centred")
AXIS_COSINE = "axis_cosine"


def heterogeneous_table(inputs: StressInputs) -> pd.DataFrame:
    """The table ``stress_heterogeneous``: k planted axes on the same texts and prompts.

    The run's pairs give two completions a prompt. For each k of `StressConfiguration.axes`, prompts
    are dealt to k groups at random, and a pair is ranked by its group's axis (`planted_axes.AXES`);
    pairs that any of the axes ties are left out for every k, so that pairs, prompts, texts and
    updates are the same. Nothing in a prompt tells its group, as with people who disagree.

    Conditions are ``axes_<k>``, with fewest axes as the reference, and for the most axes
    ``axes_<k>_shuffled``, the control: the same pairs with half of them exchanged at random.
    ``agreement:<axis>:<axis>`` is the share of pairs on which two axes agree, ``accuracy:<axis>``
    and ``margin:<axis>`` judge each policy on the held-out texts by one axis, ``axis_cosine`` is
    the mean cosine between the mean shifts of the groups, to which measured prompts are dealt, too.

    Raises:
        ConfigurationError: The policy was given, so that there is no recipe; there are no pairs; or
            a number of axes does not exist.
        DataError: Every pair is a tie on some axis.
    """
    bench = VariantBench(inputs, "heterogeneous")
    counts = sorted(set(inputs.settings.axes))
    if not counts:
        raise ConfigurationError("stress.axes is empty; expected numbers of axes, as [1, 2, 4]")
    names, seed = axis_names(counts[-1]), inputs.settings.seed
    for count in counts:
        axis_names(count)
    texts, ties = without_ties(bench.preferences, names)
    # Both sides apart, so that groups are of equal size in either.
    groups = {
        count: deal_prompts(texts.train, count, seed) | deal_prompts(texts.held_out, count, seed)
        for count in counts
    }
    ranked = {k: ranked_by(texts, names[:k], groups[k]) for k in counts}
    variants = [bench.variant(f"axes_{k}", ranked[k]) for k in counts]
    shuffled = exchanged_at_random(ranked[counts[-1]], seed)
    control = bench.variant(f"{variants[-1].name}_shuffled", shuffled)
    conditions = [
        bench.measure_reference(variants[0]),
        *bench.measure(*variants[1:]),
        *bench.measure(control, role=CONTROL),
    ]
    axes = tuple((name, preferred_sides(bench.measured.pairs, name)) for name in names)
    tables = [bench.summary([replace(c, axes=axes) for c in conditions], RANKS)]
    for condition, count in zip(conditions, [*counts, counts[-1]], strict=True):
        tables.append(_axis_cosines(condition, bench.measured, groups[count], count))
    facts = agreements(texts, names)
    facts |= {
        f"ties:{axis}": (float(count), len(bench.preferences.train)) for axis, count in ties.items()
    }
    facts["training_pairs"] = (float(len(texts.train)), len(bench.preferences.train))
    tables.append(added_rows(bench.test, conditions[0].name, conditions[0].role, facts))
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


def _axis_cosines(
    condition: ConditionRows, measured: PreferenceSet, group: Mapping[str, int], count: int
) -> pd.DataFrame:
    """Mean cosine between the groups' mean shifts; none with one group or too few prompts."""
    # A prompt has the number of its first pair.
    groups = np.array([group[pair.prompt] for pair in measured])
    tables = []
    for place in condition.places:
        of_row = groups[place.prompts]
        means: Sequence[np.ndarray] = [
            mean_shift(place.shifts[of_row == index])
            for index in range(count)
            if (of_row == index).any()
        ]
        if len(means) < 2:
            continue
        cosines = [cosine(first, second) for first, second in combinations(means, 2)]
        facts = {AXIS_COSINE: (float(np.mean(cosines)), len(of_row))}
        table = added_rows("heterogeneous", condition.name, condition.role, facts)
        tables.append(table.assign(site=place.site, position_kind=place.position_kind))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
