"""The page of value vectors: the tokens that each vector promotes and suppresses, coloured."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.labels import number, signed, token_label
from dsteer_tl.plots.tables import check_table, floats
from dsteer_tl.plots.text_browser import colour_limit
from dsteer_tl.plots.theme import FONT_FAMILY, GREEN, GREY, INK, ORANGE
from dsteer_tl.plots.token_view import (
    FALLING_COLOUR,
    RISING_COLOUR,
    TokenPage,
    colored_tokens_html,
    plain_html,
    token_page,
)

VECTOR_TOKEN_COLUMNS = (
    "vector",
    "kind",
    "effect",
    "rank",
    "token_id",
    "token",
    "value",
    "listed",
    "cosine",
)

_EFFECTS = {"promoted": "promotes", "suppressed": "suppresses"}
_KINDS = {
    "probe": "the attribute’s probe",
    "value_vector": "value vector near the probe",
    "svd": "singular vector of the value vectors near the probe",
    "random": "control",
}
_NAMES = {
    "probe": "probe",
    "random": "random direction",
    "random_value_vector": "random value vector",
}
_LONGEST = 24  # characters of a token that are shown
_DEEP = 0.85  # of the limit: on a deeper blue white text reads better than black

_STYLE = f"""
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 16px 20px 28px; max-width: 1240px; background: #fff; color: #222;
  font: 14px/1.45 {FONT_FAMILY}; }}
h1 {{ font-size: 20px; margin: 0 0 4px; }}
p {{ margin: 6px 0; max-width: 100ch; }}
sub {{ line-height: 0; }}
.legend {{ display: flex; flex-wrap: wrap; align-items: center; gap: 10px 28px; margin: 12px 0 14px;
  font-size: 12px; }}
.scale {{ display: grid; grid-template-columns: repeat(3, auto); width: 300px; max-width: 100%; }}
.scale .bar {{ grid-column: 1 / 4; height: 12px; border: 1px solid #ddd;
  background: linear-gradient(to right, {FALLING_COLOUR}, #fff, {RISING_COLOUR});
  background: linear-gradient(to right in lab, {FALLING_COLOUR}, #fff, {RISING_COLOUR}); }}
.scale span:nth-of-type(2) {{ text-align: center; }}
.scale span:nth-of-type(3) {{ text-align: right; }}
table {{ border-collapse: collapse; width: 100%; table-layout: fixed;
  border-bottom: 1px solid #ccc; }}
th, td {{ padding: 9px 10px 8px; vertical-align: top; text-align: left;
  border-top: 1px solid #e6e7ea; }}
thead th {{ background: #f4f5f7; border-top: 1px solid #ccc; border-bottom: 1px solid #ccc;
  font-size: 13px; padding: 6px 10px; }}
thead th:first-child {{ width: 200px; }}
tbody th {{ font-weight: normal; border-left: 3px solid {INK}; }}
tbody th b {{ display: block; overflow-wrap: anywhere; unicode-bidi: isolate; }}
tbody th small, td small {{ display: block; font-size: 11px; line-height: 1.35; color: #555; }}
td small {{ margin-top: 4px; }}
tr.svd th {{ border-left-color: {GREEN}; }}
tr.value_vector th {{ border-left-color: {ORANGE}; }}
tr.random th {{ border-left-color: {GREY}; }}
tr.random {{ background: #fafafa; }}
tr.first th, tr.first td {{ border-top: 2px solid #b9bcc2; }}
.chips {{ display: flex; flex-wrap: wrap; gap: 5px 7px; }}
.chip {{ max-width: 100%; border-radius: 3px; }}
.chip .colored-tokens {{ padding: 0; line-height: 1; }}
.chip .colored-tokens span span {{ margin: 0 !important; padding: 3px 6px !important;
  border-radius: 3px; line-height: 1.15 !important; color: #111 !important; }}
.chip.deep .colored-tokens span span {{ color: #fff !important; }}
.listed {{ box-shadow: 0 0 0 2px #222; font-weight: bold; }}
.sample {{ display: inline-block; margin: 0 8px 0 2px; padding: 1px 6px; border-radius: 3px; }}
.none {{ color: #777; font-style: italic; }}
@media (max-width: 720px) {{
  body {{ padding: 12px 10px 20px; }}
  table, tbody, tr, tbody th, td {{ display: block; width: auto; }}
  thead {{ display: none; }}
  tbody th {{ padding: 9px 10px 3px; }}
  td, tr.first td {{ border-top: 0; padding: 4px 10px 9px 13px; }}
  td::before {{ content: attr(data-effect); display: block; margin-bottom: 5px; font-size: 12px;
    font-weight: bold; }}
}}
"""


def _chip(row: dict[str, object], element: str, limit: float) -> str:
    # What has no glyph is spelled out; escaping is left to the token view.
    shown = html.unescape(token_label(str(row["token"]), _LONGEST))
    value = float(str(row["value"]))
    drawn = colored_tokens_html([shown], [value], element=element, limit=limit)
    deep = " deep" if value > _DEEP * limit else ""
    listed = ' listed" title="listed word' if bool(row["listed"]) else ""
    return f'<div class="chip{deep}{listed}">{drawn}</div>'


def _cell(rows: pd.DataFrame, effect: str, place: int, limit: float) -> str:
    here = rows[rows["effect"] == effect].sort_values("rank", kind="stable")
    label = f'<td data-effect="{_EFFECTS[effect]}">'
    if here.empty:
        return f'{label}<span class="none">not in the table</span></td>'
    chips = [
        _chip({str(key): value for key, value in row.items()}, f"{effect}-{place}-{rank}", limit)
        for rank, row in enumerate(here.to_dict("records"))
    ]
    values = floats(here, "value")
    return (
        f'{label}<div class="chips">{"".join(chips)}</div>'
        f"<small>{int(here['listed'].sum())} of {len(here)} listed; "
        f"{signed(values[0])} to {signed(values[-1])}</small></td>"
    )


def _line(name: str, rows: pd.DataFrame, place: int, first: bool, limit: float) -> str:
    kind = str(rows["kind"].iloc[0])
    known = kind if kind in _KINDS else "other"
    # Only known kinds are ever part of an attribute.
    return (
        f'<tr class="{known}{" first" if first else ""}"><th scope="row">'
        f"<b>{plain_html(_NAMES.get(name, name))}</b>"
        f"<small>{_KINDS.get(kind) or plain_html(kind)}</small>"
        f"<small>cosine with the probe {number(float(rows['cosine'].iloc[0]))}</small></th>"
        + "".join(_cell(rows, effect, place, limit) for effect in _EFFECTS)
        + "</tr>"
    )


def value_vector_page(table: pd.DataFrame) -> TokenPage:
    """The tokens that the probe, value vectors, their singular vectors and random ones say.

    One row a vector. A token's colour is its value, on one scale for the page: the change of its
    logit a unit of length of the vector. Words of the attribute have a frame.

    Args:
        table: Table `toxicity_tokens`. Its texts may hold anything, they stay text.

    Returns:
        The page; a notebook shows it in a frame of its own.

    Raises:
        ShapeError: The table lacks columns or rows, or has an unknown effect.
        DependencyError: circuitsvis is missing.
    """
    check_table(table, "toxicity_tokens", VECTOR_TOKEN_COLUMNS)
    unknown = sorted({str(effect) for effect in table["effect"]} - set(_EFFECTS))
    if unknown:
        raise ShapeError(
            f"table 'toxicity_tokens' has effects {', '.join(unknown)}; expected promoted or "
            "suppressed: run the analysis that writes this table again"
        )
    limit = colour_limit(floats(table, "value"))
    lines: list[str] = []
    kinds: list[str] = []
    for place, (name, rows) in enumerate(table.groupby("vector", sort=False)):
        kinds.append(str(rows["kind"].iloc[0]))
        first = place > 0 and kinds[-1] != kinds[-2]
        lines.append(_line(str(name), rows, place, first, limit))
    end = f"{limit:g}"
    heads = "".join(f'<th scope="col">{effect}</th>' for effect in _EFFECTS.values())
    body = (
        "<h1>What value vectors say</h1>\n"
        "<p>Each row is a direction of the residual stream. On its right stand the tokens whose "
        "logits it raises most and lowers most, the strongest first: W<sub>U</sub>ᵀv for a vector "
        "of length 1, less the mean over tokens. Value vectors near the probe and their singular "
        "vectors have the sign that points along it. A direction says something where it promotes "
        "more listed words, or raises them more, than the controls in the last rows.</p>\n"
        f'<div class="legend"><div class="scale" role="img" aria-label="colour scale from −{end} '
        f'to +{end} logits"><div class="bar"></div><span>≤ −{end}</span><span>0</span>'
        f"<span>≥ +{end} logits</span></div>\n"
        '<div><span class="sample listed">word</span>listed as a word of the attribute</div>\n'
        "<div>␣ is a blank; point at a token or tap it to read its number</div></div>\n"
        f'<table>\n<thead><tr><th scope="col">vector</th>{heads}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table>"
    )
    return token_page("What value vectors say", body, style=_STYLE)


def write_value_vector_page(table: pd.DataFrame, path: Path | str) -> Path:
    """Write `value_vector_page` as one HTML file, atomically.

    Args:
        table: Table `toxicity_tokens`.
        path: Of the file; its folder is made if it does not exist.

    Returns:
        The path.

    Raises:
        ShapeError: As for `value_vector_page`.
        DependencyError: circuitsvis is missing.
        RunError: The file cannot be written.
    """
    return value_vector_page(table).write(Path(path))
