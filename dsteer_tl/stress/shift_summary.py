"""One tidy schema for shifts under different conditions, with paired intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from dsteer_tl.errors import ShapeError
from dsteer_tl.stress.columns import VARIANT_COLUMNS
from dsteer_tl.stress.shift_samples import (
    OUTPUT,
    PAIRS,
    ConditionRows,
    Samples,
    Statistic,
    resample_weights,
    statistics_of,
)

#: Before the name of a statistic: the condition minus the reference, and divided by it.
DIFFERENCE, RATIO = "difference:", "ratio:"
#: The run's own pairs in the column ``data``.
OWN_DATA = "run"

#: Half-width of a normal 95 % interval in standard deviations.
_NORMAL_95 = 1.96


def summary_table(
    test: str,
    conditions: Sequence[ConditionRows],
    *,
    reference: str,
    draws: int,
    seed: int,
    data: str = OWN_DATA,
    ratios: Sequence[str] = (),
) -> pd.DataFrame:
    """Rows of `VARIANT_COLUMNS` for every condition, place and statistic.

    Per place: ``cos_loo_mean``, ``sigma_ratio``, ``effective_rank`` and
    ``effective_rank_centred`` (exp of the entropy of σ²/Σσ²), ``pc1_share_centred``, ``v_norm``,
    ``relative_norm`` (mean ‖δ‖/‖h_base‖), ``kl`` (mean KL(policy‖base) in nats), ``recovered``
    (share of it that v* of the other half removes from the base at λ = 1), ``readout_shift`` (share
    of the policy's KL that no shift at this place can remove, as what reads it was trained, too)
    and, against the reference, ``cos_to_reference`` and ``recovered_of_reference`` (the share of
    the reference's KL that this condition's v* removes at the length of the reference's). Per pair,
    at site ``output``: ``margin`` (mean Δ log p(chosen) − Δ log p(rejected), nats) and ``accuracy``
    (share of pairs where it is above zero), and both for every axis (``accuracy:<axis>``).
    ``difference:<statistic>`` is the condition minus the reference.

    Intervals are 95 % of a bootstrap over prompts that draws the same prompts for all conditions;
    those of spectra are the value ± 1.96 standard deviations of 60 draws, as a resample repeats
    rows and so has a lower rank than the rows themselves.

    Args:
        test: Name of the test.
        conditions: All conditions, the reference among them, on the same tokens.
        reference: Name of the condition that others are compared with.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.
        data: Which pairs were measured.
        ratios: Statistics whose ratio to the reference is given, too.

    Raises:
        ShapeError: The reference is missing, or conditions were measured on other prompts.
    """
    by_name = {condition.name: condition for condition in conditions}
    if reference not in by_name:
        raise ShapeError(
            f"{test}: found the conditions {', '.join(by_name)}, expected {reference!r} among them"
        )
    anchor = by_name[reference]
    if any(not np.array_equal(c.prompts, anchor.prompts) for c in conditions):
        raise ShapeError(f"{test}: conditions were measured on different prompts")
    labels = np.unique(anchor.prompts)
    weights = resample_weights(len(labels), draws, seed)
    compared_with = statistics_of(anchor, anchor, labels, weights)
    rows: list[dict[str, object]] = []
    for condition in conditions:
        found = (
            compared_with
            if condition is anchor
            else statistics_of(condition, anchor, labels, weights)
        )
        for (site, kind, name), statistic in found.items():
            if condition.statistics and name not in condition.statistics:
                continue
            column = {
                "test": test,
                "condition": condition.name,
                "role": condition.role,
                "data": data,
                "site": site,
                "position_kind": kind,
            }
            rows.append(column | _entry(name, statistic, statistic.samples))
            compared = compared_with.get((site, kind, name))
            if condition is anchor or compared is None:
                continue
            size = min(len(statistic.samples), len(compared.samples))
            own, other = statistic.samples[:size], compared.samples[:size]
            rows.append(column | _entry(DIFFERENCE + name, statistic, own - other))
            if name in ratios:
                # Logarithms, so that the interval of a ratio cannot reach below zero.
                rows.append(column | _entry(RATIO + name, statistic, np.log(own / other), np.exp))
    return pd.DataFrame(rows, columns=list(VARIANT_COLUMNS))


def _entry(
    name: str,
    statistic: Statistic,
    samples: Samples,
    back: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> dict[str, object]:
    value, drawn = samples[0], samples[1:][np.isfinite(samples[1:])]
    low = high = np.nan
    if drawn.size > 1 and np.isfinite(value):
        if statistic.spread_only:
            margin = _NORMAL_95 * float(np.std(drawn, ddof=1))
            low, high = value - margin, value + margin
        else:
            low, high = np.quantile(drawn, [0.025, 0.975])
    ends = back(np.array([value, low, high])).tolist()
    keys = ("value", "low", "high")
    return {"statistic": name, **dict(zip(keys, ends, strict=True)), "n": statistic.n}


def added_rows(
    test: str, condition: str, role: str, statistics: dict[str, tuple[float, int]]
) -> pd.DataFrame:
    """Rows for numbers of a condition that no prompt varies: value and count, no interval."""
    return pd.DataFrame(
        [
            {
                **dict.fromkeys(VARIANT_COLUMNS, np.nan),
                "test": test,
                "condition": condition,
                "role": role,
                "data": OWN_DATA,
                "site": OUTPUT,
                "position_kind": PAIRS,
                "statistic": name,
                "value": value,
                "n": n,
            }
            for name, (value, n) in statistics.items()
        ],
        columns=list(VARIANT_COLUMNS),
    )
