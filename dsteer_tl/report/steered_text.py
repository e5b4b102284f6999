"""Steered beside unsteered text: a few prompts at a few coefficients, chosen by place alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dsteer_tl.report.words import counted

TABLE = "completions"
#: Coefficients that are shown, or those of the grid nearest to them.
WANTED = (-1.0, 0.0, 1.0, 4.0)
MOST_PROMPTS = 5
_COLUMNS = frozenset(
    {"suite", "direction", "vector", "site", "coefficient", "prompt", "prompt_text", "completion"}
)
#: What is shown of each setting, where the table has it; else what it has first.
_PREFERRED = {
    "suite": "held_out",
    "site": "h",
    "vector": "v_star",
    "matching": "norm",
    "positions": "all",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One completion: its text, or None where it was not sampled; whether the model ended it."""

    text: str | None
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLine:
    """A prompt and what followed it in each column."""

    number: int
    prompt: str
    said: tuple[Said, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeredText:
    """The section.

    Attributes:
        setting: Suite, site and so on, as one sentence.
        shown: How much of what there is.
        heads: Column heads.
        lines: Prompts.
    """

    setting: str
    shown: str
    heads: tuple[str, ...]
    lines: tuple[PromptLine, ...]


def steered_text(tables: Mapping[str, pd.DataFrame]) -> SteeredText | None:
    """The section, or None where nothing was generated."""
    table = tables.get(TABLE)
    if table is None or table.empty or not set(table.columns) >= _COLUMNS:
        return None
    rows = table[table["direction"] == "interpolate"]
    if rows.empty:
        return None
    setting = {}
    for column, preferred in _PREFERRED.items():
        if column in rows:
            there = list(dict.fromkeys(str(value) for value in rows[column]))
            setting[column] = preferred if preferred in there else there[0]
            rows = rows[rows[column] == setting[column]]
    grid = sorted({float(value) for value in rows["coefficient"]})
    chosen = nearest(grid, WANTED)
    prompts = sorted({int(value) for value in rows["prompt"]})
    picked = spread(prompts, MOST_PROMPTS)
    unsteered = _unsteered_policy(table, setting)
    heads = tuple(_head(value) for value in chosen)
    if unsteered:
        heads += ("policy, unsteered",)
    lines = []
    for prompt in picked:
        here = rows[rows["prompt"] == prompt]
        by_coefficient = {float(row["coefficient"]): row for row in here.to_dict("records")}
        said = [_said(by_coefficient.get(value)) for value in chosen]
        if unsteered:
            said.append(_said(unsteered.get(prompt)))
        lines.append(
            PromptLine(
                number=prompt, prompt=str(here["prompt_text"].iloc[0]).strip(), said=tuple(said)
            )
        )
    return SteeredText(
        setting=", ".join(f"{name} {value}" for name, value in _described(setting)),
        shown=(
            f"{len(picked)} of {counted(len(prompts), 'prompt')} at {len(chosen)} of "
            f"{counted(len(grid), 'coefficient')}; the sweep sampled "
            f"{counted(len(table), 'completion')} in all"
        ),
        heads=heads,
        lines=tuple(lines),
    )


def nearest(grid: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """For each wanted value the nearest one of the grid, each once, in order."""
    found = {min(grid, key=lambda value: (abs(value - aim), abs(value))) for aim in wanted}
    return sorted(found)


def spread(items: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly spaced by place, both ends among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _described(setting: Mapping[str, str]) -> list[tuple[str, str]]:
    names = {"matching": "matched by", "vector": "vector", "positions": "positions"}
    return [
        (names.get(name, name), "v*" if value == "v_star" else value)
        for name, value in setting.items()
    ]


def _head(coefficient: float) -> str:
    text = f"λ = {coefficient:g}".replace("-", "−")
    return f"{text} (base, unsteered)" if coefficient == 0 else text


def _unsteered_policy(
    table: pd.DataFrame, setting: Mapping[str, str]
) -> dict[int, Mapping[object, object]]:
    """What the policy itself wrote to each prompt: λ = 0 of the other direction."""
    rows = table[(table["direction"] == "invert") & (table["coefficient"] == 0)]
    for column, value in setting.items():
        rows = rows[rows[column] == value]
    return {int(row["prompt"]): row for row in rows.to_dict("records")}


def _said(row: Mapping[object, object] | None) -> Said:
    if row is None:
        return Said(text=None, ended=False)
    return Said(text=str(row["completion"]).strip(), ended=bool(row.get("ended", True)))
