"""Axes of the toxicity study's figures: depth, powers of ten, lines of a forest plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from dsteer_tl.errors import ShapeError

PLACES = ("resid_mid", "resid_post")
DEPTH_TITLE = "layer  (resid_mid, resid_post)"


def along_depth(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows in the order of the forward pass, with their place on the axis in a column `depth`.

    resid_mid of layer l stands at l, resid_post half a step after it.

    Args:
        rows: Rows with columns `place` and `layer`.
        name: Name of their table, for the message.

    Raises:
        ShapeError: A place is neither resid_mid nor resid_post.
    """
    unknown = sorted({str(place) for place in rows["place"]} - set(PLACES))
    if unknown:
        raise ShapeError(
            f"table '{name}' has place {', '.join(unknown)}; expected {' or '.join(PLACES)}: "
            "rename it in the analysis that writes this table"
        )
    half = 0.5 * (rows["place"] == "resid_post").to_numpy(np.float64)
    depth = rows["layer"].to_numpy(np.float64) + half
    return rows.assign(depth=depth).sort_values("depth", kind="stable")


def layer_ticks(layers: int, width: float) -> list[int]:
    """Layers that have a label in a panel of `width` pixels, evenly spaced from 0."""
    room = max(2, int(width / 19))
    steps = (1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 64)
    step = next((step for step in steps if layers / step <= room), 100)
    return list(range(0, layers, step))


def layer_axis(rows: pd.DataFrame, width: float, *, half: bool = True) -> dict[str, object]:
    """Options of an x axis over all layers of a table in a panel of `width` pixels.

    Args:
        rows: Rows with a column `layer`.
        width: Of the panel, in pixels.
        half: Whether half a step after the last layer is drawn into, too.
    """
    layers = max(int(rows["layer"].max()), 0) + 1
    ticks = layer_ticks(layers, width)
    pad = 0.03 * layers + 0.15
    return {
        "tickvals": ticks,
        "ticktext": [str(tick) for tick in ticks],
        "range": [-pad, layers - (0.5 if half else 1.0) + pad],
        "tickangle": 0,
    }


def finite(values: Sequence[float]) -> list[float]:
    """Values that are numbers."""
    return [value for value in values if math.isfinite(value)]


def power_label(value: float) -> str:
    """A tick of a log axis: plain near 1, else as a power of ten."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.4g}".replace("-", "−")
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    factor = round(value / 10.0**exponent)
    sign = "" if factor == 1 else f"{factor}·"
    return f"{sign}10<sup>{str(exponent).replace('-', '−')}</sup>"


def plain_power(value: float) -> str:
    """One digit and a power of ten in plain characters, for notes that take no tags."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    factor, _, exponent = f"{value:.0e}".partition("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if factor == "1" else f"{factor}·{power}"


def log_axis(
    values: Sequence[float], *, most: int = 6, pad: float = 0.06, include: Sequence[float] = ()
) -> dict[str, Any]:
    """Options of a logarithmic axis around all positive values, with at most about `most` ticks."""
    numbers = [value for value in finite([*values, *include]) if value > 0] or [1.0, 10.0]
    low, high = math.log10(min(numbers)), math.log10(max(numbers))
    span = max(high - low, 0.08)
    middle = (low + high) / 2
    low, high = middle - span * (0.5 + pad), middle + span * (0.5 + pad)
    ticks = _log_ticks(low, high, most)
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": ticks,
        "ticktext": [power_label(tick) for tick in ticks],
        "tickangle": 0,
    }


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round places between two exponents: the finest set that has at most `most` of them."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    sets: list[list[float]] = []
    if high - low < 0.8:
        # Within a factor of six even steps read better than 1, 2, 5.
        for step in [m * 10.0**d for d in range(decades[0] - 2, decades[-1]) for m in (1, 2, 5)]:
            first, last = math.ceil(10.0**low / step), math.floor(10.0**high / step)
            sets.append([step * place for place in range(first, last + 1)])
    for marks in ((1, 2, 5), (1, 3), (1,)):
        sets.append([m * 10.0**d for d in decades for m in marks])
    sets += [[10.0**d for d in decades if d % every == 0] for every in range(2, 40)]
    inside = [[tick for tick in ticks if low <= math.log10(tick) <= high] for ticks in sets]
    fitting = [ticks for ticks in inside if 2 <= len(ticks) <= most]
    return [float(f"{tick:.12g}") for tick in (fitting or inside[-1:])[0]]


def forest_axis(labels: Sequence[str], *, pad: float = 0.55) -> dict[str, Any]:
    """Options of a y axis with one line of the forest per label, from the top."""
    return {
        "tickvals": list(range(len(labels))),
        "ticktext": list(labels),
        "range": [len(labels) - 1 + pad, -pad],
        "showgrid": False,
        "ticks": "",
        "tickfont": {"size": 11},
    }


def spread(places: Sequence[int], most: int) -> list[int]:
    """At most `most` of them, evenly spaced, the first and the last always among them."""
    if len(places) <= most:
        return list(places)
    chosen = np.unique(np.linspace(0, len(places) - 1, most).round().astype(int))
    return [places[index] for index in chosen.tolist()]
