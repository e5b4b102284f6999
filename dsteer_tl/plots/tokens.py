"""What a vector says: the tokens that it promotes and suppresses."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.labels import token_label
from dsteer_tl.plots.panels import finish, panel_grid
from dsteer_tl.plots.tables import check_table, floats, ordered_names
from dsteer_tl.plots.theme import LABEL_SIZE, series_style

TOKEN_COLUMNS = ("vector", "effect", "rank", "token_id", "token", "value")

_EFFECTS = ("promoted", "suppressed")


def tokens(tokens: pd.DataFrame, top: int = 10) -> go.Figure:
    """Tokens with the largest and smallest ⟨W_U, vector⟩, of v* and of a random vector.

    Args:
        tokens: Table `tokens`; `value` is the change of the token's logit at λ = 1.
        top: How many tokens per effect.

    Raises:
        ShapeError: The table lacks columns or rows.
    """
    check_table(tokens, "tokens", TOKEN_COLUMNS)
    rows = tokens[tokens["rank"] <= top]
    vectors = ordered_names(rows, "vector", ("v_star", "random"))
    effects = ordered_names(rows, "effect", _EFFECTS)
    most = int(rows["rank"].max())
    labels = {"v_star": "v*", "random": "a random vector"}
    figure = panel_grid(
        len(effects),
        len(vectors),
        titles=[
            f"{effect} by {labels.get(vector, series_style(vector).label)}"
            for effect in effects
            for vector in vectors
        ],
        height=74 + len(effects) * (most * 14 + 40),
        left=104,
        right=12,
        top=28,
        gap_x=110,
        gap_y=48,
        share_x=False,
    )
    limit = 1.05 * max([abs(value) for value in floats(rows, "value")] + [1e-12])
    for line, effect in enumerate(effects, start=1):
        for column, vector in enumerate(vectors, start=1):
            here = rows[(rows["vector"] == vector) & (rows["effect"] == effect)]
            here = here.sort_values("rank")
            places = [int(rank) for rank in here["rank"]]
            style = series_style(vector)
            figure.add_trace(
                go.Bar(
                    x=floats(here, "value"),
                    y=places,
                    orientation="h",
                    marker={"color": style.colour},
                    customdata=[int(token) for token in here["token_id"]],
                    hovertemplate="token %{customdata}: %{x:.3f}<extra></extra>",
                    name=style.label,
                    showlegend=False,
                ),
                row=line,
                col=column,
            )
            figure.update_yaxes(
                tickvals=places,
                ticktext=[token_label(str(token), 14) for token in here["token"]],
                tickfont={"size": LABEL_SIZE - 0.5},
                range=[most + 0.6, 0.4],
                showgrid=False,
                ticks="",
                row=line,
                col=column,
            )
            span = [0, limit] if effect == "promoted" else [-limit, 0]
            figure.update_xaxes(range=span, nticks=5, row=line, col=column)
    figure.update_xaxes(title_text="change of the logit at λ = 1", row=len(effects))
    return finish(figure)
