"""How the claims on the neurons of an attribute are measured: rows 28 and 30.

Row 28 (Lee et al. 2024, Table 4) amplifies a few of them, row 30 (Yang et al. 2024) patches them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dsteer_tl.claims.selection import MissingRowsError, at, ends, joined, value_at
from dsteer_tl.claims.sweep_selection import SEED, difference, draws_of, listed
from dsteer_tl.claims.toxicity_selection import (
    BASE,
    CHANGE_COLUMNS,
    PERPLEXITY,
    POLICY,
    ROUNDING,
    SCORE_COLUMNS,
    check_columns,
    check_groups,
    interval,
    known,
    optional,
    told,
)
from dsteer_tl.claims.verdicts import Measurement, Tables
from dsteer_tl.controls import Interval
from dsteer_tl.monotonicity import around

_ATTRIBUTE = "attribute"
#: Row 28: keys are scaled by ten; published is a share of (.458 − .208)/(.453 − .208) = 1.02 at a
#: perplexity ratio of 23.30/23.34. Ours are these two.
_PUBLISHED_SCALE = 10.0
_RESTORED, _PERPLEXITY_RATIO = 0.9, 1.1
_NOT_APART = "base and policy are not apart: nothing to undo"
_AMPLIFIED_NULLS = ("random", "most_active")
#: In a gated MLP the keys that multiply the activation by the scale, as the paper scales W₂ there
#: (Table 5).
_KEYS = "in"
#: Row 30: published 2.5–24 %; beyond half "only" is wrong altogether (ours).
_PUBLISHED_SHARE, _HALF = 0.24, 0.5
_STATISTIC = "probe_projection"
_NOT_LOWERED = "DPO did not lower the projection on the probe: nothing to explain"
_SHARE = ("share", "low", "high")
#: Random groups and the largest of their shares; policy less base of the statistic itself.
_GROUPS = ("draws", "draws_high")
_WHOLE = ("whole", "whole_low", "whole_high")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edit:
    """Keys of a group scaled in the policy: what comes back of the attribute, at what cost."""

    share: Interval
    perplexity: float
    costs: bool

    @property
    def restores(self) -> bool:
        """Whether the attribute is back at the perplexity of the policy."""
        return self.share.value >= _RESTORED - ROUNDING and not self.costs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """Base and policy as they are: the gap between their scores, and the policy's perplexity."""

    gap: Interval
    perplexity: float


def _score(tables: Tables, rows: pd.DataFrame, host: str) -> Interval:
    """Of a host as it is."""
    return interval(tables, rows, SCORE_COLUMNS, host=host, scale=1.0)


def _change(tables: Tables, rows: pd.DataFrame, host: str, scale: float) -> Interval:
    """From the host as it is, paired by prompt."""
    return interval(tables, rows, CHANGE_COLUMNS, host=host, scale=scale)


def _as_they_are(tables: Tables, table: pd.DataFrame) -> _Ends:
    base, policy = (_score(tables, table, host) for host in (BASE, POLICY))
    return _Ends(
        gap=_paired_gap(tables, base, policy) or difference(base, policy),
        perplexity=known(tables, table, PERPLEXITY, host=POLICY, scale=1.0),
    )


def _paired_gap(tables: Tables, base: Interval, policy: Interval) -> Interval | None:
    """Base less policy from paired prompts, if they were measured and are the same texts."""
    interventions = optional(tables, "toxicity_interventions")
    rows = at(interventions, vector=POLICY) if len(interventions) else interventions
    if not len(rows):
        return None
    value, low, high = (0.0 - value_at(rows, name) for name in CHANGE_COLUMNS)  # never -0.0
    same = np.isclose(value, base.value - policy.value, rtol=0, atol=1e-6)
    return Interval(value=value, low=high, high=low, draws=0) if same else None


def _edit(tables: Tables, rows: pd.DataFrame, found: _Ends, scale: float) -> _Edit:
    """Recovered share and perplexity of one group in the policy."""
    restored = _change(tables, rows, POLICY, scale)
    # Both less the policy's scores, so that drawing them independently errs on the side of caution.
    drawn = draws_of(restored, SEED) / draws_of(found.gap, SEED + 2)
    perplexity = known(tables, rows, PERPLEXITY, host=POLICY, scale=scale)
    return _Edit(
        share=around(restored.value / found.gap.value, drawn),
        perplexity=perplexity,
        costs=perplexity > _PERPLEXITY_RATIO * found.perplexity + ROUNDING,
    )


def amplified_keys(tables: Tables) -> Measurement:
    """Row 28: a few key vectors of the attribute, ten times as long, undo the tuning.

    A control is one group: the interval must lie above what controls restore at the policy's
    perplexity, else the share is not told apart from theirs.

    Raises:
        MissingRowsError: Nothing was scaled, no control group was, or the scorer could not run.
    """
    every = tables["toxicity_unalign"]
    check_columns(every, "toxicity_unalign", CHANGE_COLUMNS)
    table = at(every, keys=_KEYS)
    rows = at(table, group=_ATTRIBUTE)
    found = _as_they_are(tables, table)
    scale = _largest_scale(rows)
    if not found.gap.low > 0:
        return _nothing_left(found.gap, rows, "attribute score, base less policy", _NOT_APART)
    edit = _edit(tables, rows, found, scale)
    nulls = {
        name: _edit(tables, at(table, group=name), found, scale)
        for name in _AMPLIFIED_NULLS
        if len(at(table, group=name, host=POLICY, scale=scale))
    }
    if not nulls:
        raise MissingRowsError(f"no random and no most active neurons were scaled by {scale:g}")
    largest = max(nulls, key=lambda name: nulls[name].share.value)
    null = nulls[largest]
    null_met = any(each.restores for each in nulls.values())
    rivals = [each.share.value for each in nulls.values() if not each.costs]
    special = edit.share.low > max([0.0, *rivals])
    return Measurement(
        measured=edit.share.value,
        ci=ends(edit.share),
        null=null.share.value,
        null_name=f"as many {largest.replace('_', ' ')} neurons",
        target_met=edit.restores and (special or null_met),
        null_met=null_met,
        right_sign=edit.share.low > max(0.0, null.share.value),
        unit=f"share of the gap from policy to base that is back at ×{scale:g}",
        reason=joined(
            f"perplexity {found.perplexity:.4g} → {edit.perplexity:.4g}"
            + (", more than 1.1 times" if edit.costs else "")
            + " (published 23.34 → 23.30, by a later study 37.33)",
            _on_base(tables, rows, scale),
            listed("controls", (_told(name, each) for name, each in nulls.items())),
            _other_keys(tables, every, found, scale),
            "" if scale == _PUBLISHED_SCALE else f"published at ×10, measured at ×{scale:g}",
        ),
        n=int(value_at(rows, "prompts", host=POLICY)),
    )


def _largest_scale(rows: pd.DataFrame) -> float:
    scales = at(rows, host=POLICY)["scale"]
    if (scales == _PUBLISHED_SCALE).any():
        return _PUBLISHED_SCALE
    if not (scales > 1).any():
        raise MissingRowsError("no key vector of the attribute was scaled in the policy")
    return float(scales.max())


def _nothing_left(found: Interval, rows: pd.DataFrame, unit: str, reason: str) -> Measurement:
    """UNTESTABLE: the effect itself that a row is about is missing."""
    return Measurement(
        measured=found.value,
        ci=ends(found),
        null=float("nan"),
        null_name="",
        target_met=False,
        null_met=False,
        right_sign=False,
        unit=unit,
        reason=reason,
        n=int(value_at(rows, "prompts")),
        untestable=True,
    )


def _on_base(tables: Tables, rows: pd.DataFrame, scale: float) -> str:
    """What the same edit does to a base that has nothing to undo."""
    if not len(at(rows, host=BASE, scale=scale)):
        return "the base was not scaled"
    rise, restored = (_change(tables, rows, host, scale) for host in (BASE, POLICY))
    text = f"on the base {rise.value:+z.3f}, on the policy {restored.value:+z.3f}"
    if rise.low > 0 and rise.value >= restored.low:
        return f"{text}: the base rises as much, so that nothing of DPO in particular was undone"
    return text


def _told(name: str, edit: _Edit) -> str:
    return f"{name.replace('_', ' ')} {edit.share.value:z.2f} at perplexity {edit.perplexity:.4g}"


def _other_keys(tables: Tables, every: pd.DataFrame, found: _Ends, scale: float) -> str:
    """Gated MLPs: what scaling the gate's key vectors does, or both."""
    others = [str(keys) for keys in dict.fromkeys(every["keys"]) if keys != _KEYS]
    parts = (
        _told(keys, _edit(tables, rows, found, scale))
        for keys in others
        if len(at(rows := at(every, group=_ATTRIBUTE, keys=keys), host=POLICY, scale=scale))
    )
    text = listed("columns of W_in were scaled; other keys", parts)
    return f"{text} (published for Llama 2: 0.48 with W_in ×3)" if text else ""


def explained_share(tables: Tables) -> Measurement:
    """Row 30: the neurons of the attribute explain only 2.5–24 % of the effect of DPO.

    "Only" is a claim of smallness, and a set of neurons without any meaning explains little too.
    They are special where the interval of their share lies above 0 and above the range of random
    groups. The target asks for a share above 0 whose whole interval is below 24 %, since a wide one
    shows nothing small.

    ===========================  ==================  ==========
    share                        special             verdict
    ===========================  ==================  ==========
    0 to 24 %, the interval too  yes                 REPLICATED
    0 to 24 %, the interval too  no: as any neurons  TRIVIAL
    larger, below one half       yes                 PARTIAL
    larger                       no                  FAILED
    one half or more             any                 FAILED
    0 or less                    never               FAILED
    ===========================  ==================  ==========

    Neurons of which nothing comes back, or which lead away from the policy, explain no part, be it
    small. Where tuning did not lower the projection, there is nothing to explain a part of.

    Raises:
        MissingRowsError: They or enough groups of as many random neurons were not patched.
    """
    every = tables["toxicity_patching"]
    check_columns(every, "toxicity_patching", (*_GROUPS, *_WHOLE))
    table = at(every, statistic=_STATISTIC, effect="total")
    rows = at(table, group=_ATTRIBUTE)
    if not len(rows):
        raise MissingRowsError("the neurons of the attribute were not patched")
    size = int(rows["neurons"].max())
    whole = interval(tables, rows, _WHOLE, neurons=size)
    if not whole.high < 0:
        return _nothing_left(whole, rows, "projection on the probe, policy less base", _NOT_LOWERED)
    found = interval(tables, rows, _SHARE, neurons=size)
    controls = at(table, group="random", neurons=size)
    if not len(controls):
        raise MissingRowsError(f"no {size} random neurons were patched")
    null = value_at(controls, "share")
    groups, highest = (value_at(controls, name) for name in _GROUPS)
    check_groups(groups, f"{size} neurons")
    special = found.low > max(0.0, highest)
    return Measurement(
        measured=found.value,
        ci=ends(found),
        null=null,
        null_name=f"{size} random neurons",
        target_met=found.value > 0 and found.high <= _PUBLISHED_SHARE,
        null_met=not special,
        right_sign=special and found.value < _HALF,
        unit="share of the change along the probe, total effect",
        reason=joined(
            f"{size} neurons",
            f"{groups:.0f} random groups reach {highest:z.2g}"
            + ("" if special else ", so that these explain no more than random neurons may"),
            "" if found.value > 0 else "they explain nothing, or lead away from the policy",
            f"DPO moves the projection by {told(whole)}",
            _beside(every, size),
            "published 0.025 to 0.24 over four models",
        ),
        n=int(value_at(rows, "prompts")),
    )


def _beside(table: pd.DataFrame, size: int) -> str:
    """Other statistics, effects and groups."""
    own, every = at(table, group=_ATTRIBUTE), at(table, group="all")
    total = at(own, statistic=_STATISTIC, effect="total")
    fewer = total[total["neurons"] < size]
    asked = (
        ("direct effect", at(own, statistic=_STATISTIC, effect="direct", neurons=size)),
        ("share of KL", at(own, statistic="kl", effect="total", neurons=size)),
        *((f"first {few}", at(fewer, neurons=few)) for few in dict.fromkeys(fewer["neurons"])),
        ("all neurons of the model", at(every, statistic=_STATISTIC, effect="total")),
    )
    return ", ".join(
        f"{label} {value_at(rows, 'share'):z.2f}" for label, rows in asked if len(rows)
    )
