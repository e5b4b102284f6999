"""Three-dimensional figures: equal axis units, orthographic cameras, arrows, labels.

In plotly's orthographic scenes a world unit is half the height of the scene, whatever the distance
of the eye, and data are scaled to the world by `aspectratio / range`. So a camera's picture can be
computed here, which lets a scene be fitted to its box and labels be kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from dsteer_tl.plots.theme import LABEL_SIZE

#: Flat light: by default faces seen at a low angle turn white, and vanish on a white page.
LIGHTING = {"ambient": 0.8, "diffuse": 0.25, "specular": 0.0, "fresnel": 0.0, "roughness": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """An orthographic camera fitted to a box of data.

    Attributes:
        low: Lower corner of the axis box, in data units.
        high: Upper corner.
        right: Unit vector to the right of the picture.
        up: Unit vector to its top.
        toward: Unit vector to the eye.
        zoom: World units per data unit.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
    """

    low: Float[np.ndarray, " 3"]
    high: Float[np.ndarray, " 3"]
    right: Float[np.ndarray, " 3"]
    up: Float[np.ndarray, " 3"]
    toward: Float[np.ndarray, " 3"]
    zoom: float
    width: float
    height: float

    def pixels(self, points: Float[np.ndarray, "point 3"]) -> Float[np.ndarray, "point 2"]:
        """Where points appear: pixels from the centre of the picture, right and up."""
        centred = np.atleast_2d(points) - (self.low + self.high) / 2
        plane = np.stack([self.right, self.up])
        return np.asarray(centred @ plane.T * self.zoom * self.height / 2)

    def scene(self, titles: Sequence[str] = ("", "", "")) -> dict[str, object]:
        """Layout of the scene: ranges, aspect ratio with equal units, camera."""
        ratio = (self.high - self.low) * self.zoom
        eye = self.toward * 2.0
        scene: dict[str, object] = {
            "aspectmode": "manual",
            "aspectratio": dict(zip("xyz", ratio.tolist(), strict=True)),
            "camera": {
                "projection": {"type": "orthographic"},
                "eye": dict(zip("xyz", eye.tolist(), strict=True)),
                "up": {"x": 0, "y": 0, "z": 1},
                "center": {"x": 0, "y": 0, "z": 0},
            },
        }
        # About four grid lines along the longest axis, the same distance on all three.
        step = float((self.high - self.low).max()) / 4
        for index, axis in enumerate("xyz"):
            scene[f"{axis}axis"] = {
                "range": [float(self.low[index]), float(self.high[index])],
                "title": {"text": titles[index]},
                "dtick": step,
                "tick0": float(self.low[index]),
            }
        return scene


def view_across(
    points: Float[np.ndarray, "point 3"],
    direction: Float[np.ndarray, " 3"],
    *,
    width: float,
    height: float,
    elevation: float = 22.0,
    turn: float = 18.0,
    fill: float = 0.86,
) -> View:
    """A camera that sees `direction` run from left to right, fitted to all points.

    Args:
        points: Everything that must be inside the picture.
        direction: The vector that the figure is about.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        elevation: Degrees above the plane of the first two axes.
        turn: Degrees turned away from straight across, so that depth shows.
        fill: Share of the picture that the axis box may take.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    span = high - low
    longest = float(span.max()) or 1.0
    # A box much flatter than long hides one axis: no side below a third of the longest.
    grown = np.maximum(span, longest / 3) * 1.08
    middle = (low + high) / 2
    low, high = middle - grown / 2, middle + grown / 2
    flat = np.array([direction[0], direction[1], 0.0])
    length = float(np.linalg.norm(flat))
    across = flat / length if length > 1e-9 * longest else np.array([1.0, 0.0, 0.0])
    angle = np.deg2rad(turn)
    cos, sin = np.cos(angle), np.sin(angle)
    right = np.array([cos * across[0] - sin * across[1], sin * across[0] + cos * across[1], 0.0])
    level = np.cross(right, np.array([0.0, 0.0, 1.0]))
    tilt = np.deg2rad(elevation)
    toward = np.cos(tilt) * level + np.sin(tilt) * np.array([0.0, 0.0, 1.0])
    up = np.cross(toward, right)
    corners = np.array(
        [[(low, high)[(k >> i) & 1][i] for i in range(3)] for k in range(8)], dtype=np.float64
    )
    picture = (corners - middle) @ np.stack([right, up]).T
    half = np.abs(picture).max(axis=0)
    zoom = fill * min(width / height / half[0], 1.0 / half[1])
    return View(
        low=low,
        high=high,
        right=right,
        up=up,
        toward=toward,
        zoom=float(zoom),
        width=width,
        height=height,
    )


def cone_mesh(
    tip: Float[np.ndarray, " 3"],
    axis: Float[np.ndarray, " 3"],
    length: float,
    radius: float,
    sides: int = 20,
) -> tuple[Float[np.ndarray, "vertex 3"], Int[np.ndarray, "face 3"]]:
    """Vertices and faces of a cone with its tip at `tip`, pointing along `axis`."""
    along = axis / np.linalg.norm(axis)
    helper = np.eye(3)[int(np.argmin(np.abs(along)))]
    first = np.cross(along, helper)
    first /= np.linalg.norm(first)
    second = np.cross(along, first)
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    foot = tip - length * along
    rim = foot + radius * (np.outer(np.cos(angles), first) + np.outer(np.sin(angles), second))
    vertices = np.concatenate([[tip], [foot], rim])
    here = np.arange(sides)
    there = (here + 1) % sides
    faces = np.concatenate(
        [
            np.stack([np.zeros(sides, int), here + 2, there + 2], axis=1),
            np.stack([np.ones(sides, int), there + 2, here + 2], axis=1),
        ]
    )
    return vertices, faces


def arrow(
    start: Float[np.ndarray, " 3"],
    end: Float[np.ndarray, " 3"],
    colour: str,
    name: str,
    view: View,
    *,
    width: float = 5,
    dash: str = "solid",
    head_pixels: float = 11,
    showlegend: bool = False,
) -> list[go.Scatter3d | go.Mesh3d]:
    """A shaft and a solid head of a fixed size on the page; nothing for a zero-length arrow."""
    start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    vector = end - start
    length = float(np.linalg.norm(vector))
    per_pixel = 2 / (view.zoom * view.height)
    if length <= per_pixel:
        return []
    head = min(head_pixels * per_pixel, 0.6 * length)
    vertices, faces = cone_mesh(end, vector, head, 0.36 * head)
    neck = end - vector / length * 0.85 * head
    shaft = go.Scatter3d(
        x=[float(start[0]), float(neck[0])],
        y=[float(start[1]), float(neck[1])],
        z=[float(start[2]), float(neck[2])],
        mode="lines",
        line={"color": colour, "width": width, "dash": dash},
        name=name,
        legendgroup=name,
        showlegend=showlegend,
        hoverinfo="name",
    )
    tip = go.Mesh3d(
        **{key: vertices[:, i].tolist() for i, key in enumerate("xyz")},
        **{key: faces[:, i].tolist() for i, key in enumerate("ijk")},
        color=colour,
        flatshading=False,
        lighting=LIGHTING,
        name=name,
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )
    return [shaft, tip]


def place_labels(
    texts: Sequence[str],
    points: Float[np.ndarray, "label 3"],
    colours: Sequence[str],
    view: View,
    *,
    obstacles: Float[np.ndarray, "obstacle 3"],
    widths: Sequence[float],
) -> list[dict[str, object]]:
    """Scene annotations beside points, where they cover neither lines nor each other.

    Each label in turn takes the best of a ring of places around its point: free of earlier labels
    first, then of drawn things, then near, and inside the picture always.

    Args:
        texts: What they say (already escaped).
        points: What they label, in data units.
        colours: Of the text.
        view: The camera, which gives the pixels.
        obstacles: Points along everything drawn, in data units.
        widths: Of the texts, in pixels.
    """
    anchors = view.pixels(points)
    things = view.pixels(obstacles)
    halves = np.stack([np.asarray(widths, float), np.full(len(texts), LABEL_SIZE + 4.0)], 1) / 2
    frame = np.array([view.width, view.height]) / 2 - 2
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    placed: list[Float[np.ndarray, " 2"]] = []
    for index, (anchor, half) in enumerate(zip(anchors, halves, strict=True)):
        best, lowest = anchor, np.inf
        for gap in (5.0, 10.0, 16.0, 24.0):
            for direction in ring:
                # The nearest edge of the box, not its centre, keeps the distance.
                spot = anchor + direction * (gap + half)
                cost = gap + 1000.0 * float(np.maximum(np.abs(spot) + half - frame, 0).sum())
                cost += 12.0 * float((np.abs(things - spot) < half + 2).all(axis=1).sum())
                for other, size in zip(placed, halves[:index], strict=True):
                    apart = half + size + 2 - np.abs(spot - other)
                    cost += 100.0 * float(np.clip(apart, 0, None).prod())
                if cost < lowest:
                    best, lowest = spot, cost
        placed.append(best)
    return [
        {
            "text": text,
            "x": float(point[0]),
            "y": float(point[1]),
            "z": float(point[2]),
            "ax": float(spot[0] - anchor[0]),
            "ay": float(anchor[1] - spot[1]),
            "showarrow": True,
            "arrowhead": 0,
            "arrowwidth": 0.5,
            "arrowcolor": "rgba(0,0,0,0.001)",
            "xanchor": "center",
            "yanchor": "middle",
            "borderpad": 0,
            "font": {"size": LABEL_SIZE, "color": colour},
        }
        for text, point, spot, anchor, colour in zip(
            texts, points, placed, anchors, colours, strict=True
        )
    ]


def along(
    start: Float[np.ndarray, " 3"], end: Float[np.ndarray, " 3"], count: int = 24
) -> Float[np.ndarray, "point 3"]:
    """Points along a segment, both ends among them."""
    return np.linspace(start, end, count)
