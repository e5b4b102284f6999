"""Figure 1b: the gradient field of the DPO loss around h, with −v beside it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.labels import count_label, number, position_label, site_label
from dsteer_tl.plots.panels import add_note, panel_grid
from dsteer_tl.plots.space import LIGHTING, View, arrow, cone_mesh, view_across
from dsteer_tl.plots.tables import check_table, ordered_sites, select_rows
from dsteer_tl.plots.theme import BLUE, INK, LABEL_SIZE, VERMILLION

GRADIENT_FIELD_COLUMNS = ("panel", "site", "x", "y", "z", "u", "v", "w", "cos")
GRADIENT_COLUMNS = ("pair", "site", "position_kind", "cos", "cos_shuffled", "norm")

#: Colours of cos(gradient, −v) from −1 to 1.
COSINE_COLOURS = [[0.0, VERMILLION], [0.5, "#C4C7CE"], [1.0, BLUE]]
_CONE_LENGTH = 0.8
_CONE_SIDES = 12


def _summary(gradients: pd.DataFrame, site: str, panel: str) -> str:
    rows = gradients[(gradients["site"] == site) & (gradients["position_kind"] == panel)]
    if rows.empty:
        return "no gradients measured here"
    cosines = rows["cos"].to_numpy(np.float64)
    shuffled = rows["cos_shuffled"].to_numpy(np.float64)
    return (
        f"cos to −v: {number(float(cosines.mean()))} ± {number(float(cosines.std()))}, "
        f"{count_label([len(rows)])}<br>"
        f"−v of another pair: {number(float(shuffled.mean()))} ± "
        f"{number(float(shuffled.std()))}"
    )


def _add_cones(figure: go.Figure, rows: pd.DataFrame, spacing: float, column: int) -> None:
    """Cones along the gradient (the table holds the descent direction), as one mesh.

    `go.Cone` colours by length alone, and turns faces white that look away from the light; here
    each cone has the colour of its cosine. Half of a cone's length is fixed, that all be seen; the
    rest is relative to the panel's longest.
    """
    vectors = -rows[["u", "v", "w"]].to_numpy(np.float64)
    centres = rows[["x", "y", "z"]].to_numpy(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    moving = norms > 0
    longest = float(norms.max()) or 1.0
    vertices, faces, cosines = [], [], []
    count = 0
    for centre, vector, norm, cosine in zip(
        centres[moving], vectors[moving], norms[moving], rows["cos"][moving], strict=True
    ):
        length = _CONE_LENGTH * spacing * (0.5 + 0.5 * norm / longest)
        tip = centre + 0.5 * length * vector / norm
        points, triangles = cone_mesh(tip, vector, length, 0.24 * length, sides=_CONE_SIDES)
        vertices.append(points)
        faces.append(triangles + count)
        cosines.extend([float(cosine)] * len(points))
        count += len(points)
    if not vertices:
        return
    corners, triangles = np.concatenate(vertices), np.concatenate(faces)
    figure.add_trace(
        go.Mesh3d(
            **{key: corners[:, i].tolist() for i, key in enumerate("xyz")},
            **{key: triangles[:, i].tolist() for i, key in enumerate("ijk")},
            intensity=cosines,
            coloraxis="coloraxis",
            text=[f"cos to −v: {number(cosine, 3)}" for cosine in cosines],
            hoverinfo="text",
            lighting=LIGHTING,
            name="∇L",
        ),
        1,
        column,
    )


def _spacing(rows: pd.DataFrame) -> float:
    """Distance between neighbouring lattice points: the smallest step along any axis."""
    steps: list[float] = []
    for key in "xyz":
        values = np.unique(rows[key].to_numpy(np.float64).round(9))
        if len(values) > 1:
            steps.append(float(np.diff(values).max()))
    return min(steps) if steps else 1.0


def gradient_field(
    gradient_field: pd.DataFrame, gradients: pd.DataFrame, site: str | None = None
) -> go.Figure:
    """Figure 1b: gradients of the DPO loss on a lattice around h, at two positions.

    At the divergence position ∇_h L ∝ −v is an algebraic identity; at later positions it is not
    (claim 2). Cones point along the gradient and are coloured by its cosine with −v in the full
    space, of which the picture shows three dimensions.

    Args:
        gradient_field: Table `gradient_field`: the lattice in PCA coordinates around h; its rows
            with panel "axis" hold the −v arrow.
        gradients: Table `gradients`: exact gradients of every pair, for the means and spreads.
        site: Which site of the field to draw; the last one of the table by default.

    Raises:
        ShapeError: A table lacks columns or rows, the site is not in the field, or the field holds
            gradients in place of descent directions.
    """
    check_table(gradient_field, "gradient_field", GRADIENT_FIELD_COLUMNS)
    check_table(gradients, "gradients", GRADIENT_COLUMNS)
    where = site if site is not None else ordered_sites(gradient_field, "gradient_field")[-1]
    field = select_rows(gradient_field, "gradient_field", site=where)
    _check_direction(field)
    axis_rows = field[field["panel"] == "axis"]
    panels = [panel for panel in ("divergence", "later") if (field["panel"] == panel).any()]
    if not panels:
        select_rows(field, "gradient_field", panel="divergence")
    top, bottom, gap = 60, 52, 12
    height = 346
    figure = panel_grid(
        1,
        len(panels),
        titles=[
            f"<b>{position_label(panel)}</b><br>{_summary(gradients, where, panel)}"
            for panel in panels
        ],
        height=height,
        left=8,
        right=8,
        top=top,
        bottom=bottom,
        gap_x=gap,
        specs=[[{"type": "scene"} for _ in panels]],
    )
    width = (528 - 16 - gap * (len(panels) - 1)) / len(panels)
    for column, panel in enumerate(panels, start=1):
        rows = field[field["panel"] == panel]
        view = _draw_panel(figure, rows, axis_rows, column, width, height - top - bottom)
        name = "scene" if column == 1 else f"scene{column}"
        scene = view.scene(("PC 1", "PC 2", "PC 3"))
        if not axis_rows.empty:
            scene["annotations"] = [_arrow_label(figure, column)]
        figure.update_layout({name: scene})
    figure.update_layout(
        coloraxis={
            "colorscale": COSINE_COLOURS,
            "cmin": -1,
            "cmax": 1,
            "colorbar": {
                "orientation": "h",
                "x": 0.5,
                "xanchor": "center",
                "y": 0,
                "yanchor": "top",
                "ypad": 4,
                "thickness": 9,
                "len": 0.42,
                "tickvals": [-1, -0.5, 0, 0.5, 1],
                "ticktext": ["−1", "−0.5", "0", "0.5", "1"],
                "tickfont": {"size": 10},
                "outlinewidth": 0,
            },
        }
    )
    add_note(
        figure,
        "cos(gradient, −v)",
        x=0.5,
        y=0,
        xanchor="center",
        yanchor="top",
        yshift=-34,
    )
    add_note(figure, f"at {site_label(where)}", x=0, y=0, xanchor="left", yanchor="top", yshift=-6)
    add_note(figure, "cones: ∇<sub>h</sub> L", x=1, y=0, xanchor="right", yanchor="top", yshift=-6)
    return figure


def _check_direction(field: pd.DataFrame) -> None:
    """Refuse a table whose u, v, w are the gradient itself: its cones would be drawn backwards.

    Where the gradient is −v in the full space (|cos| = 1) it is so in every projection.
    """
    axis = field.loc[field["panel"] == "axis", ["u", "v", "w"]].to_numpy(np.float64)
    rows = field[(field["panel"] == "divergence") & (field["cos"].abs() > 0.9999)]
    if not len(axis) or rows.empty:
        return
    along = rows[["u", "v", "w"]].to_numpy(np.float64) @ axis[0]
    found = float((along * rows["cos"].to_numpy(np.float64)).sum())
    if found > 0:
        raise ShapeError(
            "table 'gradient_field' has u, v, w along the gradient (they agree with the −v of "
            "panel 'axis' where cos is 1); expected the descent direction, −gradient: negate "
            "u, v, w where the table is written"
        )


def _arrow_label(figure: go.Figure, column: int) -> dict[str, object]:
    """Text "−v" at the tip of the arrow just drawn, the first vertex of its head."""
    scene = "scene" if column == 1 else f"scene{column}"
    head = [trace for trace in figure.data if trace.type == "mesh3d" and trace.scene == scene][-1]
    return {
        "text": "−v",
        "x": head.x[0],
        "y": head.y[0],
        "z": head.z[0],
        "ax": 12,
        "ay": 0,
        "showarrow": True,
        "arrowcolor": "rgba(0,0,0,0.001)",
        "font": {"size": LABEL_SIZE, "color": INK},
    }


def _draw_panel(
    figure: go.Figure,
    rows: pd.DataFrame,
    axis_rows: pd.DataFrame,
    column: int,
    width: float,
    height: float,
) -> View:
    points = rows[["x", "y", "z"]].to_numpy(np.float64)
    spacing = _spacing(rows)
    seen = [points - 0.4 * spacing, points + 0.4 * spacing]
    direction = -rows[["u", "v", "w"]].to_numpy(np.float64).mean(axis=0)
    start = points.mean(axis=0)
    if not axis_rows.empty:
        start = axis_rows.iloc[0][["x", "y", "z"]].to_numpy(np.float64)
        direction = axis_rows.iloc[0][["u", "v", "w"]].to_numpy(np.float64)
        # The head comes out of the lattice, or the cones around it would hide it.
        length = 0.62 * float(np.linalg.norm(np.ptp(points, axis=0)))
        end = start + direction / max(float(np.linalg.norm(direction)), 1e-300) * length
        seen.append(end[None])
    view = view_across(
        np.concatenate(seen),
        direction,
        width=width,
        height=height,
        elevation=24,
        turn=24,
        fill=0.7,
    )
    _add_cones(figure, rows, spacing, column)
    if not axis_rows.empty:
        for trace in arrow(start, end, INK, "−v", view, width=6, head_pixels=16):
            figure.add_trace(trace, 1, column)
    return view
