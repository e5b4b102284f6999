"""`load_preferences`: one call for every file and hub data set that holds preferences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences.conversational import preferences_from_conversations, strip_eos
from dsteer_tl.preferences.dialogues import ASSISTANT
from dsteer_tl.preferences.hh import preferences_from_dialogues
from dsteer_tl.preferences.hub import HUB_NAME, read_hub
from dsteer_tl.preferences.oasst import preferences_from_messages, preferences_from_trees
from dsteer_tl.preferences.preference_set import PreferenceSet
from dsteer_tl.preferences.records import FILE_SUFFIXES, Record, read_records
from dsteer_tl.preferences.tables import preferences_from_columns, preferences_from_rewrites

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Layout = Literal["auto", "dialogues", "trees", "messages", "rewrites", "columns", "conversations"]
#: Columns of a toxic text and its rewrites, as the file and the hub name them.
_REWRITES = (
    ("toxic", ("neutral1", "neutral2", "neutral3")),
    ("en_toxic_comment", ("en_neutral_comment",)),
)


def load_preferences(
    source: str | Path,
    *,
    layout: Layout = "auto",
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str | None = None,
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    language: str | None = "en",
    fixed_prompt: str | None = None,
    fallback_prompt: str | None = None,
    hub_split: str = "train",
    hub_configuration: str | None = None,
) -> PreferenceSet:
    r"""Load preference pairs from a file or from the Hugging Face hub.

    What the rows hold decides how they are read:

    - "dialogues": chosen and rejected are dialogues "\n\nHuman: …" (Anthropic HH);
    - "trees" and "messages": ranked answers (OpenAssistant OASST1, trees or the hub's messages);
    - "rewrites": toxic texts with neutral rewrites (ParaDetox);
    - "conversations": chosen and rejected are lists of messages (TRL);
    - "columns": prompt, chosen and rejected are texts.

    Args:
        source: a path (.jsonl, .json, .csv, .tsv, .parquet; the text kinds also .gz), or a hub
            name "owner/name" or "owner/name:folder" ("Anthropic/hh-rlhf:harmless-base").
        layout: one of the layouts above, or "auto" to tell it from the first row.
        tokenizer: needed for conversations; when given, completions of any layout lose a trailing
            end-of-sequence text.
        name: what reports call the set; by default the file's stem or the hub name.
        prompt_column: column of the prompt.
        chosen_column: column of the preferred completion.
        rejected_column: column of the other completion.
        language: for trees and messages, the language to keep; None keeps all.
        fixed_prompt: for rewrites, the prompt of every pair.
        fallback_prompt: for rewrites, the prompt of texts without a common beginning.
        hub_split: the hub's split.
        hub_configuration: the hub's configuration.

    Returns:
        The usable pairs in their order, and the count of the others by reason.

    Raises:
        DataError: the source is missing, empty, malformed, of no known layout, or has no usable
            pair.
        ConfigurationError: `layout` is unknown.
    """
    if layout not in get_args(Layout):
        raise ConfigurationError(
            f"layout is {layout!r}; expected one of {', '.join(get_args(Layout))}"
        )
    if _is_hub_name(source):
        records = read_hub(str(source), split=hub_split, configuration=hub_configuration)
        title = name or str(source)
    else:
        records = read_records(source)
        title = name or Path(source).name.split(".")[0]
    columns = (prompt_column, chosen_column, rejected_column)
    if layout == "auto":
        layout = _layout_of(records[0], *columns)
    names = {"chosen_column": chosen_column, "rejected_column": rejected_column}
    if layout == "dialogues":
        preferences = preferences_from_dialogues(records, name=title, **names)
    elif layout == "trees":
        preferences = preferences_from_trees(records, name=title, language=language)
    elif layout == "messages":
        preferences = preferences_from_messages(records, name=title, language=language)
    elif layout == "rewrites":
        toxic, neutral = _rewrite_columns(records[0])
        preferences = preferences_from_rewrites(
            records,
            name=title,
            rejected_column=toxic,
            chosen_columns=neutral,
            fixed_prompt=fixed_prompt,
            fallback_prompt=fallback_prompt,
        )
    elif layout == "conversations":
        preferences = preferences_from_conversations(
            records, name=title, tokenizer=tokenizer, prompt_column=prompt_column, **names
        )
    else:
        preferences = preferences_from_columns(
            records, name=title, prompt_column=prompt_column, **names
        )
    return preferences if tokenizer is None else _without_eos(preferences, tokenizer)


def _is_hub_name(source: str | Path) -> bool:
    text = str(source)
    if isinstance(source, Path) or Path(text).expanduser().exists():
        return False
    if text.startswith((".", "/", "~")) or text.lower().endswith(FILE_SUFFIXES):
        return False
    return HUB_NAME.fullmatch(text) is not None


def _layout_of(record: Record, prompt: str, chosen: str, rejected: str) -> Layout:
    values = record.values
    root = values.get("prompt")
    if isinstance(root, Mapping) and "replies" in root:
        return "trees"
    if {"message_id", "parent_id", "text", "role"} <= values.keys():
        return "messages"
    if chosen in values and rejected in values:
        if isinstance(values[chosen], list):
            return "conversations"
        if prompt in values:
            return "columns"
        if ASSISTANT in str(values[chosen]):
            return "dialogues"
    if any(toxic in values and neutral[0] in values for toxic, neutral in _REWRITES):
        return "rewrites"
    raise DataError(
        f"{record.where}: found the columns {', '.join(map(str, values)) or 'none'}; expected "
        f"{prompt}, {chosen} and {rejected} (texts or messages), HH dialogues in {chosen} and "
        f"{rejected}, OASST trees or messages, or toxic and neutral1 …; rename the columns or "
        f"pass their names"
    )


def _rewrite_columns(record: Record) -> tuple[str, tuple[str, ...]]:
    for toxic, neutral in _REWRITES:
        found = tuple(column for column in neutral if column in record.values)
        if toxic in record.values and found:
            return toxic, found
    return _REWRITES[0]


def _without_eos(preferences: PreferenceSet, tokenizer: PreTrainedTokenizerBase) -> PreferenceSet:
    pairs = [
        replace(
            pair,
            chosen=strip_eos(pair.chosen, tokenizer),
            rejected=strip_eos(pair.rejected, tokenizer),
        )
        for pair in preferences
    ]
    return PreferenceSet.from_pairs(pairs, name=preferences.name, dropped=preferences.dropped)
