"""Looks of the models and vectors of the interventions."""

from __future__ import annotations

import pandas as pd

from dsteer_tl.plots.labels import escape_text
from dsteer_tl.plots.theme import (
    BAND_INK,
    DASH,
    DASH_DOT,
    DOT,
    GREEN,
    INK,
    LONG_DASH,
    NULL_COLOUR,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    SeriesStyle,
    series_style,
)

#: Models that are measured as they are, with no vector subtracted.
ANCHORS = {
    "base": series_style("base"),
    "policy": series_style("policy"),
    "random_weights": SeriesStyle("random weight change", NULL_COLOUR, DASH, "x"),
    "shuffled_pairs": SeriesStyle("shuffled pairs", INK, DASH, "triangle-up"),
}
_SINGULAR_LOOKS = ((ORANGE, "star"), (BAND_INK, "hexagram"), (SKY_BLUE, "hourglass"))
_VALUE_LOOKS = ((GREEN, "square"), (SKY_BLUE, "triangle-up"), (BAND_INK, "pentagon"))
_CONTROLS = {
    "logit_bias": SeriesStyle("constant logit bias", INK, LONG_DASH, "cross"),
    "random_value_vector": SeriesStyle("random value vector", NULL_COLOUR, DOT, "triangle-down"),
    "random": SeriesStyle("random vector", NULL_COLOUR, DASH, "x"),
}


def vector_styles(table: pd.DataFrame) -> dict[str, SeriesStyle]:
    """The look of each vector: probe, value vectors, singular vectors, then controls."""
    first = table[table["role"] != "anchor"].drop_duplicates("vector").sort_values("vector")
    controls = set(first.loc[first["role"] == "control", "vector"])
    styles = {"probe": SeriesStyle("probe", PURPLE, symbol="diamond")}
    others = [str(name) for name in first["vector"] if name not in controls]
    singular = [name for name in others if name.startswith("SVD")]
    values = [name for name in others if name not in singular and name not in styles]
    for names, looks in ((values, _VALUE_LOOKS), (singular, _SINGULAR_LOOKS)):
        for order, name in enumerate(names):
            colour, symbol = looks[order % len(looks)]
            styles[name] = SeriesStyle(escape_text(name), colour, symbol=symbol)
    known = [name for name in _CONTROLS if name in controls]
    for name in [*known, *sorted(controls - set(known))]:
        label = escape_text(str(name).replace("_", " "))
        styles[name] = _CONTROLS.get(name, SeriesStyle(label, NULL_COLOUR, DASH_DOT, "x"))
    return {name: style for name, style in styles.items() if name in set(first["vector"])}
