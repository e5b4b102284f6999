"""The claims ledger: published, measured, what a control gives, and the verdict."""

from dsteer_tl.claims.claim import Claim
from dsteer_tl.claims.ledger import LEDGER, judge
from dsteer_tl.claims.results import Ledger
from dsteer_tl.claims.text import ledger_markdown, ledger_text
from dsteer_tl.claims.verdicts import ClaimResult, Measurement, Verdict, decide

__all__ = [
    "LEDGER",
    "Claim",
    "ClaimResult",
    "Ledger",
    "Measurement",
    "Verdict",
    "decide",
    "judge",
    "ledger_markdown",
    "ledger_text",
]
