"""Checks and selections on the tidy tables that figures are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.labels import POSITION_KINDS


def check_table(table: pd.DataFrame, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Refuse a table that lacks columns or rows.

    Args:
        table: The tidy table.
        name: Its name in the run directory, for the message.
        columns: Columns that the figure reads.

    Returns:
        The same table.

    Raises:
        ShapeError: Columns are missing, or there is no row.
    """
    found = [str(column) for column in table.columns]
    missing = [column for column in columns if column not in found]
    if missing:
        raise ShapeError(
            f"table '{name}' has columns {', '.join(found) or '(none)'}; "
            f"expected {', '.join(columns)}; missing {', '.join(missing)}: "
            "run the analysis that writes this table again"
        )
    if table.empty:
        raise ShapeError(
            f"table '{name}' has 0 rows with columns {', '.join(found)}; expected at least one row "
            f"of {', '.join(columns)}: run the analysis that writes this table first"
        )
    return table


def select_rows(table: pd.DataFrame, name: str, **values: object) -> pd.DataFrame:
    """The rows whose columns have the given values, in table order.

    Raises:
        ShapeError: No row has them; the message lists the values that there are.
    """
    rows = table
    for column, value in values.items():
        kept = rows[rows[column] == value]
        if kept.empty:
            there = ", ".join(sorted({str(entry) for entry in rows[column]}))
            raise ShapeError(
                f"table '{name}' has no rows with {column} = {value!r}; found {column} in "
                f"{{{there}}}: choose one of these"
            )
        rows = kept
    return rows


def ordered_sites(table: pd.DataFrame, name: str) -> list[str]:
    """The sites of a table in the order of the forward pass: resid_post.0 … resid_post.<L-1>, h.

    Raises:
        ShapeError: A site has another name.
    """
    sites = {str(site) for site in table["site"]}
    keys: dict[str, int] = {}
    for site in sites:
        stem, _, layer = site.partition(".")
        if site == "h":
            keys[site] = 1_000_000
        elif stem == "resid_post" and layer.isdigit():
            keys[site] = int(layer)
        else:
            raise ShapeError(
                f"table '{name}' has site {site!r}; expected 'resid_post.<layer>' or 'h': "
                "rename it in the analysis that writes this table"
            )
    return sorted(sites, key=lambda site: keys[site])


def along_sites(rows: pd.DataFrame, sites: Sequence[str]) -> pd.DataFrame:
    """Rows sorted along `sites`, with their index on the site axis in a new column `place`."""
    place = {site: index for index, site in enumerate(sites)}
    kept = rows[rows["site"].isin(list(place))]
    return kept.assign(place=kept["site"].map(place)).sort_values("place", kind="stable")


def ordered_kinds(table: pd.DataFrame) -> list[str]:
    """The position kinds of a table: last_prompt, divergence, response, then any others."""
    there = list(dict.fromkeys(str(kind) for kind in table["position_kind"]))
    known = [kind for kind in POSITION_KINDS if kind in there]
    return known + [kind for kind in there if kind not in known]


def ordered_names(rows: pd.DataFrame, column: str, order: Sequence[str]) -> list[str]:
    """The names in a column: those of `order` first and in that order, then any others."""
    there = list(dict.fromkeys(str(entry) for entry in rows[column]))
    return [name for name in order if name in there] + [n for n in there if n not in order]


def floats(rows: pd.DataFrame, column: str) -> list[float]:
    """A column as plain floats; lists keep a figure's JSON readable (arrays become base64)."""
    return [float(value) for value in rows[column]]
