"""Verdicts and the one rule that gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import pandas as pd


class Verdict(StrEnum):
    """What a measurement says about a published claim."""

    REPLICATED = "REPLICATED"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"
    TRIVIAL = "TRIVIAL"
    UNTESTABLE = "UNTESTABLE"
    NOT_RUN = "NOT RUN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One claim as measured.

    Attributes:
        measured: Value of the statistic.
        ci: 95 % interval over prompts, or None where the statistic has none.
        null: Value of the same statistic where the claim does not hold.
        null_name: Which control gave it.
        target_met: Whether the measured value meets the published target.
        null_met: Whether the control meets the target too.
        right_sign: Whether the effect points the published way and exceeds a random control. A
            control that equals the effect by algebra, as a constant logit bias at h, is the null
            for the target, and no measure of the sign.
        unit: Unit of the three values, for people.
        reason: One sentence with what else a reader must know.
        site, position_kind, n: Where and on how many rows.
        untestable: Whether the claim has nothing to be about here, as the length of refusals where
            no model refuses; ``reason`` says why.
    """

    measured: float
    null: float
    null_name: str
    target_met: bool
    null_met: bool
    right_sign: bool
    ci: tuple[float, float] | None = None
    unit: str = ""
    reason: str = ""
    site: str = ""
    position_kind: str = ""
    n: int = 0
    untestable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimResult:
    """One row of the ledger: published · measured · null · verdict."""

    id: int
    statement: str
    source: str
    published: str
    target: str
    verdict: Verdict
    measured: float | None = None
    ci: tuple[float, float] | None = None
    null: float | None = None
    null_name: str = ""
    unit: str = ""
    reason: str = ""
    site: str = ""
    position_kind: str = ""
    n: int = 0
    figure: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain content for ``claims.json``."""
        content = asdict(self)
        content["verdict"] = self.verdict.value
        content["ci"] = None if self.ci is None else list(self.ci)
        return content

    def _repr_html_(self) -> str:
        from dsteer_tl.claims.results import claim_html  # it formats numbers as the ledger does

        return claim_html(self)


def decide(measurement: Measurement) -> Verdict:
    """The rule that every row shares.

    ``NOT RUN`` where the value is undefined, ``UNTESTABLE`` where the claim has nothing to be
    about, ``TRIVIAL`` where the control meets the target as well, ``REPLICATED`` where only the
    model does, ``PARTIAL`` where the effect has the published sign and exceeds a random control
    but misses the target, else ``FAILED``.
    """
    if measurement.measured != measurement.measured:
        return Verdict.NOT_RUN
    if measurement.untestable:
        return Verdict.UNTESTABLE
    if measurement.target_met:
        return Verdict.TRIVIAL if measurement.null_met else Verdict.REPLICATED
    return Verdict.PARTIAL if measurement.right_sign else Verdict.FAILED


Tables = Mapping[str, pd.DataFrame]
