"""How many top layers hold the effect of training."""

from __future__ import annotations

from typing import Literal

import pandas as pd


def layers_holding(
    table: pd.DataFrame,
    share: float = 0.9,
    *,
    position_kind: str,
    effect: str = "kl",
    positions: str = "all",
    bound: Literal["recovered", "low"] = "recovered",
) -> int | None:
    """The smallest number k of top layers whose policy outputs recover ``share`` of an effect.

    Args:
        table: Table ``component_patching``.
        share: The share to reach.
        position_kind: Where the effect is measured.
        effect: ``kl`` or ``margin``.
        positions: Tokens at which the outputs are replaced.
        bound: ``recovered``, or ``low`` for the smallest k whose interval's lower end reaches the
            share.

    Returns:
        k, or None where no number of layers recovers the share or the table has no such rows.
    """
    chosen = (
        (table["group"] == "from")
        & (table["position_kind"] == position_kind)
        & (table["effect"] == effect)
        & (table["positions"] == positions)
    )
    rows = table[chosen]
    reached = rows.loc[rows[bound] >= share, "layer"]
    if reached.empty:
        return None
    # A group "from" of layer l holds all layers up to the last.
    return int(rows["layer"].max() - reached.max() + 1)
