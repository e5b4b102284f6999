"""The multiverse table: which verdicts change under which other choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dsteer_tl.claims.verdicts import ClaimResult, Verdict
from dsteer_tl.errors import RunError
from dsteer_tl.report.verdict_words import VerdictLook, look_of
from dsteer_tl.report.words import number, with_interval

TABLE = "multiverse"
#: Dimension of rows on several choices at once.
_TOGETHER = "all"
_COLUMNS = frozenset(
    {"id", "dimension", "choice", "default", "verdict", "measured", "ci_low", "ci_high", "null"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One row under one choice."""

    dimension: str
    choice: str
    default: bool
    applies: bool
    look: VerdictLook
    measured: str
    null: str
    reason: str
    flips: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiverseRow:
    """One row of the ledger under all choices.

    Attributes:
        id, statement: Of the row.
        look: Verdict under the default choices.
        kept, others: Other choices that leave the verdict, of all that apply.
        flips: Those that change it.
        together, kept_together: Several choices made otherwise at once, and those that leave it.
        choices: All, in the order of the table.
    """

    id: int
    statement: str
    look: VerdictLook
    kept: int
    others: int
    flips: tuple[Choice, ...]
    together: int
    kept_together: int
    choices: tuple[Choice, ...]

    @property
    def share(self) -> str:
        """Share of the other choices that leave the verdict."""
        return f"{100 * self.kept / self.others:.0f} %" if self.others else "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiverse:
    """The section.

    Attributes:
        rows: One a row of the ledger.
        kept, others: Over all rows that have a verdict.
        judged: Rows that have a verdict and another choice.
        steady: Those whose verdict no choice changes.
    """

    rows: tuple[MultiverseRow, ...]
    kept: int
    others: int
    judged: int
    steady: int


def multiverse_section(
    tables: Mapping[str, pd.DataFrame], claims: Sequence[ClaimResult]
) -> Multiverse | None:
    """The section, or None where the run has no such table.

    Raises:
        RunError: The table lacks columns.
    """
    table = tables.get(TABLE)
    if table is None or table.empty:
        return None
    missing = sorted(_COLUMNS - set(table.columns))
    if missing:
        raise RunError(
            f"table '{TABLE}' has no columns {', '.join(missing)}: it was altered, or written by "
            "another version; run dsteer figures on this directory"
        )
    statements = {claim.id: claim.statement for claim in claims}
    rows = []
    for key in sorted({int(value) for value in table["id"]}):
        rows.append(_row(key, statements.get(key, ""), table[table["id"] == key]))
    judged = [row for row in rows if row.others]
    return Multiverse(
        rows=tuple(rows),
        kept=sum(row.kept for row in judged),
        others=sum(row.others for row in judged),
        judged=len(judged),
        steady=sum(row.kept == row.others for row in judged),
    )


def _row(key: int, statement: str, group: pd.DataFrame) -> MultiverseRow:
    records = group.to_dict("records")
    defaults = [record for record in records if _true(record["default"])]
    verdict = str((defaults or records)[0]["verdict"])
    choices = tuple(_choice(record, verdict) for record in records)
    # What was not run has no verdict that a choice could keep or change.
    alternatives = [
        choice
        for choice in choices
        if choice.applies and not choice.default and verdict != Verdict.NOT_RUN
    ]
    others = [choice for choice in alternatives if choice.dimension != _TOGETHER]
    together = [choice for choice in alternatives if choice.dimension == _TOGETHER]
    flips = tuple(choice for choice in others if choice.flips)
    return MultiverseRow(
        id=key,
        statement=statement,
        look=look_of(verdict),
        kept=len(others) - len(flips),
        others=len(others),
        flips=flips,
        together=len(together),
        kept_together=sum(not choice.flips for choice in together),
        choices=choices,
    )


def _choice(record: Mapping[object, object], verdict: str) -> Choice:
    applies = _true(record.get("applies", True))
    reason = record.get("reason")
    default = _true(record["default"])
    return Choice(
        dimension=_words(record["dimension"]),
        choice=_words(record["choice"]),
        default=default,
        applies=applies,
        look=look_of(record["verdict"]),
        measured=with_interval(record["measured"], record["ci_low"], record["ci_high"]),
        null=number(record["null"]),
        reason=reason if isinstance(reason, str) else "",
        flips=applies and not default and str(record["verdict"]) != verdict,
    )


def _true(value: object) -> bool:
    return value == "true" if isinstance(value, str) else bool(value)


def _words(value: object) -> str:
    return str(value).replace("_", " ")
