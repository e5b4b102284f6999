"""What the probe and the vectors next to it say: the tokens that each promotes."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import escape_text, number, token_label
from dsteer_tl.plots.panels import finish, panel_grid
from dsteer_tl.plots.sweep_curves import footnotes
from dsteer_tl.plots.tables import check_table, floats
from dsteer_tl.plots.theme import NULL_COLOUR, PURPLE, translucent

TOXICITY_TOKEN_COLUMNS = (
    "vector",
    "kind",
    "effect",
    "rank",
    "token",
    "value",
    "listed",
    "cosine",
)

_KINDS = ("probe", "value_vector", "svd", "random")
_NAMES = {"random": "random direction", "random_value_vector": "random value vector"}
#: Fill and legend of words on the list and of others.
_FILLS = {
    True: (translucent(PURPLE, 0.55), "on the scorer’s list of words"),
    False: (translucent(NULL_COLOUR, 0.25), "other tokens"),
}
_COLUMNS = 4
_LINE = 15


def _ordered(tokens: pd.DataFrame) -> list[str]:
    """Probe, value vectors from the closest on, singular vectors, random ones."""
    first = tokens.drop_duplicates("vector")
    place = {kind: order for order, kind in enumerate(_KINDS)}
    keys = {
        vector: (place.get(kind, len(_KINDS)), 0.0 if kind == "svd" else -cosine, vector)
        for vector, kind, cosine in zip(
            first["vector"].astype(str),
            first["kind"].astype(str),
            floats(first, "cosine"),
            strict=True,
        )
    }
    return sorted(keys, key=lambda vector: keys[vector])


def _title(rows: pd.DataFrame, vector: str) -> str:
    """Name, cosine with the probe, and how many of the tokens on either end are listed."""
    promoted, suppressed = (
        int(rows.loc[rows["effect"] == effect, "listed"].astype(bool).sum())
        for effect in ("promoted", "suppressed")
    )
    cosine = float(rows["cosine"].iloc[0])
    parts = [f"listed {promoted} : {suppressed}"]
    if math.isfinite(cosine) and vector != "probe":
        parts.insert(0, f"cos {number(cosine)}")
    return f"{_NAMES.get(vector, escape_text(vector))}<br>{', '.join(parts)}"


def toxicity_tokens(tokens: pd.DataFrame, top: int = 10, vectors: int = 12) -> go.Figure:
    """Tokens that the probe, value vectors, singular vectors and a random one promote (claim 21).

    A list per vector of unit length, in which words of the scorer's list are filled. As the sign of
    a singular vector is a choice, listed words are counted among what it suppresses, too.

    Args:
        tokens: Table `toxicity_tokens`.
        top: How many tokens per vector.
        vectors: How many vectors at most; value vectors beyond are left out first.

    Raises:
        ShapeError: The table lacks columns or rows.
    """
    check_table(tokens, "toxicity_tokens", TOXICITY_TOKEN_COLUMNS)
    table = tokens[tokens["rank"] <= top]
    names = _ordered(table)
    kinds = dict(zip(table["vector"].astype(str), table["kind"].astype(str), strict=True))
    while len(names) > vectors and any(kinds[name] == "value_vector" for name in names):
        names.remove([name for name in names if kinds[name] == "value_vector"][-1])
    across = min(_COLUMNS, len(names))
    down = math.ceil(len(names) / across)
    most = int(table["rank"].max())
    gap = 50
    figure = panel_grid(
        down,
        across,
        titles=[_title(table[table["vector"] == name], name) for name in names]
        + [""] * (down * across - len(names)),
        height=80 + down * most * _LINE + (down - 1) * gap,
        left=12,
        right=12,
        top=40,
        bottom=10,
        gap_x=12,
        gap_y=gap,
    )
    for colour, name in _FILLS.values():
        # No vector need have both kinds of tokens, and the legend has both in any case.
        figure.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="markers",
                marker={"symbol": "square", "size": 12, "color": colour},
                name=name,
                legendgroup=name,
            ),
            row=1,
            col=1,
        )
    promoted = floats(table[table["effect"] == "promoted"], "value")
    largest = max([*(abs(value) for value in promoted), 1e-12])
    for order in range(down * across):
        row, col = order // across + 1, order % across + 1
        figure.update_yaxes(visible=False, range=[most + 0.55, 0.45], row=row, col=col)
        figure.update_xaxes(visible=False, range=[0, 1.02], row=row, col=col)
        if order >= len(names):
            continue
        here = table[(table["vector"] == names[order]) & (table["effect"] == "promoted")]
        _bars(figure, here.sort_values("rank"), largest, row, col)
    finish(figure)
    footnotes(
        figure,
        [
            "Tokens that a vector promotes most; bars: change of the logit a unit of its length. "
            f"Listed: how many of the {most} tokens that it promotes : suppresses most."
        ],
        below=10,
    )
    return figure


def _bars(figure: go.Figure, rows: pd.DataFrame, largest: float, row: int, col: int) -> None:
    """One list: bars from the left, each with its token written over it."""
    for listed, (colour, name) in _FILLS.items():
        some = rows[rows["listed"].astype(bool) == listed]
        places = [int(rank) for rank in some["rank"]]
        labels = [token_label(str(token), 17) for token in some["token"]]
        figure.add_trace(
            go.Bar(
                x=[abs(value) / largest for value in floats(some, "value")],
                y=places,
                orientation="h",
                width=0.86,
                marker={"color": colour, "line": {"width": 0}},
                name=name,
                showlegend=False,
                hoverinfo="skip",
            ),
            row=row,
            col=col,
        )
        figure.add_trace(
            go.Scatter(
                x=[0.025] * len(places),
                y=places,
                mode="text",
                text=[f"<b>{label}</b>" if listed else label for label in labels],
                textposition="middle right",
                textfont={"size": 11},
                customdata=floats(some, "value"),
                hovertemplate="%{text}: %{customdata:.3f}<extra></extra>",
                name=name,
                showlegend=False,
            ),
            row=row,
            col=col,
        )
