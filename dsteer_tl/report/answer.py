"""The short answer at the top: sentences made of verdicts and numbers, and of nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsteer_tl.claims.verdicts import ClaimResult, Verdict
from dsteer_tl.report.words import counted, listed, number, with_interval

#: Rows that ask the question itself: parallel shifts, one direction, and what removing it does.
DECIDING = (6, 7, 13)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer.

    Attributes:
        word: In one to eight words.
        why: The rule that gave the word.
        numbers: A sentence for each deciding row.
        counts: How many claims got which verdict.
    """

    word: str
    why: str
    numbers: tuple[str, ...]
    counts: str


def answer(claims: Sequence[ClaimResult]) -> Answer:
    """The answer that the verdicts give.

    Yes where every deciding row is REPLICATED, no where every one FAILED, undecided where the null
    meets every target too, in part otherwise; rows that were not run do not count and are named.

    Args:
        claims: Rows of the ledger.
    """
    by_id = {claim.id: claim for claim in claims}
    decided = {
        row: by_id[row].verdict
        for row in DECIDING
        if row in by_id and by_id[row].verdict not in (Verdict.NOT_RUN, Verdict.UNTESTABLE)
    }
    word, why = _word(decided)
    open_rows = [row for row in DECIDING if row not in decided]
    if decided and open_rows:
        rows = listed([str(row) for row in open_rows])
        why += f" Row {rows} was" if len(open_rows) == 1 else f" Rows {rows} were"
        why += " not measured."
    return Answer(
        word=word,
        why=why,
        numbers=tuple(_numbers(by_id[row]) for row in DECIDING if row in decided),
        counts=_counts(claims),
    )


def _word(decided: Mapping[int, Verdict]) -> tuple[str, str]:
    if not decided:
        rows = listed([str(row) for row in DECIDING])
        return "Not measured.", f"None of rows {rows} of the ledger, which decide it, was measured."
    found = set(decided.values())
    numbers = listed([str(row) for row in decided])
    if len(decided) == 1:
        subject, verb = f"Row {numbers} of the ledger, which decides it,", "is"
    else:
        subject, verb = f"Rows {numbers} of the ledger, which decide it,", "are"
    if found == {Verdict.TRIVIAL}:
        return "Undecided.", f"{subject} {verb} TRIVIAL: the null meets the targets as well."
    if len(found) == 1:
        (only,) = found
        words = {Verdict.REPLICATED: "Yes, by the published measures.", Verdict.FAILED: "No."}
        return words.get(only, "Only in part."), f"{subject} {verb} {only.value}."
    verdicts = listed([f"{verdict.value} (row {row})" for row, verdict in decided.items()])
    return "Only in part.", f"{subject} {verb} {verdicts}."


def _numbers(claim: ClaimResult) -> str:
    measured = with_interval(claim.measured, *(claim.ci or (None, None)))
    unit = f", measured as {claim.unit}" if claim.unit else ""
    null = f", null {number(claim.null)} ({claim.null_name})" if claim.null_name else ""
    return (
        f"“{claim.statement}” (row {claim.id}, {claim.verdict.value}){unit}: {measured}; "
        f"published {claim.published}{null}."
    )


def _counts(claims: Sequence[ClaimResult]) -> str:
    counts = Counter(claim.verdict for claim in claims)
    if not counts:
        return "The ledger has no rows."
    parts = [f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict]]
    return f"Of {counted(len(claims), 'row')}: {listed(parts)}."
