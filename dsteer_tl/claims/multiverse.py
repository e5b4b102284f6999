"""The ledger over every analytic choice: which verdicts hang on a choice that nobody published.

One choice is varied at a time, and for the rows on the geometry of shifts all of them together
(Steegen et al. 2016, "Increasing transparency through a multiverse analysis").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import nan

import pandas as pd

from dsteer_tl.claims.choices import DEFAULT, EVERY, View
from dsteer_tl.claims.claim import Claim
from dsteer_tl.claims.ledger import LEDGER, judge
from dsteer_tl.claims.selection import at
from dsteer_tl.claims.verdicts import ClaimResult, Tables, Verdict

COLUMNS = (
    "id",
    "dimension",
    "choice",
    "default",
    "verdict",
    "measured",
    "ci_low",
    "ci_high",
    "null",
    "n",
    "applies",
    "flips",
    "reason",
)
_NO_CHOICE = "no choice that this run stores bears on it"
_CLAIMS = {claim.id: claim for claim in LEDGER}
_SWEEP, _STUDY = "sweep", "toxicity_"


def multiverse(
    views: Sequence[View], differences: tuple[str, ...] = (), *, identical: bool = False
) -> pd.DataFrame:
    """The table ``multiverse``: every row of the ledger by every choice that can bear on it.

    Each row of the ledger has one row whose ``default`` is true. ``applies`` says whether the claim
    has a verdict by this choice; on a default row, whether it has one by any other choice.
    ``flips`` where both the default and the choice give a verdict, and another one: what is NOT RUN
    by one of them flips nothing.

    Args:
        views: From `dsteer_tl.claims.views.stored_views`; the first is the default.
        differences: As for `judge`.
        identical: As for `judge`.

    Returns:
        Columns id, dimension, choice, default, verdict, measured, ci_low, ci_high, null, n,
        applies, flips, reason; sorted by id, views in their order. Missing numbers are NaN.
    """
    found: dict[int, list[tuple[View, ClaimResult]]] = {claim.id: [] for claim in LEDGER}
    for view in views:
        results = judge(_read(view), differences, identical=identical)
        for result in results:
            if result.id in view.rows:
                found[result.id].append((view, result))
    rows = [row for results in found.values() for row in _rows(results)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _read(view: View) -> Tables:
    """The tables that the rows of a view read: judging the rest would take longer than all."""
    names = {name for row in view.rows for name in _names(_CLAIMS[row], view.tables)}
    return {name: table for name, table in view.tables.items() if name in names}


def _names(claim: Claim, tables: Tables) -> Iterable[str]:
    """Tables of a claim, with those that only its reason reads."""
    yield from claim.tables
    for prefix in (_SWEEP, _STUDY):
        if any(name.startswith(prefix) for name in claim.tables):
            yield from (name for name in tables if name.startswith(prefix))


def _rows(results: Sequence[tuple[View, ClaimResult]]) -> list[dict[str, object]]:
    verdicts = [result.verdict for view, result in results if view.default]
    default = verdicts[0] if verdicts else Verdict.NOT_RUN
    bears = any(
        not view.default and result.verdict is not Verdict.NOT_RUN for view, result in results
    )
    rows = []
    for view, result in results:
        has_verdict = result.verdict is not Verdict.NOT_RUN
        low, high = result.ci or (nan, nan)
        rows.append(
            {
                "id": result.id,
                "dimension": view.dimension,
                "choice": view.choice,
                "default": view.default,
                "verdict": result.verdict.value,
                "measured": nan if result.measured is None else result.measured,
                "ci_low": low,
                "ci_high": high,
                "null": nan if result.null is None else result.null,
                "n": result.n,
                "applies": bears if view.default else has_verdict,
                "flips": has_verdict
                and default is not Verdict.NOT_RUN
                and result.verdict is not default,
                "reason": result.reason
                if bears or not (view.default and has_verdict)
                else _NO_CHOICE,
            }
        )
    return rows


def flipping_choices(table: pd.DataFrame) -> pd.DataFrame:
    """Which choices change each verdict, and how many leave it (one choice at a time).

    Args:
        table: From `multiverse`.

    Returns:
        One row a claim: id, verdict (the default's), flipped_by (``dimension: choice → VERDICT``,
        joined by ``; ``), alternatives (choices with a verdict), kept (share of them that leave
        it; NaN without any).
    """
    rows = []
    for row_id, group in table.groupby("id", sort=True):
        verdict = str(at(group, default=True)["verdict"].to_numpy()[0])
        others = group[group["applies"] & ~group["dimension"].isin([DEFAULT, EVERY])]
        if verdict == Verdict.NOT_RUN.value:
            others = others.iloc[:0]
        flipping = others[others["flips"]]
        told = (
            f"{dimension}: {choice} → {other}"
            for dimension, choice, other in zip(
                flipping["dimension"], flipping["choice"], flipping["verdict"], strict=True
            )
        )
        rows.append(
            {
                "id": row_id,
                "verdict": verdict,
                "flipped_by": "; ".join(told),
                "alternatives": len(others),
                "kept": 1 - len(flipping) / len(others) if len(others) else nan,
            }
        )
    columns = ["id", "verdict", "flipped_by", "alternatives", "kept"]
    return pd.DataFrame(rows, columns=columns)


def verdict_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Share of all combinations of choices that give each verdict.

    Args:
        table: From `multiverse`.

    Returns:
        One row a claim and verdict, sorted by both: id, verdict, share, universes (combinations
        with a verdict). Without rows where no claim was crossed.
    """
    crossed = table[(table["dimension"] == EVERY) & table["applies"]]
    rows = [
        {"id": row_id, "verdict": verdict, "share": count / len(group), "universes": len(group)}
        for row_id, group in crossed.groupby("id", sort=True)
        for verdict, count in group.groupby("verdict").size().items()
    ]
    return pd.DataFrame(rows, columns=["id", "verdict", "share", "universes"])
