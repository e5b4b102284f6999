"""Every row of the ledger as the claims table shows it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from dsteer_tl.claims.verdicts import ClaimResult
from dsteer_tl.plots.labels import POSITION_KINDS
from dsteer_tl.report.figure_section import anchor
from dsteer_tl.report.verdict_words import VerdictLook, look
from dsteer_tl.report.words import number, with_interval

_POSITIONS = dict(
    zip(
        POSITION_KINDS, ("last prompt token", "divergence position", "response tokens"), strict=True
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRow:
    """One row.

    Attributes:
        id, statement, source, published, target: Of the claim.
        measured, unit, null, null_name: As text.
        where: Site, position and n.
        look: Of the verdict.
        reason: What else to know; why it was not run.
        figure: Name of the figure, or "".
        anchor: The id of that figure on the page; "" where it was not drawn.
    """

    id: int
    statement: str
    source: str
    published: str
    target: str
    measured: str
    unit: str
    null: str
    null_name: str
    where: str
    look: VerdictLook
    reason: str
    figure: str
    anchor: str


def claim_rows(claims: Sequence[ClaimResult], figures: Container[str]) -> tuple[ClaimRow, ...]:
    """Every row of the ledger.

    Args:
        claims: Rows of the ledger.
        figures: Names of the figures on the page.
    """
    return tuple(
        ClaimRow(
            id=claim.id,
            statement=claim.statement,
            source=claim.source,
            published=claim.published,
            target=claim.target,
            measured=with_interval(claim.measured, *(claim.ci or (None, None))),
            unit=claim.unit if claim.measured is not None else "",
            null=number(claim.null),
            null_name=claim.null_name,
            where=_where(claim),
            look=look(claim.verdict),
            reason=claim.reason,
            figure=claim.figure,
            anchor=anchor(claim.figure) if claim.figure in figures else "",
        )
        for claim in claims
    )


def _where(claim: ClaimResult) -> str:
    parts = [claim.site, _POSITIONS.get(claim.position_kind, claim.position_kind)]
    if claim.n:
        parts.append(f"n = {claim.n:,}")
    return ", ".join(part for part in parts if part)
