"""The n of a caption, taken from the tables that the figure shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from dsteer_tl.claims.choices import EVERY
from dsteer_tl.claims.verdicts import Verdict
from dsteer_tl.plots.labels import count_label
from dsteer_tl.plots.tables import ordered_kinds

Tables = Mapping[str, pd.DataFrame]
Count = Callable[[Tables], str]


def column(table: str, unit: str, name: str = "n") -> Count:
    """The count that a column holds: "n = 128 prompts", or a range where rows differ.

    Args:
        table: Its name.
        unit: What is counted, in the plural.
        name: The column.
    """

    def count(tables: Tables) -> str:
        rows = tables.get(table)
        if rows is None or name not in rows:
            return ""
        numbers = pd.to_numeric(rows[name], errors="coerce").dropna()
        found = [int(value) for value in numbers if value > 0]
        return f"{count_label(found)} {unit}" if found else ""

    return count


def by_position(table: str, kind: str = "", **where: str) -> Count:
    """The column n by what a position kind counts: "n = 64 prompts, 1,023 response tokens".

    Args:
        table: Its name.
        kind: The only position kind that the figure draws, the first there is if it is missing;
            every kind if not given.
        where: What other columns must hold.
    """

    def count(tables: Tables) -> str:
        rows = tables.get(table)
        if rows is None or not {"position_kind", "n", *where} <= set(rows.columns):
            return ""
        for name, value in where.items():
            rows = rows[rows[name] == value]
        kinds = ordered_kinds(rows)
        if kind and kinds:
            kinds = [kind if kind in kinds else kinds[0]]
        parts = []
        for unit, of_tokens in (("prompts", False), ("response tokens", True)):
            drawn = [name for name in kinds if (name == "response") is of_tokens]
            part = column(table, unit)({table: rows[rows["position_kind"].isin(drawn)]})
            parts += [part] if part else []
        return ", ".join([*parts[:1], *(part.removeprefix("n = ") for part in parts[1:])])

    return count


def sweep_points(*metrics: str, suite: str = "") -> Count:
    """Prompts behind one point of a sweep.

    Args:
        metrics: Those that the figure draws; all if none are named, but for the lengths of
            refusals, which count refusals.
        suite: The only suite that the figure draws, where the sweep has it.
    """

    def count(tables: Tables) -> str:
        rows = tables.get("sweep")
        if rows is None or "metric" not in rows:
            return ""
        kept = rows[rows["metric"].isin(metrics) if metrics else rows["metric"] != "refusal_length"]
        if suite and "suite" in kept and (kept["suite"] == suite).any():
            kept = kept[kept["suite"] == suite]
        return column("sweep", "prompts a point")({"sweep": kept})

    return count


def gradients_at(site: str) -> Count:
    """Pairs and gradients at one site, as a lattice is drawn at one."""

    def count(tables: Tables) -> str:
        rows = tables.get("gradients")
        if rows is None or not {"pair", "site", "position_kind"} <= set(rows.columns):
            return ""
        rows = rows[rows["site"] == site]
        kinds = rows["position_kind"]
        first, later = int((kinds == "divergence").sum()), int((kinds == "later").sum())
        if rows.empty:
            return ""
        return (
            f"n = {rows['pair'].nunique():,} pairs: {first:,} gradients at the divergence "
            f"position, {later:,} at later ones"
        )

    return count


def patched_margins(tables: Tables) -> str:
    """Pairs whose margin is measured with components patched at all tokens."""
    rows = tables.get("component_patching")
    if rows is None or not {"effect", "positions"} <= set(rows.columns):
        return ""
    drawn = rows[(rows["effect"] == "margin") & (rows["positions"] == "all")]
    return column("component_patching", "pairs")({"component_patching": drawn})


def separated_responses(tables: Tables) -> str:
    """Responses, and the pairs that they are of."""
    rows = tables.get("separation")
    if rows is None or "n" not in rows or rows.empty:
        return ""
    responses = [int(value) for value in rows["n"]]
    pairs = count_label([value // 2 for value in responses]).removeprefix("n = ")
    return f"{count_label(responses)} responses of {pairs} pairs"


def weights_and_shifts(tables: Tables) -> str:
    """Matrices of weights, and the rows of the matrix of shifts at a site."""
    rows = tables.get("weight_spectra")
    if rows is None or not {"tensor", "layer", "kind", "rows"} <= set(rows.columns):
        return ""
    # What lies outside the blocks has no place in the figure.
    rows = rows[rows["layer"] >= 0]
    of_shifts = rows["kind"] == "shift"
    parts = [f"n = {rows.loc[~of_shifts, 'tensor'].nunique():,} matrices of weights"]
    shifts = column("weight_spectra", "shifts a site", "rows")({"weight_spectra": rows[of_shifts]})
    return ", ".join(parts + ([shifts.removeprefix("n = ")] if shifts else []))


def choices_judged(tables: Tables) -> str:
    """Rows of the ledger that have a verdict, and single choices beside the default that have."""
    rows = tables.get("multiverse")
    if rows is None or not {"id", "dimension", "choice", "default", "verdict"} <= set(rows.columns):
        return ""
    rows = rows[(rows["verdict"] != Verdict.NOT_RUN.value) & (rows["dimension"] != EVERY)]
    if rows.empty:
        return ""
    default = rows["default"].astype(str).str.lower() == "true"
    others = rows[~default].drop_duplicates(["dimension", "choice"])
    return f"n = {rows['id'].nunique():,} rows of the ledger, {len(others):,} other choices"


def distinct(table: str, unit: str, *names: str) -> Count:
    """How many different values the columns have together: "n = 128 pairs"."""

    def count(tables: Tables) -> str:
        rows = tables.get(table)
        if rows is None or not set(names) <= set(rows.columns):
            return ""
        return f"n = {len(rows.drop_duplicates(list(names))):,} {unit}"

    return count


def rows_of(table: str, unit: str, only: str = "") -> Count:
    """How many rows a table has; with ``only``, those in which that column is true."""

    def count(tables: Tables) -> str:
        rows = tables.get(table)
        if rows is not None and only in rows:
            rows = rows[rows[only].astype(bool)]
        return f"n = {len(rows):,} {unit}" if rows is not None and len(rows) else ""

    return count


def any_of(table: str, unit: str = "prompts") -> Count:
    """The count that a table states, whatever it is called: its column n, else prompts, else pairs.

    For tables of which one row may rest on other prompts than the next.
    """

    def count(tables: Tables) -> str:
        for name, what in (("n", unit), ("prompts", "prompts"), ("pairs", "pairs")):
            text = column(table, what, name)(tables)
            if text:
                return text
        for name, what in (("prompt", "prompts"), ("pair", "pairs")):
            text = distinct(table, what, name)(tables)
            if text:
                return text
        return ""

    return count


def together(*counts: Count) -> Count:
    """Several counts, those that are known."""

    def count(tables: Tables) -> str:
        return "; ".join(text for one in counts if (text := one(tables)))

    return count


def named(name: str, count: Count) -> Count:
    """A count with what it belongs to before it: "patching: n = 64 prompts"."""

    def known(tables: Tables) -> str:
        text = count(tables)
        return f"{name}: {text}" if text else ""

    return known
