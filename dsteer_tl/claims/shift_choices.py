"""Choices on captured shifts: the site, the mean taken away, the position kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import pandas as pd

from dsteer_tl.claims.choices import View
from dsteer_tl.claims.selection import at, main_kind
from dsteer_tl.claims.verdicts import Tables
from dsteer_tl.sites import FINAL, depth_order, resid_post

Transform = Callable[[Tables], dict[str, pd.DataFrame]]

LAST_RESID_POST = "last resid_post"
#: Rows on spectra, which can be taken without the mean.
CENTRED = frozenset({7, 8, 18})
_AT_H = frozenset({6, 7, 8, 18})
_SHIFT_TABLES = ("shifts", "cosines", "nulls", "mass")
#: Table of each row that is measured at a position kind.
_KINDS: dict[int, str] = {
    6: "cosines",
    7: "shifts",
    8: "shifts",
    9: "entropy",
    10: "patching",
    13: "kl_recovery",
    18: "mass",
    26: "toxicity_offsets",
    27: "toxicity_decomposition",
}


def _replaced(tables: Tables, names: Collection[str], change: Transform) -> dict[str, pd.DataFrame]:
    """The tables with some of them changed."""
    there = {name: tables[name] for name in names if name in tables and len(tables[name])}
    return {**tables, **change(there)}


def _last_resid_post(table: pd.DataFrame) -> str:
    """The deepest ``resid_post`` of a table, or nothing."""
    return str(max((s for s in table["site"] if s != FINAL), key=depth_order, default=""))


def at_last_resid_post(tables: Tables) -> dict[str, pd.DataFrame]:
    """The last ``resid_post``, before the norm, where h stood: rows 6, 7, 8 and 18."""

    def change(found: Tables) -> dict[str, pd.DataFrame]:
        return {
            name: at(table, site=_last_resid_post(table)).assign(site=FINAL)
            for name, table in found.items()
        }

    return _replaced(tables, _SHIFT_TABLES, change)


def at_h(tables: Tables) -> dict[str, pd.DataFrame]:
    """``h``, after the norm, where ``resid_post`` stood: rows 9 and 13."""
    entropy = tables.get("entropy", pd.DataFrame())
    found = _replaced(
        tables, ("kl_recovery",), lambda t: {n: at(table, site=FINAL) for n, table in t.items()}
    )
    if len(entropy) and (last := _last_resid_post(entropy)):
        found["entropy"] = at(entropy, site=FINAL).assign(site=resid_post(depth_order(last) + 1))
    return found


def centred(tables: Tables) -> dict[str, pd.DataFrame]:
    """Spectra with the mean taken away where those with it stood: rows 7, 8 and 18.

    What a Gaussian gives of |cos(u1, v*)| without its mean was not drawn, so that row 8 has no null
    there. Cosines have no such choice: without the mean, pairs of rows have a mean cosine of about
    −1/(n − 1) whatever the shifts do.
    """
    found = dict(tables)
    if len(shifts := tables.get("shifts", pd.DataFrame())):
        found["shifts"] = shifts.assign(
            sigma_ratio=shifts["sigma_ratio_centred"], u1_v_cos=shifts["u1_v_cos_centred"]
        )
    if len(nulls := tables.get("nulls", pd.DataFrame())):
        other = nulls[nulls["statistic"] != "sigma_ratio"]
        other = other.assign(
            **{
                column: other[column].where(other["statistic"] != "u1_v_cos")
                for column in ("value", "ci_low", "ci_high")
            }
        )
        ratio = at(nulls, statistic="sigma_ratio_centred").assign(statistic="sigma_ratio")
        found["nulls"] = pd.concat([ratio, other], ignore_index=True)
    if len(mass := tables.get("mass", pd.DataFrame())):
        found["mass"] = mass[mass["centred"].astype(bool)].assign(centred=False)
    return found


def at_kind(tables: Tables, kind: str) -> dict[str, pd.DataFrame]:
    """One position kind alone, in every table that knows position kinds of captured residuals."""
    names = {*_SHIFT_TABLES, *_KINDS.values()}
    return _replaced(
        tables,
        names,
        lambda found: {name: at(table, position_kind=kind) for name, table in found.items()},
    )


def site_views(tables: Tables) -> Iterator[View]:
    """The other side of the final norm, where the run has captured it."""
    rows = frozenset(row for row in _AT_H if len(tables.get(_KINDS[row], ())))
    if rows and _last_resid_post(tables[_KINDS[min(rows)]]):
        yield View(
            dimension="site", choice=LAST_RESID_POST, tables=at_last_resid_post(tables), rows=rows
        )
    there = frozenset(
        row
        for row in (9, 13)
        if len(table := tables.get(_KINDS[row], pd.DataFrame())) and {FINAL} < set(table["site"])
    )
    if there:
        yield View(dimension="site", choice=FINAL, tables=at_h(tables), rows=there)


def centring_views(tables: Tables) -> Iterator[View]:
    """Spectra without the mean."""
    rows = frozenset(row for row in CENTRED if len(tables.get(_KINDS[row], ())))
    if rows:
        yield View(dimension="centring", choice="centred", tables=centred(tables), rows=rows)


def _default_kind(row: int, table: pd.DataFrame) -> str:
    kinds = set(table["position_kind"])
    return "response" if row == 27 and "response" in kinds else main_kind(table)


def position_views(tables: Tables) -> Iterator[View]:
    """Each position kind that a row is not measured at by default."""
    rows: dict[str, set[int]] = {}
    for row, name in _KINDS.items():
        table = tables.get(name, pd.DataFrame())
        if len(table):
            default = _default_kind(row, table)
            for kind in dict.fromkeys(str(kind) for kind in table["position_kind"]):
                if kind != default:
                    rows.setdefault(kind, set()).add(row)
    for kind, bearing in rows.items():
        yield View(
            dimension="position",
            choice=kind,
            tables=at_kind(tables, kind),
            rows=frozenset(bearing),
        )
