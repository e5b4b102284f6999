"""Numbers and their intervals as text."""

from __future__ import annotations

import math
import re

from markupsafe import Markup, escape

from dsteer_tl.claims.text import number as ledger_number

_SUBSCRIPT = re.compile(r"\b([A-Za-z])_([A-Za-z])\b")


def typeset(text: str) -> Markup:
    """Text as markup, escaped, with e_w and its like as a letter and its index."""
    return Markup(_SUBSCRIPT.sub(r"\1<sub>\2</sub>", str(escape(text))))


#: Three digits would show what is nearer to 1 than this as 1.
_NEAR_ONE = 5e-3
_MOST_DECIMALS = 8


def number(value: object) -> str:
    """Three significant digits with a true minus sign; a dash where there is no number.

    What is nearly and not exactly 1 or −1 has as many more as tell it from that, as 0.99998.
    """
    if value is None or isinstance(value, str):
        return "–" if not value else str(value)
    known = float(value)  # type: ignore[arg-type]
    if not math.isfinite(known):
        return "–"
    off = abs(abs(known) - 1)
    text = ledger_number(known)
    if 0 < off < _NEAR_ONE:
        # A part in a million above keeps 1.001 − 1, just below 0.001 in binary, at its own digit.
        decimals = min(_MOST_DECIMALS, -math.floor(math.log10(off * (1 + 1e-6))))
        text = f"{known:.{decimals}f}".rstrip("0").rstrip(".")
    return text.replace("-", "−")


def with_interval(value: object, low: object, high: object) -> str:
    """A value and its interval, as "0.69 [0.68, 0.7]"."""
    text = number(value)
    if text == "–" or number(low) == "–" or number(high) == "–":
        return text
    return f"{text} [{number(low)}, {number(high)}]"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """A count with its noun, as "1 row" or "4,480 rows"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def listed(parts: list[str]) -> str:
    """Parts as "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
