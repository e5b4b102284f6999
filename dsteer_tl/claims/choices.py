"""What an analytic choice is: the tables of a run by another choice than the ledger's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsteer_tl.claims.verdicts import Tables

#: Tables of other captures by dimension and choice, as `other_capture_tables` gives them.
OtherTables = Mapping[tuple[str, str], Tables]

#: Dimensions in the order in which they are shown.
DIMENSIONS = (
    "site",
    "centring",
    "position",
    "precision",
    "prompts",
    "suite",
    "matching",
    "metrics",
    "place",
    "texts",
    "scale",
    "effect",
)
DEFAULT, EVERY = "default", "all"
#: A second precision and other prompts at once.
PRECISION_AND_PROMPTS = "precision · prompts"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The tables of a run by one choice, or by several where the dimension is ``all``.

    Attributes:
        dimension: What is chosen, of `DIMENSIONS`, or ``default`` or ``all``.
        choice: What was chosen.
        tables: Tables in which the choice stands where the default stood.
        default: Whether this is what the ledger does.
        rows: Rows of the ledger that the choice can bear on.
    """

    dimension: str
    choice: str
    tables: Tables
    default: bool = False
    rows: frozenset[int]
