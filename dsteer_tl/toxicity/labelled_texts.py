"""Texts that have an attribute or have it not: from data sets, files, or a scorer's judgement."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.files import replacing
from dsteer_tl.preferences.hub import read_hub
from dsteer_tl.preferences.records import (
    Record,
    field_text,
    first_text,
    missing_columns,
    read_records,
    truth,
)
from dsteer_tl.preferences.source import load_preferences
from dsteer_tl.preferences.suites import suite_records
from dsteer_tl.toxicity.types import AttributeScorer, LabelledText

logger = logging.getLogger(__name__)

PARADETOX_HUB = "s-nlp/paradetox"
JIGSAW_HUB = "thesofakillers/jigsaw-toxic-comment-classification-challenge"
#: From this toxicity on a prompt of RealToxicityPrompts is a toxic one (Gehman et al. 2020).
TOXIC = 0.5

_LABELS = "1 or true for a text that has the attribute, 0 or false for one that has it not"


def load_labelled_texts(
    name: str, path: str | Path | None = None, *, limit: int = 0, seed: int = 0
) -> tuple[LabelledText, ...]:
    """Labelled texts of a data set, from the hub by its name or from a file.

    Empty texts, repeated ones (case and white space apart) and texts that come with both labels are
    left out: a text on both sides of a split would be remembered, not recognised.

    Args:
        name: ``"paradetox"`` (Logacheva et al. 2022: toxic texts and their neutral rewrites, one
            group a toxic text), ``"jigsaw"`` (Kaggle 2018, the paper's: columns comment_text and
            toxic), ``"realtoxicityprompts"`` (Gehman et al. 2020: the prompts, toxic from 0.5 on),
            or with a path any name of your own.
        path: The data as a file, as published or as on the hub; for a name of your own a table with
            the columns text, label (0 or 1, true or false) and, where texts belong together, group.
        limit: At most so many texts, in whole groups drawn by a hash of seed and text and kept in
            their order, so that a smaller limit draws a part of what a larger one draws; 0 is all.
        seed: Another seed, another draw.

    Raises:
        DataError: The name is unknown and there is no path, or the data cannot be had or read.
        ConfigurationError: The limit is negative.
    """
    if limit < 0:
        raise ConfigurationError(f"labelled texts {name!r}: limit is {limit}; expected 0 or more")
    read = _KNOWN.get(name)
    if read is not None:
        candidates = read(path)
    elif path is not None:
        candidates = _columns(read_records(path), "text", "label")
    else:
        raise DataError(
            f"there are no labelled texts {name!r}; expected one of {', '.join(_KNOWN)}, or the "
            "path of a file with the columns text and label"
        )
    return _draw(_distinct(candidates, name), limit, seed)


def label_by_scorer(
    texts: Sequence[str], scorer: AttributeScorer, margin: float
) -> tuple[LabelledText, ...]:
    """Label texts by their attribute score s.

    True where s ≥ 0.5 + margin, False where s ≤ 0.5 − margin. The others are left out, with a
    margin of 0 those of score 0.5; so are empty texts and repeated ones.

    Raises:
        ConfigurationError: The margin is outside [0, 0.5].
        DataError: The scorer cannot run here; says why.
    """
    if not 0 <= margin <= 0.5:
        raise ConfigurationError(f"label margin is {margin}; expected a number from 0 to 0.5")
    obstacle = scorer.obstacle()
    if obstacle:
        raise DataError(f"texts cannot be labelled by {scorer.name}: {obstacle}")
    scores = scorer.score(texts)
    # Scores are rounded numbers: 0.5 + 0.2 must not leave out what is written as 0.7.
    labelled = (
        LabelledText(text, bool(score > 0.5))
        for text, score in zip(texts, scores, strict=True)
        if abs(score - 0.5) >= margin - 1e-9 and score != 0.5
    )
    return _distinct(labelled, f"labels by {scorer.name}")


def group_numbers(texts: Sequence[LabelledText]) -> Int[np.ndarray, " text"]:
    """One integer a text, equal for texts of one group."""
    keys = [
        ("own", row) if text.group is None else ("group", text.group)
        for row, text in enumerate(texts)
    ]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def save_labelled_texts(texts: Sequence[LabelledText], path: Path) -> None:
    """Write JSON lines, a text each, whole or not at all.

    Raises:
        RunError: The file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for text in texts:
            row = {"text": text.text, "label": text.label, "group": text.group}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_labelled_texts(path: Path) -> tuple[LabelledText, ...]:
    """Read what `save_labelled_texts` wrote, every text of it.

    Raises:
        DataError: The file is missing, empty or holds something else.
    """
    return tuple(_columns(read_records(path), "text", "label"))


def _columns(records: Iterable[Record], text: str, label: str) -> Iterator[LabelledText]:
    """Texts with a label each; a column named group keeps texts together."""
    groups: dict[str, int] = {}
    for record in records:
        group = record.values.get("group")
        yield LabelledText(
            field_text(record, text),
            truth(record, label, _LABELS),
            None if group in (None, "") else groups.setdefault(str(group), len(groups)),
        )


def _paradetox(path: str | Path | None) -> Iterator[LabelledText]:
    """Every toxic text, then its rewrites: one group."""
    source = PARADETOX_HUB if path is None else Path(path)
    # The prompt is there because pairs have one; only the texts are used.
    pairs = load_preferences(source, layout="rewrites", fixed_prompt="text", name="paradetox")
    groups: dict[str, int] = {}
    for pair in pairs:
        toxic = pair.rejected.strip()
        if toxic not in groups:
            groups[toxic] = len(groups)
            yield LabelledText(toxic, True, groups[toxic])
        yield LabelledText(pair.chosen.strip(), False, groups[toxic])


def _jigsaw(path: str | Path | None) -> Iterator[LabelledText]:
    records = read_hub(JIGSAW_HUB) if path is None else read_records(path)
    return _columns(records, "comment_text", "toxic")


def _real_toxicity_prompts(path: str | Path | None) -> Iterator[LabelledText]:
    """Prompts with the API's toxicity; those without one have no label."""
    for record in suite_records("realtoxicityprompts", path):
        prompt: Any = record.values.get("prompt")
        inner = Record(prompt, record.where) if isinstance(prompt, Mapping) else record
        if "toxicity" not in inner.values:
            raise DataError(missing_columns(inner, ["toxicity", "text"]))
        toxicity = inner.values["toxicity"]
        if toxicity is None:
            continue
        if isinstance(toxicity, bool) or not isinstance(toxicity, int | float):
            raise DataError(f"{record.where}: toxicity holds {toxicity!r}; expected a number")
        yield LabelledText(first_text(inner, "text", "prompt"), float(toxicity) >= TOXIC)


_KNOWN: dict[str, Callable[[str | Path | None], Iterable[LabelledText]]] = {
    "paradetox": _paradetox,
    "jigsaw": _jigsaw,
    "realtoxicityprompts": _real_toxicity_prompts,
}


def _distinct(candidates: Iterable[LabelledText], name: str) -> tuple[LabelledText, ...]:
    """Every text once, in its order, without empty and contradictory ones."""
    first: dict[str, LabelledText] = {}
    contradicted = set()
    count = 0
    for text in candidates:
        count += 1
        key = " ".join(text.text.casefold().split())
        if key and first.setdefault(key, text).label != text.label:
            contradicted.add(key)
    kept = tuple(text for key, text in first.items() if key not in contradicted)
    if len(kept) < count:
        logger.info(
            "%s: %d of %d texts are left out: empty, repeated, or with both labels",
            name,
            count - len(kept),
            count,
        )
    return kept


def _draw(texts: tuple[LabelledText, ...], limit: int, seed: int) -> tuple[LabelledText, ...]:
    """Whole groups in which the order of rows plays no part, in that order."""
    if not limit or len(texts) <= limit:
        return texts
    members = defaultdict(list)
    for row, number in enumerate(group_numbers(texts).tolist()):
        members[number].append(row)

    def digest(rows: list[int]) -> bytes:
        written = min(texts[row].text for row in rows)
        return hashlib.sha256(json.dumps([seed, written]).encode()).digest()

    kept: list[int] = []
    for rows in sorted(members.values(), key=digest):
        if len(kept) + len(rows) > limit:
            break
        kept += rows
    return tuple(texts[row] for row in sorted(kept))
