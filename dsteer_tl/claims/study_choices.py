"""Choices of the toxicity study: the place in a block, the texts, the effect, the scale of keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from dsteer_tl.claims.choices import View
from dsteer_tl.claims.selection import at
from dsteer_tl.claims.verdicts import Tables

#: Rows on the residual stream of the toxicity study: table, place judged, the other place.
_PLACES = {
    26: ("toxicity_offsets", "resid_mid", "resid_post"),
    27: ("toxicity_decomposition", "resid_mid", "resid_post"),
    29: ("toxicity_lens", "resid_post", "resid_mid"),
}


def study_views(tables: Tables) -> Iterator[View]:
    """The other place, texts of the other source, the direct effect, and smaller scales."""
    for row, (name, default, other) in _PLACES.items():
        table = tables.get(name, pd.DataFrame())
        if len(table) and len(moved := at(table, place=other)):
            changed = {**tables, name: moved.assign(place=default)}
            yield View(dimension="place", choice=other, tables=changed, rows=frozenset({row}))
    yield from _relabelled(
        tables, "toxicity_activations", "texts", {"on_policy": "off_policy"}, "texts", 25
    )
    yield from _relabelled(tables, "toxicity_patching", "effect", {"direct": "total"}, "effect", 30)
    yield from _scales(tables)


def _relabelled(
    tables: Tables, name: str, column: str, names: Mapping[str, str], dimension: str, row: int
) -> Iterator[View]:
    """Rows with another label in place of those with the default one."""
    table = tables.get(name, pd.DataFrame())
    for other, default in names.items() if len(table) else ():
        if len(moved := at(table, **{column: other})):
            changed = {**tables, name: moved.assign(**{column: default})}
            choice = other.replace("_", " ")
            yield View(dimension=dimension, choice=choice, tables=changed, rows=frozenset({row}))


def _scales(tables: Tables) -> Iterator[View]:
    """Row 28 at smaller scales of the keys."""
    table = tables.get("toxicity_unalign", pd.DataFrame())
    scales = sorted({float(scale) for scale in table["scale"]} - {1.0}) if len(table) else []
    for scale in scales[:-1]:
        kept = table[table["scale"].isin([1.0, scale])]
        yield View(
            dimension="scale",
            choice=f"keys ×{scale:g}",
            tables={**tables, "toxicity_unalign": kept},
            rows=frozenset({28}),
        )
