"""Which coefficients of the interventions are compared, and up to which perplexity."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: Perplexities beyond this multiple of the anchors' are broken models, and left to the table.
_FARTHEST = 2.0


def compared_row(table: pd.DataFrame, vector: str) -> pd.DataFrame:
    """The row of a vector that is compared: the matched one, or the nearest to the policy.

    Where no coefficient gives the policy's perplexity, rows with an F1 come first: on those windows
    were continued, as their coefficient was the one that was aimed at.
    """
    rows = table[table["vector"] == vector]
    policy = table.loc[table["vector"] == "policy", "perplexity"]
    aim = float(policy.iloc[0]) if len(policy) else float(rows["perplexity"].min())
    keys = pd.DataFrame(
        {
            "unmatched": ~rows["matched"].astype(bool),
            "unfinished": ~np.isfinite(rows["f1"]),
            "distance": np.abs(np.log(rows["perplexity"] / aim)),
            "coefficient": rows["coefficient"],
        }
    )
    return rows.loc[keys.sort_values(list(keys.columns), kind="stable").index[:1]]


def farthest(table: pd.DataFrame) -> float:
    """The largest perplexity that is drawn."""
    kept = table[(table["role"] == "anchor") | table["matched"].astype(bool)]
    return _FARTHEST * float((kept if len(kept) else table)["perplexity"].max())
