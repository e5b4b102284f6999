"""Cards: how often each verdict was given, and the key claims with their intervals drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dsteer_tl.claims.verdicts import ClaimResult, Verdict
from dsteer_tl.report.verdict_words import VerdictLook, look
from dsteer_tl.report.words import number, with_interval

#: Rows on the question itself, one card each where the run has them.
KEY_ROWS = (5, 6, 7, 10, 11, 13, 23, 26)

_STRIP_WIDTH = 272
_STRIP_MARGIN = 8


@dataclass(frozen=True, slots=True)
class VerdictCount:
    """How often a verdict was given."""

    look: VerdictLook
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Measured value, interval and null on one line, in pixels."""

    width: int
    zero: float
    measured: float
    low: float | None
    high: float | None
    null: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimCard:
    """One key claim."""

    id: int
    statement: str
    published: str
    target: str
    measured: str
    unit: str
    null: str
    null_name: str
    look: VerdictLook
    reason: str
    strip: Strip | None


def verdict_counts(claims: Sequence[ClaimResult]) -> tuple[VerdictCount, ...]:
    """Every verdict with its count, those that were not given too."""
    counts = Counter(claim.verdict for claim in claims)
    return tuple(VerdictCount(look(verdict), counts[verdict]) for verdict in Verdict)


def claim_cards(claims: Sequence[ClaimResult]) -> tuple[ClaimCard, ...]:
    """The key claims in the order of the ledger."""
    return tuple(_card(claim) for claim in claims if claim.id in KEY_ROWS)


def _card(claim: ClaimResult) -> ClaimCard:
    return ClaimCard(
        id=claim.id,
        statement=claim.statement,
        published=claim.published,
        target=claim.target,
        measured=with_interval(claim.measured, *(claim.ci or (None, None))),
        unit=claim.unit,
        null=number(claim.null),
        null_name=claim.null_name,
        look=look(claim.verdict),
        reason=claim.reason if claim.measured is None else "",
        strip=_strip(claim),
    )


def _strip(claim: ClaimResult) -> Strip | None:
    """Places of the numbers on one axis from the smallest to the largest of them and 0."""
    if claim.measured is None:
        return None
    numbers = [0.0, claim.measured, *(claim.ci or ())]
    numbers += [] if claim.null is None else [claim.null]
    low, high = min(numbers), max(numbers)
    if high == low:
        return None

    def place(value: float) -> float:
        inner = _STRIP_WIDTH - 2 * _STRIP_MARGIN
        return float(round(_STRIP_MARGIN + inner * (value - low) / (high - low), 1))

    return Strip(
        width=_STRIP_WIDTH,
        zero=place(0.0),
        measured=place(claim.measured),
        low=None if claim.ci is None else place(claim.ci[0]),
        high=None if claim.ci is None else place(claim.ci[1]),
        null=None if claim.null is None else place(claim.null),
    )
