"""How a verdict looks and what it means: a mark and a word, never a colour alone."""

from __future__ import annotations

from dataclasses import dataclass

from dsteer_tl.claims.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class VerdictLook:
    """A verdict for people.

    Attributes:
        word: The verdict.
        key: Its name in the style sheet.
        mark: A sign that tells it apart in grey.
        meaning: The rule, in one sentence.
    """

    word: str
    key: str
    mark: str
    meaning: str


_LOOKS = {
    Verdict.REPLICATED: ("✓", "the published target is met, and the null does not meet it"),
    Verdict.PARTIAL: (
        "◐",
        "the target is missed, but the row's weaker condition holds: the published sign, beyond a "
        "random control",
    ),
    Verdict.FAILED: ("✕", "neither the target nor the sign"),
    Verdict.TRIVIAL: ("≈", "the target is met, and the null meets it as well"),
    Verdict.UNTESTABLE: ("?", "the claim has nothing to be about in this pair"),
    Verdict.NOT_RUN: ("–", "not measured in this run; the row says why"),
}


def look(verdict: Verdict) -> VerdictLook:
    """The look of a verdict."""
    mark, meaning = _LOOKS[verdict]
    return VerdictLook(verdict.value, verdict.name.lower().replace("_", "-"), mark, meaning)


def look_of(word: object) -> VerdictLook:
    """The look of a verdict by its word; an unknown word looks like NOT RUN and keeps itself."""
    try:
        return look(Verdict(str(word)))
    except ValueError:
        return VerdictLook(str(word), "not-run", "–", "")
