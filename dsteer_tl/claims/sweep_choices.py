"""Choices on steered text: where is steered, how controls are matched, which suite and metrics."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from dsteer_tl.claims.choices import View
from dsteer_tl.claims.selection import at
from dsteer_tl.claims.sweep_selection import FIGURE_2
from dsteer_tl.claims.verdicts import Tables
from dsteer_tl.sites import FINAL

_SWEEP_ROWS = frozenset({11, 12, 14, 15, 17})


def sweep_views(tables: Tables) -> Iterator[View]:
    """Other sites, controls matched by KL, each suite alone, each family of metrics alone."""
    sweep, metrics = (tables.get(name, pd.DataFrame()) for name in ("sweep", "sweep_metrics"))
    if not len(sweep) or not len(metrics):
        return
    rows = _SWEEP_ROWS | {16}

    def view(dimension: str, choice: str, kept: pd.DataFrame, rows: frozenset[int]) -> View:
        changed = {**tables, "sweep": kept}
        return View(dimension=dimension, choice=choice, tables=changed, rows=rows)

    by_norm = at(sweep, matching="norm")
    for site in dict.fromkeys(str(site) for site in by_norm["site"]):
        if site != FINAL:
            moved = at(by_norm, site=site).assign(site=FINAL)
            yield view("site", f"steered at {site}", moved, rows)
    if len(by_kl := at(sweep, matching="kl", site=FINAL)):
        # v* is what others are matched to, and has no rows of its own there.
        others = by_norm[~by_norm["vector"].isin(list(by_kl["vector"]))]
        matched = pd.concat([by_kl.assign(matching="norm"), others], ignore_index=True)
        yield view("matching", "controls by KL", matched, rows)
    suites = list(dict.fromkeys(str(suite) for suite in metrics["suite"]))
    for suite in suites if len(suites) > 1 else ():
        yield View(
            dimension="suite",
            choice=suite,
            tables={
                **tables,
                "sweep": at(sweep, suite=suite),
                "sweep_metrics": at(metrics, suite=suite),
            },
            rows=_SWEEP_ROWS,
        )
    of_figure_2 = sweep["metric"].isin([name for names in FIGURE_2 for name in names])
    for family in dict.fromkeys(str(family) for family in sweep[of_figure_2]["family"]):
        yield view("metrics", f"{family} alone", at(sweep, family=family), frozenset({11}))
