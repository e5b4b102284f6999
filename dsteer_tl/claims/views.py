"""Other analytic choices of the claims, as views of the stored tables (no model is needed).

A view is the same tables with rows filtered or relabelled, so that what was measured by another
choice stands where the functions that measure a claim look. The functions run unchanged.
"""

from __future__ import annotations

from dsteer_tl.claims.choices import DEFAULT, DIMENSIONS, OtherTables, View
from dsteer_tl.claims.combined_choices import combined_views
from dsteer_tl.claims.ledger import LEDGER
from dsteer_tl.claims.shift_choices import centring_views, position_views, site_views
from dsteer_tl.claims.study_choices import study_views
from dsteer_tl.claims.sweep_choices import sweep_views
from dsteer_tl.claims.verdicts import Tables


def stored_views(
    tables: Tables, others: OtherTables | None = None, *, precision: str = "float32"
) -> list[View]:
    """Every view of a run: the default, one choice at a time, then all combinations.

    Args:
        tables: Tables of the run by name.
        others: Tables of other captures by dimension and choice.
        precision: Of the run, as combinations name it.
    """
    others = others or {}
    every = frozenset(claim.id for claim in LEDGER)
    found = [View(dimension=DEFAULT, choice=DEFAULT, tables=tables, default=True, rows=every)]
    for views in (site_views, centring_views, position_views, sweep_views, study_views):
        found += views(tables)
    found += [
        View(
            dimension=dimension,
            choice=choice,
            tables={**tables, **other},
            rows=frozenset(claim.id for claim in LEDGER if set(claim.tables) <= set(other)),
        )
        for (dimension, choice), other in others.items()
        if dimension in DIMENSIONS
    ]
    found.sort(key=lambda view: -1 if view.default else DIMENSIONS.index(view.dimension))
    return found + list(combined_views(tables, others, precision))
