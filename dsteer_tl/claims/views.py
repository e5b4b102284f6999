"""Other analytic choices of the claims, as views of the stored tables (no model is needed).

A view is the same tables with rows filtered or relabelled, so that what was measured by another
choice stands where the functions that measure a claim look. The functions run unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import pandas as pd

from dsteer_tl.claims.ledger import LEDGER
from dsteer_tl.claims.selection import at, main_kind
from dsteer_tl.claims.sweep_selection import FIGURE_2
from dsteer_tl.claims.verdicts import Tables
from dsteer_tl.sites import FINAL, depth_order, resid_post

#: Tables of other captures by dimension and choice, as `other_capture_tables` gives them.
OtherTables = Mapping[tuple[str, str], Tables]
Transform = Callable[[Tables], dict[str, pd.DataFrame]]

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
#: Rows whose every combination of choices is taken.
CROSSED = frozenset({6, 7, 8, 13, 18})
LAST_RESID_POST = "last resid_post"
_RUN_PROMPTS = "prompts of the run"

_SHIFT_TABLES = ("shifts", "cosines", "nulls", "mass")
_AT_H = frozenset({6, 7, 8, 18})
_CENTRED = frozenset({7, 8, 18})
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
_SWEEP_ROWS = frozenset({11, 12, 14, 15, 17})
#: Rows on the residual stream of the toxicity study: table, place judged, the other place.
_PLACES = {
    26: ("toxicity_offsets", "resid_mid", "resid_post"),
    27: ("toxicity_decomposition", "resid_mid", "resid_post"),
    29: ("toxicity_lens", "resid_post", "resid_mid"),
}


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
    for views in (_sites, _centrings, _positions, _sweeps, _studies):
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
    return found + list(_combinations(tables, others, precision))


# Choices on shifts.


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


def _sites(tables: Tables) -> Iterator[View]:
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


def _centrings(tables: Tables) -> Iterator[View]:
    rows = frozenset(row for row in _CENTRED if len(tables.get(_KINDS[row], ())))
    if rows:
        yield View(dimension="centring", choice="centred", tables=centred(tables), rows=rows)


def _default_kind(row: int, table: pd.DataFrame) -> str:
    kinds = set(table["position_kind"])
    return "response" if row == 27 and "response" in kinds else main_kind(table)


def _positions(tables: Tables) -> Iterator[View]:
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


# Choices on generated text.


def _sweeps(tables: Tables) -> Iterator[View]:
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


# Choices of the toxicity study.


def _studies(tables: Tables) -> Iterator[View]:
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


# Every combination.


def _combinations(tables: Tables, others: OtherTables, run_precision: str) -> Iterator[View]:
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
            rows = _CENTRED if is_centred else CROSSED
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
