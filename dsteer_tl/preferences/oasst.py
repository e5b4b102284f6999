"""Pairs from ranked answers in conversation trees: OpenAssistant OASST1 (arXiv 2304.07327)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from dsteer_tl.errors import DataError
from dsteer_tl.preferences.dialogues import render_prompt
from dsteer_tl.preferences.preference_set import PreferencePair, PreferenceSet
from dsteer_tl.preferences.records import Record, field_text, missing_columns

_MESSAGE_COLUMNS = ("message_id", "parent_id", "text", "role")


def preferences_from_trees(
    records: Iterable[Record], *, name: str, language: str | None = "en"
) -> PreferenceSet:
    """Pairs from trees: {"prompt": {"text", "role", "lang", "rank", "replies": […]}}.

    At every depth, every two ranked answers to one message make a pair; the better rank (0 is
    best) is chosen. The dialogue before them is the prompt, in the form of HH.

    Args:
        records: one tree each.
        name: what reports call the set.
        language: keep pairs whose message and answers are in it; None keeps all.

    Raises:
        DataError: a message lacks its text or role, or nothing usable is left.
    """
    dropped: Counter[str] = Counter()
    pairs: list[PreferencePair] = []
    for record in records:
        root = record.values.get("prompt")
        if not isinstance(root, Mapping):
            raise DataError(missing_columns(record, ["prompt (a message with replies)"]))
        pairs += _pairs_below(root, (), record.where, name, language, dropped)
    return PreferenceSet.from_pairs(pairs, name=name, dropped=dropped)


def preferences_from_messages(
    records: Iterable[Record], *, name: str, language: str | None = "en"
) -> PreferenceSet:
    """Pairs from flat messages, as the hub serves `OpenAssistant/oasst1`.

    Messages find their tree through `parent_id`. Deleted messages and those that failed review
    are left out with everything below them; a message whose parent is not in the data is counted.

    Args:
        records: one message each.
        name: what reports call the set.
        language: as in `preferences_from_trees`.

    Raises:
        DataError: a column is missing, or nothing usable is left.
    """
    messages: dict[str, dict[str, Any]] = {}
    parents: list[tuple[str, str | None, str]] = []
    for record in records:
        absent = [column for column in _MESSAGE_COLUMNS if column not in record.values]
        if absent:
            raise DataError(missing_columns(record, _MESSAGE_COLUMNS))
        identifier = field_text(record, "message_id")
        messages[identifier] = {**record.values, "replies": []}
        parents.append((identifier, field_text(record, "parent_id") or None, record.where))
    dropped: Counter[str] = Counter()
    roots = []
    for identifier, parent, where in parents:
        if parent is None:
            roots.append(Record({"prompt": messages[identifier]}, where))
        elif parent in messages:
            messages[parent]["replies"].append(messages[identifier])
        else:
            dropped["message whose parent is missing"] += 1
    pairs: list[PreferencePair] = []
    for root in roots:
        pairs += _pairs_below(root.values["prompt"], (), root.where, name, language, dropped)
    return PreferenceSet.from_pairs(pairs, name=name, dropped=dropped)


def _pairs_below(
    message: Mapping[str, Any],
    before: tuple[tuple[bool, str], ...],
    where: str,
    name: str,
    language: str | None,
    dropped: Counter[str],
) -> Iterator[PreferencePair]:
    """Every pair of ranked answers at or below a message."""
    if message.get("deleted") is True or message.get("review_result") is False:
        return
    record = Record(message, where)
    role = field_text(record, "role")
    turns = (*before, (role == "prompter", field_text(record, "text")))
    replies: list[Mapping[str, Any]] = list(message.get("replies") or ())
    ranked = [
        reply
        for reply in replies
        if reply.get("role") == "assistant"
        and reply.get("rank") is not None
        and reply.get("deleted") is not True
        and reply.get("review_result") is not False
    ]
    prompt = render_prompt(turns)
    for first, second in combinations(sorted(ranked, key=lambda reply: reply["rank"]), 2):
        languages = {message.get("lang"), first.get("lang"), second.get("lang")}
        if language is not None and languages != {language}:
            dropped["other language"] += 1
        elif first["rank"] == second["rank"]:
            dropped["equal ranks"] += 1
        else:
            chosen, rejected = (field_text(Record(m, where), "text") for m in (first, second))
            yield PreferencePair(prompt, f" {chosen.strip()}", f" {rejected.strip()}", source=name)
    for reply in replies:
        yield from _pairs_below(reply, turns, where, name, language, dropped)
