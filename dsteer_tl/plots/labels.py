"""Text on figures: model text made harmless, names of positions, numbers."""

from __future__ import annotations

import math
import unicodedata

POSITION_KINDS = ("last_prompt", "divergence", "response")

_POSITION_LABELS = {
    "last_prompt": "last prompt token",
    "divergence": "divergence position",
    "response": "response tokens",
    "later": "later positions",
}
_VISIBLE = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}
_INVISIBLE_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def escape_text(text: str) -> str:
    """Text from a model or a data set, safe in plotly's pseudo-HTML and never read as TeX.

    Plotly turns `<b>`, `<a href>` and the like into elements and `$…$` into a formula, and decodes
    entities; `&quot;` is not among them, so quotes stay as they are.
    """
    return (
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")
    )


def token_label(token: str, longest: int = 18) -> str:
    r"""One token as it is shown on an axis: whitespace visible, controls spelled out, escaped.

    Args:
        token: Its decoded text.
        longest: Characters shown; the rest becomes "…".

    Returns:
        "␣" for a blank, "⏎" for a newline, `\\u200b` for what has no glyph, "(empty)" for "".
    """
    shown: list[str] = []
    for character in token:
        if character in _VISIBLE:
            shown.append(_VISIBLE[character])
        elif unicodedata.category(character) in _INVISIBLE_CATEGORIES:
            shown.append(f"\\u{ord(character):04x}")
        elif character.isspace():
            shown.append("␣")
        else:
            shown.append(character)
    text = "".join(shown)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return escape_text(text) if text else "(empty)"


def position_label(position_kind: str) -> str:
    """A position kind in words, e.g. "last prompt token"."""
    known = _POSITION_LABELS.get(position_kind)
    return known if known is not None else escape_text(position_kind.replace("_", " "))


def site_label(site: str) -> str:
    """A site in words: "h", or "resid_post[3]"."""
    stem, _, layer = site.partition(".")
    return f"{stem}[{layer}]" if layer.isdigit() else escape_text(site)


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign and a fixed count of decimals; "n/a" if not finite."""
    if not math.isfinite(value):
        return "n/a"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """As `number`, with a plus sign before what is not negative."""
    text = number(value, digits)
    return text if text.startswith("−") or text == "n/a" else f"+{text}"


def count_label(counts: list[int]) -> str:
    """Text "n = 200", or "n = 180–200" where the rows of one panel differ."""
    low, high = min(counts), max(counts)
    return f"n = {low:,}" if low == high else f"n = {low:,}–{high:,}"
