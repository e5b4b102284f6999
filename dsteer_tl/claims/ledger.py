"""The ledger: every published claim, judged on the tables of a run."""

from __future__ import annotations

from dataclasses import replace
from math import isnan

import pandas as pd

from dsteer_tl.claims.claim import Claim
from dsteer_tl.claims.d_steer import D_STEER_CLAIMS, SWEEP
from dsteer_tl.claims.lee2024 import LEE_CLAIMS
from dsteer_tl.claims.open_questions import OPEN_QUESTIONS, STRESS
from dsteer_tl.claims.results import Ledger
from dsteer_tl.claims.selection import MissingRowsError, joined
from dsteer_tl.claims.toxicity_selection import stand_in
from dsteer_tl.claims.verdicts import ClaimResult, Tables, Verdict, decide

LEDGER: tuple[Claim, ...] = D_STEER_CLAIMS + LEE_CLAIMS + OPEN_QUESTIONS


def judge(tables: Tables, differences: tuple[str, ...] = (), *, identical: bool = False) -> Ledger:
    """Every row of the ledger on the tables of a run.

    Args:
        tables: Tables by name; a row whose tables are missing is ``NOT RUN``.
        differences: Properties in which base and policy differ beyond the weights inside the
            blocks, named in each row that reads logits.
        identical: Whether base and policy hold the same weights; rows on their difference are
            then ``NOT RUN``.
    """
    return Ledger(
        replace(_not_run(claim), reason="base and policy hold the same weights: no shift")
        if identical and claim.id not in _BASE_ROWS
        else _judge(claim, tables, differences)
        for claim in LEDGER
    )


#: Rows whose statistic reads both models' hidden states or logits in one basis.
_READOUT_ROWS = frozenset({4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 18, 26, 27, 29, 30})
#: Rows that compare chosen with rejected responses.
_PAIR_ROWS = frozenset({1, 2, 3, 4, 5, 19})
#: Rows on the geometry of one model.
_BASE_ROWS = frozenset({1, 2, 3, 20, 21, 33})
#: How the tables of the toxicity study begin.
_STUDY = "toxicity_"


def _not_run(claim: Claim) -> ClaimResult:
    return ClaimResult(
        id=claim.id,
        statement=claim.statement,
        source=claim.source,
        published=claim.published,
        target=claim.target,
        figure=claim.figure,
        verdict=Verdict.NOT_RUN,
    )


def _judge(claim: Claim, tables: Tables, differences: tuple[str, ...]) -> ClaimResult:
    result = _not_run(claim)
    missing = [name for name in claim.tables if not len(tables.get(name, pd.DataFrame()))]
    if missing:
        return replace(result, reason=f"{_needs(claim, tables)}no table {', '.join(missing)}")
    try:
        found = claim.measure(tables)
    except MissingRowsError as error:
        return replace(result, reason=str(error))
    reason = found.reason
    if differences and claim.id in _READOUT_ROWS:
        reason = joined(reason, f"base and policy differ in {', '.join(differences)}")
    if _of_the_study(claim):
        reason = joined(reason, stand_in(tables))
    if isnan(found.measured):
        reason = joined("undefined, as where base and policy do not differ", reason)
    return replace(
        result,
        verdict=decide(found),
        measured=_known(found.measured),
        ci=None if found.ci is None or any(map(isnan, found.ci)) else found.ci,
        null=_known(found.null),
        null_name=found.null_name,
        unit=found.unit,
        reason=reason,
        site=found.site,
        position_kind=found.position_kind,
        n=found.n,
    )


def _needs(claim: Claim, tables: Tables) -> str:
    """What makes the tables of a claim, where the run has none of its kind."""
    if claim.id in _PAIR_ROWS:
        return "needs preference pairs: "
    if claim.tables == SWEEP:
        return "needs a behaviour sweep (dsteer sweep): "
    if _of_the_study(claim) and not any(name.startswith(_STUDY) for name in tables):
        return "needs the toxicity study (dsteer toxicity): "
    if claim.tables[0].startswith(STRESS):
        return _stress_test(claim.figure.removeprefix(STRESS), tables)
    return ""


def _stress_test(name: str, tables: Tables) -> str:
    """Which test is missing, and what it lacked if it was tried."""
    needed = f"needs a stress test (dsteer stress --test {name}): "
    status = tables.get("stress_tests")
    if status is None:
        return needed
    tried = status[(status["test"] == name) & (status["reason"] != "not asked for")]
    return needed + "".join(f"{reason}; " for reason in tried["reason"] if reason)


def _of_the_study(claim: Claim) -> bool:
    return any(name.startswith(_STUDY) for name in claim.tables)


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if isnan(value) else value
