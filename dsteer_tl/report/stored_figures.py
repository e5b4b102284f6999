"""One stored figure: its plotly JSON, its size, and its image for paper."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsteer_tl.errors import RunError
from dsteer_tl.plots.theme import HEIGHT, WIDTH
from dsteer_tl.report.png import SIGNATURE, compact_png

#: A larger image is left out, so that the report stays a file one can send.
MOST_IMAGE_BYTES = 400_000

#: Traces that take a WebGL context each figure.
_WEBGL = frozenset(
    {"scatter3d", "mesh3d", "cone", "surface", "volume", "isosurface", "streamtube", "scattergl"}
)
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFigure:
    """A figure as it was drawn.

    Attributes:
        name: File name without ending.
        content: Plotly's ``data`` and ``layout``.
        width, height: In CSS pixels.
        png: The image for paper, or None.
    """

    name: str
    content: Mapping[str, Any]
    width: int
    height: int
    png: bytes | None

    @property
    def webgl(self) -> bool:
        """Whether drawing it takes one of a browser's few WebGL contexts."""
        return any(trace.get("type") in _WEBGL for trace in self.content["data"])

    @property
    def title(self) -> str:
        """The title of its layout as plain text; its name in words where it has none."""
        title = self.content["layout"].get("title")
        text = title.get("text") if isinstance(title, dict) else title
        plain = html.unescape(_TAG.sub(" ", text)) if isinstance(text, str) else ""
        return " ".join(plain.split()) or self.name.replace("_", " ")


def read_figure(path: Path, image: Path | None) -> StoredFigure:
    """Read a figure.

    Args:
        path: Its JSON.
        image: Its PNG, if there is one of the same drawing.

    Raises:
        RunError: A file was altered or cut short.
    """
    try:
        content = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} is not JSON ({error}): it was altered or cut short; run dsteer figures on "
            "this directory"
        ) from error
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("data"), list)
        or not all(isinstance(trace, dict) for trace in content["data"])
        or not isinstance(content.get("layout"), dict)
    ):
        raise RunError(
            f"{path} is no plotly figure, expected an object with data and layout: it was altered; "
            "run dsteer figures on this directory"
        )
    layout = content["layout"]
    return StoredFigure(
        name=path.stem,
        content={"data": content["data"], "layout": layout},
        width=_size(layout.get("width"), WIDTH),
        height=_size(layout.get("height"), HEIGHT),
        png=None if image is None else _image(image),
    )


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _size(value: object, default: int) -> int:
    return round(value) if isinstance(value, int | float) and 0 < value < 10_000 else default


def _image(path: Path) -> bytes | None:
    """The image made small, or None where even that is too large."""
    content = path.read_bytes()
    if not content.startswith(SIGNATURE):
        raise RunError(
            f"{path} is no PNG: it was altered or cut short; run dsteer figures on this directory"
        )
    small = compact_png(content)
    return small if len(small) <= MOST_IMAGE_BYTES else None
