"""Every combination of the choices on shifts: site, position kind, centring, precision, prompts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import pandas as pd

from dsteer_tl.claims.choices import EVERY, PRECISION_AND_PROMPTS, OtherTables, View
from dsteer_tl.claims.ledger import LEDGER
from dsteer_tl.claims.shift_choices import (
    CENTRED,
    LAST_RESID_POST,
    Transform,
    at_h,
    at_kind,
    at_last_resid_post,
    centred,
)
from dsteer_tl.claims.verdicts import Tables
from dsteer_tl.sites import FINAL

#: Rows whose every combination of choices is taken.
CROSSED = frozenset({6, 7, 8, 13, 18})
_RUN_PROMPTS = "prompts of the run"


def combined_views(tables: Tables, others: OtherTables, run_precision: str) -> Iterator[View]:
    """The full cross of site, position kind, centring, precision and prompts."""
    for precision, prompts, captured in _captures(tables, others, run_precision):
        shifts = captured.get("shifts", pd.DataFrame())
        if not len(shifts):
            continue
        for site, kind, is_centred in (
            (site, str(kind), is_centred)
            for site in (FINAL, LAST_RESID_POST)
            for kind in dict.fromkeys(shifts["position_kind"])
            for is_centred in (False, True)
        ):
            steps: list[Transform] = [at_last_resid_post] if site != FINAL else [at_h]
            steps += [centred] if is_centred else []
            found = reduce(lambda t, step: step(t), steps, at_kind(captured, kind))
            centring = "centred" if is_centred else "uncentred"
            rows = CENTRED if is_centred else CROSSED
            yield View(
                dimension=EVERY,
                choice=" · ".join((site, kind, centring, precision, prompts)),
                tables=found,
                rows=frozenset(
                    claim.id
                    for claim in LEDGER
                    if claim.id in rows and all(len(found.get(name, ())) for name in claim.tables)
                ),
            )


def _captures(
    tables: Tables, others: OtherTables, run_precision: str
) -> Iterator[tuple[str, str, Tables]]:
    """Precision, prompts and the tables of each capture; what it lacks is not the run's."""
    yield run_precision, _RUN_PROMPTS, tables
    for (dimension, choice), found in others.items():
        if dimension == "precision":
            yield choice, _RUN_PROMPTS, found
        elif dimension == "prompts":
            yield run_precision, choice, found
        elif dimension == PRECISION_AND_PROMPTS:
            precision, _, prompts = choice.partition(" · ")
            yield precision, prompts, found
