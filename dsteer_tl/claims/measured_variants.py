"""How the questions on trained variants are measured: rows 31 and 32."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from dsteer_tl.claims.selection import MissingRowsError, at, joined, main_kind, value_at
from dsteer_tl.claims.verdicts import Measurement, Tables
from dsteer_tl.sites import FINAL

#: Row 31 publishes no number: ours is this largest difference of statistics that lie in [0, 1].
_SAME = 0.05
#: What decides direction and rank in row 31: all three are shares, so that differences compare.
_COMPARED = ("cos_loo_mean", "sigma_ratio", "recovered")
_DIFFERENCE, _RATIO = "difference:", "ratio:"
_FROZEN, _TRAINABLE, _OTHER_SEED = "frozen", "trainable", "other_seed"
_RANDOM_WEIGHTS = "random_weights"
#: Row 32 reads the uncentred rank: without the mean, one axis leaves noise, and no number of real
#: axes has a higher rank than noise.
_RANK = "effective_rank"
#: Fewest axes that the policy of the most axes must have learnt.
_FEWEST_LEARNT = 2


def embedding_freeze(tables: Tables) -> Measurement:
    """Row 31: freezing the embeddings decides neither direction nor rank of the shift.

    Measured is the largest |difference| of mean cosine, σ2/σ1 and recovered KL at h between the two
    policies. The null is the same between the frozen policy and random weight changes of its size:
    if they are as close, the statistics cannot tell anything apart.

    Raises:
        MissingRowsError: A condition or a statistic is missing.
    """
    table = tables["stress_embeddings"]
    at_h = at(table, site=FINAL)
    kind = main_kind(at_h)
    here = at(at_h, position_kind=kind)
    largest = {
        condition: _largest_difference(here, condition)
        for condition in (_TRAINABLE, _RANDOM_WEIGHTS, _OTHER_SEED)
        if len(at(here, condition=condition))
    }
    for condition, what in ((_TRAINABLE, "trained embeddings"), (_RANDOM_WEIGHTS, "control")):
        if condition not in largest:
            raise MissingRowsError(f"no {what}: the condition {condition} was not measured")
    statistic, value, interval = largest[_TRAINABLE]
    within = max(_ends_of_differences(here, _TRAINABLE)) <= _SAME
    _, null, _ = largest[_RANDOM_WEIGHTS]
    direction = value_at(here, "value", condition=_TRAINABLE, statistic="cos_to_reference")
    readout = value_at(here, "value", condition=_TRAINABLE, statistic="readout_shift")
    moved = at(table, condition=_TRAINABLE, statistic="unembedding_change")
    return Measurement(
        measured=value,
        ci=interval,
        null=null,
        null_name="random weight changes of equal norm",
        target_met=within,
        null_met=null <= _SAME,
        right_sign=value <= _SAME and value < null,
        unit="largest |difference| of mean cosine, σ2/σ1 and recovered KL",
        reason=joined(
            f"largest in {statistic.replace('_', ' ')}",
            f"the two v* have cosine {direction:.2f}",
            f"two seeds of the frozen recipe differ by {largest[_OTHER_SEED][1]:.2f}"
            if _OTHER_SEED in largest
            else "",
            f"the readout alone makes {readout:.3f} of the KL",
            f"training moved W_U by {100 * float(moved['value'].iloc[0]):.2g} % of its norm"
            if len(moved)
            else "",
        ),
        site=FINAL,
        position_kind=kind,
        n=int(value_at(here, "n", condition=_TRAINABLE, statistic=_COMPARED[0])),
    )


def _largest_difference(
    rows: pd.DataFrame, condition: str
) -> tuple[str, float, tuple[float, float]]:
    """The statistic that differs most from the frozen recipe, |difference| and its interval."""
    found = []
    for statistic in _COMPARED:
        row = at(rows, condition=condition, statistic=_DIFFERENCE + statistic)
        value, low, high = (value_at(row, column) for column in ("value", "low", "high"))
        if not value == value:
            raise MissingRowsError(f"{statistic} of {condition} is undefined: no KL to recover")
        size = abs(value)
        ends = (low, high) if value >= 0 else (-high, -low)
        found.append((statistic, size, ends))
    return max(found, key=lambda entry: entry[1])


def _ends_of_differences(rows: pd.DataFrame, condition: str) -> list[float]:
    """Both ends of the interval of every difference, as sizes."""
    found = []
    for statistic in _COMPARED:
        row = at(rows, condition=condition, statistic=_DIFFERENCE + statistic)
        found += [abs(value_at(row, column)) for column in ("low", "high")]
    return found


def rank_of_preferences(tables: Tables) -> Measurement:
    """Row 32: the rank of the shifts follows the number of planted preferences.

    Measured is the effective rank of the shifts at h with the most axes over that with the fewest;
    the target is a rank that rises with every number of axes and a ratio whose interval lies above
    1. The null is the same ratio with the preferences shuffled, which shrinks the mean and so
    raises the rank too: it meets the target where its interval reaches that of the real ones.

    Where the policy of the most axes learnt fewer than two of them (accuracy on held-out pairs by
    its interval above one half), there are no several preferences for a rank to follow.

    Raises:
        MissingRowsError: Fewer than two numbers of axes were measured, or no control.
    """
    table = tables["stress_heterogeneous"]
    at_h = at(table, site=FINAL)
    kind = main_kind(at_h)
    here = at(at_h, position_kind=kind)
    ranks = at(here, statistic=_RANK, role="measured")
    counts = ranks["condition"].str.extract(r"^axes_(\d+)$")[0].dropna().astype(int)
    ordered = counts.sort_values(kind="stable")
    if len(ordered) < 2:
        raise MissingRowsError("fewer than two numbers of axes were measured: set stress.axes")
    values = ranks.loc[ordered.index, "value"].to_numpy(dtype=float)
    fewest, most = int(ordered.iloc[0]), int(ordered.iloc[-1])
    ratio = at(here, condition=f"axes_{most}", statistic=_RATIO + _RANK)
    shuffled = at(here, condition=f"axes_{most}_shuffled", statistic=_RATIO + _RANK)
    measured, low, high = (value_at(ratio, column) for column in ("value", "low", "high"))
    null, null_high = value_at(shuffled, "value"), value_at(shuffled, "high")
    rises = bool((values[1:] > values[:-1]).all())
    centred = at(here, condition=f"axes_{most}", statistic=f"{_RATIO}effective_rank_centred")
    learnt = _accuracies(table, f"axes_{most}")
    return Measurement(
        measured=measured,
        ci=(low, high),
        null=null,
        null_name="shuffled preferences",
        target_met=rises and low > 1,
        null_met=null_high >= low,
        right_sign=low > 1 and low > null_high,
        unit=f"effective rank with {most} axes over that with {fewest}, uncentred",
        reason=joined(
            "ranks "
            + ", ".join(
                f"{value:.1f} (k = {count})" for value, count in zip(values, ordered, strict=True)
            ),
            f"centred ratio {value_at(centred, 'value'):.2f}" if len(centred) else "",
            "no prompt tells its group, so that a policy can only learn the mixture",
            f"{learnt.learnt} of {learnt.axes} axes were learnt with {most}"
            + (f", least {learnt.least}" if learnt.axes else ""),
        ),
        untestable=learnt.learnt < _FEWEST_LEARNT,
        site=FINAL,
        position_kind=kind,
        n=int(value_at(ratio, "n")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learnt:
    """How many axes a policy learnt, of how many, and the one it learnt least."""

    learnt: int
    axes: int
    least: str


def _accuracies(table: pd.DataFrame, condition: str) -> _Learnt:
    rows = at(table, condition=condition)
    rows = rows[rows["statistic"].str.startswith("accuracy:")]
    if not len(rows):
        return _Learnt(learnt=0, axes=0, least="")
    least = rows.sort_values("value", kind="stable").iloc[0]
    axis = str(least["statistic"]).partition(":")[2].replace("_", " ")
    return _Learnt(
        learnt=int((rows["low"] > 0.5).sum()),
        axes=len(rows),
        least=f"{axis}, accuracy {least['value']:.2f}",
    )
