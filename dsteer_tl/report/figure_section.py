"""The figures of a report: groups, captions, and what the page needs to draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from dsteer_tl.claims.verdicts import ClaimResult
from dsteer_tl.report.captions import CAPTIONS, GROUPS
from dsteer_tl.report.security import data_uri, island_json
from dsteer_tl.report.stored_figures import StoredFigure


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownFigure:
    """One figure on the page.

    Attributes:
        name, anchor: File name without ending, and the id of its element.
        title, caption, count: What it shows, and n.
        width, height, webgl: As in `StoredFigure`.
        rows: Rows of the ledger that it belongs to.
        data: Its content as JSON that may stand inside `<script>`.
        image: Address of its image for paper, or "".
    """

    name: str
    anchor: str
    title: str
    caption: str
    count: str
    width: int
    height: int
    webgl: bool
    rows: tuple[int, ...]
    data: Markup
    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureGroup:
    """Figures under one heading."""

    key: str
    heading: str
    figures: tuple[ShownFigure, ...]


def anchor(name: str) -> str:
    """The id of a figure's element."""
    return "figure-" + "".join(
        c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in name
    )


def figure_groups(
    figures: Mapping[str, StoredFigure],
    tables: Mapping[str, pd.DataFrame],
    claims: Sequence[ClaimResult],
) -> tuple[FigureGroup, ...]:
    """Every figure in the order of the captions; those without one come last, by name.

    Args:
        figures: By name.
        tables: For each n.
        claims: For the rows that a figure belongs to.
    """
    order = {name: place for place, name in enumerate(CAPTIONS)}
    names = sorted(figures, key=lambda name: (order.get(name, len(order)), name))
    shown: dict[str, list[ShownFigure]] = {group: [] for group in GROUPS}
    for name in names:
        caption = CAPTIONS.get(name)
        rows = tuple(claim.id for claim in claims if claim.figure == name)
        shown["other" if caption is None else caption.group].append(
            _shown(figures[name], tables, rows)
        )
    return tuple(
        FigureGroup(key=key, heading=heading, figures=tuple(shown[key]))
        for key, heading in GROUPS.items()
        if shown[key]
    )


def _shown(
    figure: StoredFigure, tables: Mapping[str, pd.DataFrame], rows: tuple[int, ...]
) -> ShownFigure:
    caption = CAPTIONS.get(figure.name)
    return ShownFigure(
        name=figure.name,
        anchor=anchor(figure.name),
        title=figure.title if caption is None else caption.title,
        caption="" if caption is None else caption.text,
        count="" if caption is None else caption.count(tables),
        width=figure.width,
        height=figure.height,
        webgl=figure.webgl,
        rows=rows,
        data=Markup(island_json(figure.content)),
        image="" if figure.png is None else data_uri(figure.png),
    )
