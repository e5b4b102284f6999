"""The page of token shifts: responses whose tokens are coloured by the shift along v*."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.labels import number, signed
from dsteer_tl.plots.tables import check_table, floats
from dsteer_tl.plots.text_browser import colour_limit
from dsteer_tl.plots.theme import FONT_FAMILY
from dsteer_tl.plots.token_view import (
    FALLING_COLOUR,
    RISING_COLOUR,
    TokenPage,
    colored_tokens_html,
    plain_html,
    token_page,
)

TOKEN_SHIFT_PAGE_COLUMNS = (
    "pair",
    "prompt_text",
    "offset",
    "token",
    "along",
    "off",
    "cos",
    "cos_random",
    "log_probability_change",
)

#: What colours the tokens, with its words and unit.
_COLOURED = (
    ("along", "along v* (less the mean)", "units of h"),
    ("log_probability_change", "change of ln p", "nats"),
)

_STYLE = f"""
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 16px 20px 28px; max-width: 1080px; background: #fff; color: #222;
  font: 14px/1.5 {FONT_FAMILY}; }}
h1 {{ font-size: 20px; margin: 0 0 4px; }}
p {{ margin: 6px 0; max-width: 100ch; }}
.legend {{ display: flex; flex-wrap: wrap; gap: 8px 32px; margin: 12px 0 6px; font-size: 12px; }}
.scale {{ display: grid; grid-template-columns: repeat(3, auto); width: 320px; max-width: 100%; }}
.scale .bar {{ grid-column: 1 / 4; height: 12px; border: 1px solid #ddd;
  background: linear-gradient(to right, {FALLING_COLOUR}, #fff, {RISING_COLOUR});
  background: linear-gradient(to right in lab, {FALLING_COLOUR}, #fff, {RISING_COLOUR}); }}
.scale span:nth-of-type(2) {{ text-align: center; }}
.scale span:nth-of-type(3) {{ text-align: right; }}
article {{ border-top: 1px solid #ccc; padding: 10px 0 12px; }}
article h2 {{ font-size: 14px; margin: 0 0 2px; font-weight: bold; white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate; }}
article small {{ color: #555; font-size: 12px; }}
.label {{ font-size: 12px; color: #555; margin: 7px 0 1px; }}
"""


def _article(rows: pd.DataFrame, place: int, centre: float, limits: dict[str, float]) -> str:
    rows = rows.sort_values("offset", kind="stable")
    tokens = [str(token) for token in rows["token"]]
    drawn = []
    for name, label, _ in _COLOURED:
        values = [v - (centre if name == "along" else 0.0) for v in floats(rows, name)]
        tokens_html = colored_tokens_html(
            tokens, values, element=f"{name}-{place}", limit=limits[name]
        )
        drawn.append(f'<div class="label">{label}</div>{tokens_html}')
    return (
        f"<article><h2>{plain_html(str(rows['prompt_text'].iloc[0]).strip())}</h2>"
        f"<small>pair {int(rows['pair'].iloc[0])}: mean cosine with v* "
        f"{number(float(rows['cos'].mean()))} (random direction "
        f"{number(float(rows['cos_random'].mean()))}), along "
        f"{number(float(rows['along'].mean()))}, off {number(float(rows['off'].mean()))}, "
        f"Δ ln p {signed(float(rows['log_probability_change'].sum()))} nats</small>"
        + "".join(drawn)
        + "</article>"
    )


def _legend(label: str, unit: str, limit: float) -> str:
    end = f"{limit:g}"
    return (
        f'<div><div>{label}, {unit}</div><div class="scale" role="img" aria-label="colour scale '
        f'from −{end} to +{end}"><div class="bar"></div><span>≤ −{end}</span><span>0</span>'
        f"<span>≥ +{end}</span></div></div>"
    )


def token_shift_page(table: pd.DataFrame, *, responses: int = 12) -> TokenPage:
    """The first chosen responses, coloured by the shift along v* and by the change of ln p.

    The shift along v* is positive nearly everywhere, so its mean over all tokens is taken away:
    blue tokens move farther along v* than most, red ones less. Each response names its mean cosine
    beside that of a random direction.

    Args:
        table: Table `token_shifts`. Its texts may hold anything, they stay text.
        responses: How many, from the first; not chosen ones.

    Returns:
        The page; a notebook shows it in a frame of its own.

    Raises:
        ShapeError: The table lacks columns or rows, or the count is below 1.
        DependencyError: circuitsvis is missing.
    """
    check_table(table, "token_shifts", TOKEN_SHIFT_PAGE_COLUMNS)
    if responses < 1:
        raise ShapeError(f"token shifts: found {responses} responses, expected at least 1")
    centre = float(np.mean(floats(table, "along")))
    limits = {
        "along": colour_limit([value - centre for value in floats(table, "along")]),
        "log_probability_change": colour_limit(floats(table, "log_probability_change")),
    }
    groups = [rows for _, rows in table.groupby("pair", sort=True)]
    articles = [
        _article(rows, place, centre, limits) for place, rows in enumerate(groups[:responses])
    ]
    body = (
        "<h1>Where a response moves along v*</h1>\n"
        "<p>Each token is coloured by the state that predicts it: how far the policy’s h lies from "
        f"the base’s along v*, less the mean over all tokens, {number(centre)} units of h; and by "
        "what the policy changed of its log-probability. v* is estimated on the prompts of the "
        f"other half. Shown are the first {len(articles)} of {len(groups)} chosen responses; point "
        "at a token or tap it to read its number.</p>\n"
        '<div class="legend">'
        + "".join(_legend(label, unit, limits[name]) for name, label, unit in _COLOURED)
        + "</div>\n"
        + "\n".join(articles)
    )
    return token_page("Where a response moves along v*", body, style=_STYLE)


def write_token_shift_page(table: pd.DataFrame, path: Path | str) -> Path:
    """Write `token_shift_page` as one HTML file, atomically.

    Args:
        table: Table `token_shifts`.
        path: Of the file; its folder is made if it does not exist.

    Returns:
        The path.

    Raises:
        ShapeError: As for `token_shift_page`.
        DependencyError: circuitsvis is missing.
        RunError: The file cannot be written.
    """
    return token_shift_page(table).write(Path(path))
