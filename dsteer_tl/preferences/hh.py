"""Pairs from whole dialogues, as in Anthropic's HH (arXiv 2204.05862)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dsteer_tl.preferences.dialogues import split_dialogue
from dsteer_tl.preferences.preference_set import PreferencePair, PreferenceSet
from dsteer_tl.preferences.records import Record, field_text


def preferences_from_dialogues(
    records: Iterable[Record],
    *,
    name: str,
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
) -> PreferenceSet:
    r"""Pairs from rows of two dialogues "\n\nHuman: …\n\nAssistant: …" that differ at the end.

    The prompt is the dialogue up to and with its last "\n\nAssistant:"; the completions are the
    final answers, each with its leading space. Rows whose prompts differ are dropped and counted
    ("differing prompts"), as are rows in which the assistant does not have the last word.

    Raises:
        DataError: a column is missing or holds no text, or nothing usable is left.
    """
    dropped: Counter[str] = Counter()
    pairs = []
    for record in records:
        chosen = split_dialogue(field_text(record, chosen_column))
        rejected = split_dialogue(field_text(record, rejected_column))
        if chosen is None or rejected is None:
            dropped["no final answer of the assistant"] += 1
        elif chosen[0] != rejected[0]:
            dropped["differing prompts"] += 1
        else:
            pairs.append(PreferencePair(chosen[0], chosen[1], rejected[1], source=name))
    return PreferenceSet.from_pairs(pairs, name=name, dropped=dropped)
