"""Figure 1c: hidden states of base, policy, steered base and un-steered policy as clouds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from dsteer_tl.plots.labels import count_label
from dsteer_tl.plots.panels import add_note
from dsteer_tl.plots.space import View, arrow, view_across
from dsteer_tl.plots.tables import check_table, ordered_names
from dsteer_tl.plots.theme import GREEN, INK, TEMPLATE_NAME, WIDTH, series_style

CLOUD_COLUMNS = ("state", "prompt", "pc1", "pc2", "pc3")

STATES = ("base", "policy", "interpolated", "inverted")
_SYMBOLS = {"base": "circle", "policy": "square", "interpolated": "diamond", "inverted": "diamond"}
_HEIGHT = 380
_TOP = 46
_BOTTOM = 24


def _ringed_mean(state: str, mean: Float[np.ndarray, " 3"], view: View) -> list[go.Scatter3d]:
    """A mean over a white disc; means of steered states are smaller and lie a hair in front.

    A steered cloud is meant to cover another one, and means at one depth would flicker.
    """
    style = series_style(state)
    steered = state not in ("base", "policy")
    hair = 0.004 * float((view.high - view.low).max())
    size = 5.0 if steered else 14.0 if state == "base" else 11.0
    discs = []
    symbol = _SYMBOLS.get(state, "circle")
    for order, (colour, pixels) in enumerate((("#FFFFFF", size + 3), (style.colour, size))):
        place = mean + view.toward * hair * (order + (2 if steered else 0))
        discs.append(
            go.Scatter3d(
                **{key: [float(place[i])] for i, key in enumerate("xyz")},
                mode="markers",
                marker={"size": pixels, "color": colour, "symbol": symbol, "opacity": 1},
                name=style.label,
                legendgroup=state,
                showlegend=order == 1,
                customdata=[mean.tolist()],
                hovertemplate=f"mean of {style.label}<extra></extra>",
            )
        )
    return discs


def _between(
    start: Float[np.ndarray, " 3"], end: Float[np.ndarray, " 3"], view: View
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """The segment without the parts that the markers at both ends cover."""
    first, last = view.pixels(np.stack([start, end]))
    length = float(np.linalg.norm(last - first))
    part = 8.0 / length if length > 32 else 0.0
    return start + part * (end - start), end - part * (end - start)


def clouds(clouds: pd.DataFrame) -> go.Figure:
    """Figure 1c: the clouds in the first three principal components of the base states.

    White-ringed markers are means; the arrows are the mean shift from base to policy (black) and
    from policy to inverted. All axes have the same unit, that of the hidden states.

    Args:
        clouds: Table `clouds`: one point per state and prompt, in a basis fitted on base only.

    Raises:
        ShapeError: The table lacks columns, rows, or has no state.
    """
    check_table(clouds, "clouds", CLOUD_COLUMNS)
    states = ordered_names(clouds, "state", STATES)
    points = clouds[["pc1", "pc2", "pc3"]].to_numpy(np.float64)
    means = {
        state: clouds.loc[clouds["state"] == state, ["pc1", "pc2", "pc3"]]
        .to_numpy(np.float64)
        .mean(axis=0)
        for state in states
    }
    shift = np.array([1.0, 0.0, 0.0])
    if "base" in means and "policy" in means:
        shift = means["policy"] - means["base"]
    height = _HEIGHT - _TOP - _BOTTOM
    view = view_across(points, shift, width=WIDTH - 8, height=height, elevation=20, fill=0.95)
    figure = go.Figure()
    for state in states:
        rows = clouds[clouds["state"] == state]
        style = series_style(state)
        figure.add_trace(
            go.Scatter3d(
                **{
                    key: rows[column].astype(float).tolist()
                    for key, column in zip("xyz", ("pc1", "pc2", "pc3"), strict=True)
                },
                mode="markers",
                marker={"size": 3, "color": style.colour, "opacity": 0.3, "line": {"width": 0}},
                name=style.label,
                legendgroup=state,
                showlegend=False,
            )
        )
    for start, end, colour, name, width in (
        ("base", "policy", INK, "mean shift", 9),
        ("policy", "inverted", GREEN, "mean shift back", 4),
    ):
        if start in means and end in means:
            figure.add_traces(
                arrow(
                    *_between(means[start], means[end], view),
                    colour,
                    name,
                    view,
                    width=width,
                    head_pixels=18 if width > 5 else 12,
                    showlegend=start == "base",
                )
            )
    for state in states:
        figure.add_traces(_ringed_mean(state, means[state], view))
    counts = [int((clouds["state"] == state).sum()) for state in states]
    figure.update_layout(
        template=TEMPLATE_NAME,
        width=WIDTH,
        height=_HEIGHT,
        margin={"l": 4, "r": 4, "t": _TOP, "b": _BOTTOM},
        scene=view.scene(("PC 1", "PC 2", "PC 3")),
    )
    add_note(
        figure,
        f"equal units on all axes; {count_label(counts)} prompts per state",
        x=0.5,
        y=0,
        xanchor="center",
        yanchor="top",
        yshift=-2,
    )
    return figure
