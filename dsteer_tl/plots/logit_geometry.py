"""Figure 1a: h, the unembedding vectors and v = e_w − e_l, before and after preference tuning."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.labels import count_label, number, signed, token_label
from dsteer_tl.plots.panels import (
    SITE_TITLE,
    add_line,
    add_note,
    add_outline,
    finish,
    padded_range,
    panel_grid,
    panel_width,
    plain_length,
    site_axis,
)
from dsteer_tl.plots.space import along, arrow, place_labels, view_across
from dsteer_tl.plots.tables import (
    along_sites,
    check_table,
    floats,
    ordered_sites,
    select_rows,
)
from dsteer_tl.plots.theme import (
    BASE_COLOUR,
    DASH,
    DASH_DOT,
    DOT,
    GREEN,
    GREY,
    INK,
    POLICY_COLOUR,
    PURPLE,
    SeriesStyle,
    series_style,
)

GEOMETRY_COLUMNS = ("name", "x", "y", "z", "chosen_token", "rejected_token")
PROJECTION_COLUMNS = ("pair", "vector", "base", "policy")
LOGIT_LENS_COLUMNS = (
    "site",
    "model",
    "vector",
    "projection",
    "ci_low",
    "ci_high",
    "share_rising",
    "n",
)

_VECTORS = ("h_base", "h_policy", "e_chosen", "e_rejected", "v")
# Pixels of the 3-D panel, from the margins and column widths below.
_SCENE = (249.0, 212.0)
_PROJECTIONS = ("projection_base", "projection_policy")


def _drawing_scale(states: float, embeddings: float) -> int:
    """The round factor (1, 2, 5, 10, …) that makes e and v about as long as the hidden states."""
    if embeddings <= 0 or states / embeddings < 2:
        return 1
    wanted = 0.8 * states / embeddings
    power = 10 ** int(np.floor(np.log10(wanted)))
    return int(max(step * power for step in (1, 2, 5) if step * power <= wanted))


def _draw_scene(figure: go.Figure, vectors: dict[str, Float[np.ndarray, " 3"]]) -> None:
    states = max(float(np.linalg.norm(vectors[name])) for name in ("h_base", "h_policy"))
    embeddings = max(float(np.linalg.norm(vectors[n])) for n in ("e_chosen", "e_rejected", "v"))
    scale = _drawing_scale(states, embeddings)
    drawn = {
        name: vector * (scale if name in ("e_chosen", "e_rejected", "v") else 1)
        for name, vector in vectors.items()
    }
    origin = np.zeros(3)
    points = np.stack([origin, *drawn.values()])
    view = view_across(points, drawn["v"], width=_SCENE[0], height=_SCENE[1], elevation=24)
    colours = {
        "h_base": BASE_COLOUR,
        "h_policy": POLICY_COLOUR,
        "e_chosen": GREEN,
        "e_rejected": PURPLE,
        "v": INK,
    }
    # Along v, as far beyond its two ends as the projections reach: where ⟨h, v⟩ is read.
    unit = vectors["v"] / max(float(np.linalg.norm(vectors["v"])), 1e-12)
    reach = [float(drawn[name] @ unit) for name in _PROJECTIONS]
    ends = [(min(0.0, *reach), 0.0), (float(drawn["v"] @ unit), max(reach))]
    segments = [
        (start * unit, end * unit, INK, "line along v", "dot", 3)
        for start, end in ends
        if end > start
    ]
    segments.append((drawn["e_rejected"], drawn["e_chosen"], GREY, "e_w − e_l", "dash", 2))
    for state, projection in zip(("h_base", "h_policy"), _PROJECTIONS, strict=True):
        segments.append((drawn[state], drawn[projection], colours[state], projection, "dot", 3))
    for segment in segments:
        figure.add_trace(_segment(*segment), 1, 1)
    for name in _VECTORS:
        for trace in arrow(origin, drawn[name], colours[name], name, view, width=5):
            figure.add_trace(trace, 1, 1)
    for state, projection in zip(("h_base", "h_policy"), _PROJECTIONS, strict=True):
        figure.add_trace(
            go.Scatter3d(
                **{key: [float(drawn[projection][i])] for i, key in enumerate("xyz")},
                mode="markers",
                marker={
                    "size": 4,
                    "color": colours[state],
                    "symbol": "circle" if state == "h_base" else "diamond",
                    "line": {"color": "#FFFFFF", "width": 1},
                },
                name=projection,
                showlegend=False,
            ),
            1,
            1,
        )
    texts = {
        "e_chosen": "e<sub>w</sub>",
        "e_rejected": "e<sub>l</sub>",
        "h_base": "h base",
        "h_policy": "h policy",
        "v": "v",
    }
    lines = [along(origin, drawn[name]) for name in _VECTORS]
    lines += [along(segment[0], segment[1]) for segment in segments]
    annotations = place_labels(
        list(texts.values()),
        np.stack([drawn[name] for name in texts]),
        [colours[name] for name in texts],
        view,
        obstacles=np.concatenate(lines),
        widths=[6.0 * plain_length(text) + 4 for text in texts.values()],
    )
    figure.update_layout(scene={**view.scene(), "annotations": annotations})
    before, after = (float(vectors[name] @ vectors["v"]) for name in _PROJECTIONS)
    text = f"⟨h, v⟩  {number(before)} → {number(after)}"
    if scale > 1:
        text += f",  e and v drawn ×{scale}"
    add_note(figure, text, x=0.25, y=-0.02, xanchor="center", yanchor="top", font_color=INK)


def _segment(
    start: Float[np.ndarray, " 3"],
    end: Float[np.ndarray, " 3"],
    colour: str,
    name: str,
    dash: str,
    width: float,
) -> go.Scatter3d:
    return go.Scatter3d(
        **{key: [float(start[i]), float(end[i])] for i, key in enumerate("xyz")},
        mode="lines",
        line={"color": colour, "dash": dash, "width": width},
        name=name,
        showlegend=False,
        hoverinfo="name",
    )


def _draw_distribution(figure: go.Figure, projections: pd.DataFrame) -> None:
    values = projections[["base", "policy"]].to_numpy(np.float64)
    low, high = padded_range(values.ravel().tolist(), pad=0.02)
    edges = np.linspace(low, high, 29)
    random = projections[projections["vector"] == "random"]
    grey = series_style("random")
    for column, dash in (("base", DOT), ("policy", DASH)):
        if not random.empty:
            style = SeriesStyle(f"random v, {column}", grey.colour, dash)
            add_outline(
                figure,
                random[column].to_numpy(np.float64),
                edges,
                style,
                opacity=0.12,
                row=1,
                col=2,
            )
    real = select_rows(projections, "projections", vector="preference")
    for column in ("base", "policy"):
        data = real[column].to_numpy(np.float64)
        add_outline(figure, data, edges, series_style(column), opacity=0.35, row=1, col=2)
    lines = []
    for label, rows in (("v", real), ("random v", random)):
        if rows.empty:
            continue
        rise = rows["policy"].to_numpy(np.float64) - rows["base"].to_numpy(np.float64)
        lines.append(
            f"{label}: mean Δ {signed(float(rise.mean()))}, "
            f"rises in {100 * float((rise > 0).mean()):.0f} %"
        )
    figure.update_xaxes(title_text="⟨h, v⟩  (logits)", range=[low, high], row=1, col=2)
    figure.update_yaxes(title_text="share of pairs", rangemode="tozero", row=1, col=2)
    figure.layout.annotations[1].text = "<br>".join(
        [f"held-out pairs, {count_label([len(real)])}", *lines]
    )


def logit_geometry(geometry: pd.DataFrame, projections: pd.DataFrame) -> go.Figure:
    """Figure 1a: one pair's vectors in 3-D beside the distribution of ⟨h, v⟩ over all pairs.

    z_w − z_l = ⟨h, e_w − e_l⟩ at the divergence position, so preference tuning must raise ⟨h, v⟩
    (D-STEER, Fig. 1a; claims 1 and 4). The random vector is the control.

    Args:
        geometry: Table `geometry`: one example pair in an orthonormal basis whose first two axes
            span e_w and e_l. Where hidden states are much longer than unembedding vectors, e and v
            are drawn longer by a round factor that the figure states.
        projections: Table `projections`: ⟨h, vᵢ⟩ in logits, for held-out pairs.

    Raises:
        ShapeError: A table lacks columns, rows, or one of the named vectors.
    """
    check_table(geometry, "geometry", GEOMETRY_COLUMNS)
    check_table(projections, "projections", PROJECTION_COLUMNS)
    found = {str(name) for name in geometry["name"]}
    missing = [name for name in (*_VECTORS, *_PROJECTIONS) if name not in found]
    if missing:
        raise ShapeError(
            f"table 'geometry' has names {', '.join(sorted(found))}; missing {', '.join(missing)}: "
            "run the analysis that writes this table again"
        )
    vectors = {
        str(row["name"]): np.array([row["x"], row["y"], row["z"]], dtype=np.float64)
        for row in geometry.to_dict("records")
    }
    if vectors["h_base"][2] < 0:
        # The third axis has no sign of its own; hidden states are drawn above the plane of e.
        vectors = {name: vector * [1.0, 1.0, -1.0] for name, vector in vectors.items()}
    first = geometry.iloc[0]
    tokens = (token_label(str(first["chosen_token"])), token_label(str(first["rejected_token"])))
    figure = panel_grid(
        1,
        2,
        titles=["one pair", "held-out pairs"],
        height=338,
        left=4,
        top=80,
        bottom=46,
        gap_x=58,
        column_widths=[249, 205],
        specs=[[{"type": "scene"}, {"type": "xy"}]],
    )
    figure.layout.annotations[0].text = f"one pair: “{tokens[0]}” over “{tokens[1]}”"
    _draw_scene(figure, vectors)
    _draw_distribution(figure, projections)
    return finish(figure)


def logit_lens_by_layer(logit_lens: pd.DataFrame) -> go.Figure:
    """Projection on v per layer, before and after, beside the share of pairs where it rises.

    Args:
        logit_lens: Table `logit_lens`; projections in logits with 95 % intervals, for the pair's
            own v = e_w − e_l and for a random vector of equal norm.

    Raises:
        ShapeError: The table lacks columns, rows, or has an unknown site.
    """
    check_table(logit_lens, "logit_lens", LOGIT_LENS_COLUMNS)
    sites = ordered_sites(logit_lens, "logit_lens")
    counts = [int(value) for value in logit_lens["n"]]
    figure = panel_grid(
        1,
        2,
        titles=["mean projection", f"pairs where it rises, {count_label(counts)}"],
        top=58,
        gap_x=58,
    )
    for vector in ("random", "preference"):
        for model in ("base", "policy"):
            rows = logit_lens[(logit_lens["vector"] == vector) & (logit_lens["model"] == model)]
            rows = along_sites(rows, sites)
            if rows.empty:
                continue
            style = series_style(model)
            if vector == "random":
                colour = series_style("random").colour
                dash = DOT if model == "base" else DASH
                style = SeriesStyle(f"random v, {model}", colour, dash, "x")
            add_line(
                figure,
                floats(rows, "place"),
                floats(rows, "projection"),
                style,
                low=floats(rows, "ci_low"),
                high=floats(rows, "ci_high"),
                row=1,
                col=1,
            )
    for vector, style in (
        ("random", SeriesStyle("share, random v", GREY, DASH_DOT, "x")),
        ("preference", SeriesStyle("share, v", INK, symbol="diamond")),
    ):
        rows = logit_lens[logit_lens["vector"] == vector].drop_duplicates("site")
        rows = along_sites(rows, sites)
        if rows.empty:
            continue
        add_line(
            figure,
            floats(rows, "place"),
            floats(rows, "share_rising"),
            style,
            row=1,
            col=2,
        )
    width = panel_width(2, gap_x=58)
    figure.update_xaxes(**site_axis(sites, width, SITE_TITLE.replace("  ", " ")))
    figure.update_yaxes(title_text="⟨h, v⟩  (logits)", row=1, col=1)
    figure.update_yaxes(title_text="share of pairs", range=[-0.03, 1.03], row=1, col=2)
    figure.add_hline(0.5, line={"color": INK, "width": 1, "dash": "dot"}, row=1, col=2)
    return finish(figure)
