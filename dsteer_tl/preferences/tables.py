"""Pairs from tables: a row per pair, or a row per text with its rewrites (ParaDetox)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from dsteer_tl.errors import DataError
from dsteer_tl.preferences.preference_set import PreferencePair, PreferenceSet
from dsteer_tl.preferences.records import Record, field_text, missing_columns


def preferences_from_columns(
    records: Iterable[Record],
    *,
    name: str,
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
) -> PreferenceSet:
    """Pairs from rows of three texts, taken as they are: no space is put between them.

    Raises:
        DataError: a column is missing or holds no text, or nothing usable is left.
    """
    pairs = [
        PreferencePair(
            prompt=field_text(record, prompt_column),
            chosen=field_text(record, chosen_column),
            rejected=field_text(record, rejected_column),
            source=name,
        )
        for record in records
    ]
    return PreferenceSet.from_pairs(pairs, name=name)


def preferences_from_rewrites(
    records: Iterable[Record],
    *,
    name: str,
    rejected_column: str = "toxic",
    chosen_columns: Sequence[str] = ("neutral1", "neutral2", "neutral3"),
    fixed_prompt: str | None = None,
    fallback_prompt: str | None = None,
) -> PreferenceSet:
    """Pairs from toxic texts and their neutral rewrites (ParaDetox, Logacheva et al. 2022).

    Each rewrite (chosen) makes a pair with its toxic text (rejected). A base model needs a prompt
    that both continue. By default it is the words with which a toxic text and *all* its rewrites
    begin: one prompt a text, so that a split by prompt never parts two rewrites of one text.
    Texts without such words are dropped and counted ("no common beginning"), because one prompt
    for them all would put half of the data on one side of a split.

    Args:
        records: rows; rows with the same toxic text are taken together.
        name: what reports call the set.
        rejected_column: column of the toxic text.
        chosen_columns: columns of the rewrites; empty cells are no rewrites.
        fixed_prompt: use this prompt for every pair, whole texts as completions; split such a set
            with `group_by="rejected"`.
        fallback_prompt: use this prompt for the texts that have no common beginning.

    Raises:
        DataError: a column is missing, or nothing usable is left.
    """
    dropped: Counter[str] = Counter()
    rewrites: dict[str, list[str]] = {}
    for record in records:
        columns = [rejected_column, *chosen_columns]
        if any(column not in record.values for column in columns):
            raise DataError(missing_columns(record, columns))
        neutral = [field_text(record, column).strip() for column in chosen_columns]
        neutral = [text for text in neutral if text]
        if not neutral:
            dropped["no rewrite"] += 1
        elif any(record.values[column] is None for column in columns):
            # A line break inside a cell tears a row in two: neither half can be trusted.
            dropped["broken row"] += len(neutral)
        else:
            rewrites.setdefault(field_text(record, rejected_column).strip(), []).extend(neutral)
    pairs = []
    for toxic, texts in rewrites.items():
        prompt = "" if fixed_prompt is not None else common_beginning([toxic, *texts])
        stem = fixed_prompt if fixed_prompt is not None else prompt or fallback_prompt
        if stem is None:
            dropped["no common beginning"] += len(texts)
            continue
        rest = [text[len(prompt) :] if prompt else f" {text}" for text in (toxic, *texts)]
        pairs += [PreferencePair(stem, chosen, rest[0], source=name) for chosen in rest[1:]]
    return PreferenceSet.from_pairs(pairs, name=name, dropped=dropped)


def common_beginning(texts: Sequence[str]) -> str:
    """The longest run of whole words with which every text begins, without the space after it."""
    first, last = min(texts), max(texts)  # what these two share, all share
    differing = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    shared = next(differing, len(first))
    while shared and not all(len(text) == shared or text[shared].isspace() for text in texts):
        shared -= 1
    return first[:shared].rstrip()
