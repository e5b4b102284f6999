"""`Ledger`: results of claims that print as the ledger, in a terminal and in a notebook."""

from __future__ import annotations

from typing import SupportsIndex, overload

from dsteer_tl.claims.text import ledger_text, measured_text, number
from dsteer_tl.claims.verdicts import ClaimResult
from dsteer_tl.notebook import Markup, badge, escaped, facts, folded, grid, small, stacked


class Ledger(tuple[ClaimResult, ...]):
    """Rows of the ledger, in order; a tuple in every respect but how it is shown.

    Example:
        >>> judge(run.tables())  # doctest: +SKIP
        >>> judge(run.tables()).rows(5, 6, 11)  # doctest: +SKIP
    """

    __slots__ = ()

    def rows(self, *ids: int) -> Ledger:
        """The rows with these numbers, in the order of the ledger."""
        return Ledger(result for result in self if result.id in ids)

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> ClaimResult: ...
    @overload
    def __getitem__(self, index: slice, /) -> Ledger: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> ClaimResult | Ledger:
        if isinstance(index, slice):
            return Ledger(super().__getitem__(index))
        return super().__getitem__(index)

    def __repr__(self) -> str:
        return ledger_text(self)

    def _repr_html_(self) -> str:
        heads = ("#", "claim", "published", "measured (95 % CI)", "null", "verdict")
        rows = (
            (
                result.id,
                _statement(result),
                result.published,
                _measured(result),
                _null(result),
                badge(result.verdict.value),
            )
            for result in self
        )
        return stacked(grid(heads, rows))


def claim_html(result: ClaimResult) -> str:
    """One row of the ledger as a card."""
    rows: dict[str, object] = {
        "verdict": badge(result.verdict.value),
        "published": f"{result.published} ({result.source})",
        "target": result.target,
        "measured": _measured(result),
        "null": _null(result),
        "where": ", ".join(filter(None, (result.site, result.position_kind, _rows(result)))),
        "what else to know": escaped(result.reason, limit=4_000),
    }
    kept = {name: value for name, value in rows.items() if value}
    return stacked(facts(f"{result.id}. {result.statement}", kept))


def _statement(result: ClaimResult) -> str:
    if not result.reason:
        return result.statement
    reason = folded("what else to know", escaped(result.reason, limit=4_000))
    return Markup(f"{escaped(result.statement)} {small(reason)}")


def _measured(result: ClaimResult) -> Markup:
    text = measured_text(result.measured, result.ci)
    return Markup(f"{escaped(text)} {small(result.unit)}")


def _null(result: ClaimResult) -> Markup:
    return Markup(f"{escaped(number(result.null))} {small(result.null_name)}")


def _rows(result: ClaimResult) -> str:
    return f"{result.n:,} rows" if result.n else ""
