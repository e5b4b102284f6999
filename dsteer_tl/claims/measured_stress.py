"""How the stress tests' claims are measured: rows 33–36.

Nobody publishes numbers for them; the targets are ours. Each row asks twice: is the effect there,
and is it more than the control shows? An effect that cannot be told from its control is
``TRIVIAL``, not replicated: where both are alike, one of them meets a threshold by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from dsteer_tl.claims.selection import MissingRowsError, ends, joined
from dsteer_tl.claims.verdicts import Measurement, Tables, Verdict
from dsteer_tl.controls import Interval, bootstrap_mean, null_distribution
from dsteer_tl.sites import FINAL

#: Row 34: an encoding bypasses the offset if at most this share of it is left.
_BYPASSED = 0.5
_DRAWS, _SEED = 1000, 0
_KIND = "last_prompt"
#: Conditions of row 34 that are no single encoding.
_POOLED_OR_CONTROL = ("all", "other_half")
#: Verdicts that judge nothing.
_UNJUDGED = (Verdict.NOT_RUN.value, Verdict.UNTESTABLE.value)
#: Row 33 is about the others.
_OWN_ROW = 33


#: Intervals and numbers of prompts by condition, statistic and site.
_Found = Mapping[tuple[str, str, str], tuple[Interval, int]]


def _found(table: pd.DataFrame) -> _Found:
    columns = (table[name].tolist() for name in ("value", "low", "high", "n"))
    keys = zip(table["condition"], table["statistic"], table["site"], strict=True)
    return {
        key: (Interval(value=float(value), low=float(low), high=float(high), draws=0), int(n))
        for key, value, low, high, n in zip(keys, *columns, strict=True)
    }


def _known(table: _Found, condition: str, statistic: str, site: str = "") -> Interval | None:
    row = table.get((condition, statistic, site))
    return None if row is None else row[0]


def _needed(table: _Found, condition: str, statistic: str, site: str = "") -> Interval:
    found = _known(table, condition, statistic, site)
    if found is None:
        where = f" at {site}" if site else ""
        raise MissingRowsError(f"no {statistic} was measured for {condition}{where}")
    return found


def _count(table: _Found, condition: str, statistic: str, site: str) -> int:
    row = table.get((condition, statistic, site))
    return 0 if row is None else row[1]


def _told(head: str, found: Interval | None, digits: int = 2) -> str:
    if found is None or found.value != found.value:
        return ""
    text = f"{head} {found.value:.{digits}f}"
    if found.low == found.low:
        text += f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return text


def same_across_models(tables: Tables) -> Measurement:
    """Row 33: the ledger's verdicts are the same across sizes and architectures."""
    table = tables["stress_model_verdicts"]
    judged = table[~table["verdict"].isin(_UNJUDGED) & (table["id"] != _OWN_ROW)]
    wide = judged.pivot(index="id", columns="run", values="verdict").dropna()
    runs = list(dict.fromkeys(table["run"]))
    if len(runs) < 2 or wide.shape[1] < len(runs) or len(wide) < 2:
        raise MissingRowsError(
            f"{len(runs)} runs have {len(wide) if wide.shape[1] == len(runs) else 0} rows that all "
            "of them judge; expected 2 runs and 2 rows or more"
        )
    verdicts = wide[runs].to_numpy(dtype=str)
    same = _same(verdicts)
    found = bootstrap_mean(same, draws=_DRAWS, seed=_SEED)
    null = null_distribution(
        lambda rows: float(_same(rows).mean()), _permuted(verdicts), _DRAWS, _SEED
    )
    differing = [f"#{number}" for number, equal in zip(wide.index, same, strict=True) if not equal]
    return Measurement(
        measured=found.value,
        ci=ends(found),
        null=null.value,
        null_name="verdicts permuted between rows",
        target_met=found.value >= 1.0,
        # Where each run has one verdict throughout, any order of them agrees.
        null_met=null.high >= 1.0,
        right_sign=found.value > null.high,
        unit=f"share of {len(wide)} rows with one verdict in {len(runs)} runs",
        reason=joined(
            f"runs {', '.join(runs)}",
            f"verdicts differ in {', '.join(differing)}" if differing else "",
        ),
        n=len(wide),
    )


def _same(verdicts: np.ndarray) -> np.ndarray:
    """1 for each row whose verdict is the same in all runs, else 0."""
    return np.asarray((verdicts == verdicts[:, :1]).all(axis=1), dtype=np.float64)


def _permuted(verdicts: np.ndarray) -> Callable[[int], np.ndarray]:
    """A sampler that keeps each run's counts of verdicts and breaks which row has which."""

    def sample(seed: int) -> np.ndarray:
        return np.asarray(np.random.default_rng(seed).permuted(verdicts, axis=0))

    return sample


def encoded_prompts(tables: Tables) -> Measurement:
    """Row 34: encoding the prompt bypasses the offset."""
    table = _found(tables["stress_encodings"])
    ratio = _needed(table, "all", "projection_ratio", FINAL)
    null = _needed(table, "random_tokens", "projection_ratio", FINAL)
    more = _needed(table, "all", "projection_ratio_over_random", FINAL)
    plain = _needed(table, "plain", "projection", FINAL)
    parts = ", ".join(
        f"{name} {found.value:.2f}"
        for (name, statistic, site), (found, _) in table.items()
        if (statistic, site) == ("projection_ratio", FINAL)
        and name not in _POOLED_OR_CONTROL
        and not name.startswith("random_tokens")
    )
    return Measurement(
        measured=ratio.value,
        ci=ends(ratio),
        null=null.value,
        null_name="random tokens as many as the encoded prompt's",
        target_met=ratio.value <= _BYPASSED and ratio.high < 1,
        # Random tokens may lose some of it too: what counts is whether encoding loses more.
        null_met=not more.high < 0,
        right_sign=ratio.high < 1 and more.high < 0,
        unit="mean projection on v*, encoded over plain",
        reason=joined(
            parts,
            _told("encoded less random tokens", more),
            "" if more.high < 0 else "any unknown text does as much",
            _told("policy's gain in score: plain", _known(table, "plain", "score_gap")),
            _told("encoded", _known(table, "all", "score_gap")),
            "" if plain.low > 0 else "no projection on v* even on plain prompts",
        ),
        site=FINAL,
        position_kind=_KIND,
        n=_count(table, "all", "projection_ratio", FINAL),
        untestable=not plain.low > 0,
    )


def drift_over_turns(tables: Tables) -> Measurement:
    """Row 35: the projection on v* drifts over the turns of a dialogue."""
    table = _found(tables["stress_turns"])
    slope = _needed(table, "dialogue", "projection_slope", FINAL)
    first = _needed(table, "dialogue.1", "projection", FINAL)
    controls = {
        name: (
            _needed(table, name, "projection_slope", FINAL),
            _needed(table, name, "projection_slope_difference", FINAL),
        )
        for name in ("shuffled", "random_prefix")
    }
    sign = 1.0 if slope.value >= 0 else -1.0
    as_much = [
        name for name, (_, difference) in controls.items() if not _beyond_zero(difference, sign)
    ]
    # The control that drifts furthest the same way.
    worst = max(controls, key=lambda name: sign * controls[name][0].value)
    labels = {"shuffled": "turns of other dialogues", "random_prefix": "random tokens before"}
    return Measurement(
        measured=slope.value,
        ci=ends(slope),
        null=controls[worst][0].value,
        null_name=labels[worst],
        target_met=_beyond_zero(slope, sign),
        null_met=bool(as_much),
        right_sign=False,
        unit="change of the projection on v* per turn, over that at the first turn",
        reason=joined(
            *(_told(labels[name], own, 3) for name, (own, _) in controls.items()),
            f"{' and '.join(labels[n] for n in as_much)} may do as much" if as_much else "",
            _told(
                "policy's gain in score per turn", _known(table, "dialogue", "score_gap_slope"), 3
            ),
            "" if first.low > 0 else "no projection on v* even at the first turn",
        ),
        site=FINAL,
        position_kind=_KIND,
        n=_count(table, "dialogue", "projection_slope", FINAL),
        untestable=not first.low > 0,
    )


def _beyond_zero(found: Interval, sign: float) -> bool:
    """Whether an interval lies wholly on one side of 0."""
    return found.low > 0 if sign > 0 else found.high < 0


def harmful_deflected(tables: Tables) -> Measurement:
    """Row 36: benign prompts are left alone, harmful ones deflected into a null space."""
    table = _found(tables["stress_prompts"])
    ratio = _needed(table, "harmful_to_benign", "relative_norm_ratio", FINAL)
    share = _needed(table, "harmful_to_benign", "null_space_share_difference", FINAL)
    controls: list[tuple[str, Interval, Interval]] = []
    for label, condition in (
        ("random tokens", "random_tokens_to_benign"),
        ("random weight changes", "harmful_to_benign.random_weights"),
    ):
        larger = _known(table, condition, "relative_norm_ratio", FINAL)
        outside = _known(table, condition, "null_space_share_difference", FINAL)
        if larger is not None and outside is not None:
            controls.append((label, larger, outside))
    if not controls:
        raise MissingRowsError("no control stands beside the harmful prompts")
    as_much = [label for label, own, _ in controls if not _larger(table, label, ratio, own)]
    name, null, _ = max(controls, key=lambda control: control[1].value)
    benign, harmful = (_known(table, n, "null_space_share", FINAL) for n in ("benign", "harmful"))
    return Measurement(
        measured=ratio.value,
        ci=ends(ratio),
        null=null.value,
        null_name=name,
        target_met=_deflected(ratio, share),
        null_met=bool(as_much) or any(outside.value >= share.low for _, _, outside in controls),
        right_sign=ratio.low > 1 and not as_much,
        unit="‖δ‖/‖h‖, harmful over benign",
        reason=joined(
            _told("share of ‖δ‖² outside the benign subspace: benign", benign),
            _told("harmful", harmful),
            _told("difference", share, 3),
            f"{' and '.join(as_much)} do as much" if as_much else "",
            _told("benign ‖δ‖/‖h‖", _known(table, "benign", "relative_norm", FINAL), 3),
        ),
        site=FINAL,
        position_kind=_KIND,
        n=_count(table, "harmful_to_benign", "relative_norm_ratio", FINAL),
    )


def _deflected(ratio: Interval, share: Interval) -> bool:
    """Larger shifts than on benign prompts, and more of them outside the benign subspace."""
    return ratio.low > 1 and share.low > 0


def _larger(table: _Found, label: str, ratio: Interval, control: Interval) -> bool:
    """Whether harmful prompts stand further out than a control does."""
    if label == "random tokens":
        direct = _known(table, "harmful_to_random_tokens", "relative_norm_ratio", FINAL)
        if direct is not None:
            return direct.low > 1
    return ratio.low > control.high
