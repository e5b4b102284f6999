"""Long tables of a stress test, one statistic a row, made into one row a condition."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from dsteer_tl.report.words import with_interval

#: Statistics that are shown, in this order, of those that a table has.
KEY_STATISTICS = {
    "cos_loo_mean": "cosine with v* of others",
    "sigma_ratio": "σ2/σ1",
    "recovered": "KL recovered by v*",
    "cos_to_reference": "cosine with the reference’s v*",
    "recovered_of_reference": "reference’s KL recovered",
    "readout_shift": "KL in the readout",
    "kl": "KL, nats",
    "margin": "Δ margin, nats",
    "accuracy": "pairs with a rise",
}
_MOST = 8
_NEEDED = frozenset({"condition", "statistic", "value"})
_KEYS = ("condition", "role", "data")
_ENDS = (("ci_low", "ci_high"), ("low", "high"))
#: Where a table has several places, this one is shown, beside rows that are about the output.
_PREFERRED = {"site": "h", "position_kind": "last_prompt"}
_OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Pivoted:
    """One row a condition.

    Attributes:
        table: Texts: the keys, then a column a statistic.
        keys: How many of the columns are keys.
        note: Which part of the table it is.
    """

    table: pd.DataFrame
    keys: int
    note: str


def pivoted(table: pd.DataFrame) -> Pivoted | None:
    """The table with one row a condition, or None where it is of another shape."""
    if not set(table.columns) >= _NEEDED:
        return None
    statistics = table["statistic"].astype(str)
    rows = table[~statistics.str.contains(":")]
    notes = []
    for column, preferred in _PREFERRED.items():
        if column not in rows:
            continue
        output = rows["site"] == _OUTPUT if "site" in rows else pd.Series(False, index=rows.index)
        there = list(dict.fromkeys(str(value) for value in rows.loc[~output, column]))
        if there:
            chosen = preferred if preferred in there else there[0]
            rows = rows[(rows[column] == chosen) | output]
            notes.append(f"{column.replace('_', ' ')} {chosen.replace('_', ' ')}")
    found = list(dict.fromkeys(str(value) for value in rows["statistic"]))
    shown = [name for name in KEY_STATISTICS if name in found] or found[:_MOST]
    keys = [key for key in _KEYS if key in rows and (key == "condition" or rows[key].nunique() > 1)]
    rows = rows[rows["statistic"].isin(shown)]
    if rows.empty or rows.duplicated([*keys, "statistic"]).any():
        return None
    ends = next(((low, high) for low, high in _ENDS if {low, high} <= set(rows.columns)), None)
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for record in rows.to_dict("records"):
        place = tuple(str(record[key]) for key in keys)
        interval = (None, None) if ends is None else (record[ends[0]], record[ends[1]])
        line = lines.setdefault(place, dict(zip(keys, place, strict=True)))
        line[str(record["statistic"])] = with_interval(record["value"], *interval)
    text = pd.DataFrame(list(lines.values())).reindex(columns=[*keys, *shown]).fillna("–")
    notes.append(f"{len(shown)} of {statistics.nunique()} statistics")
    text = text.rename(columns={name: KEY_STATISTICS.get(name, name) for name in shown})
    return Pivoted(text, len(keys), ", ".join(notes))
