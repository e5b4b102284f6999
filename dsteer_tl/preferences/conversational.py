"""Pairs from lists of messages, TRL's conversational format, through a chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dsteer_tl.errors import DataError
from dsteer_tl.preferences.preference_set import PreferencePair, PreferenceSet
from dsteer_tl.preferences.records import Record, missing_columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


def preferences_from_conversations(
    records: Iterable[Record],
    *,
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
) -> PreferenceSet:
    """Pairs from rows whose chosen and rejected are lists of {"role", "content"}.

    The prompt is a list of messages too, or implicit: then chosen and rejected are whole
    conversations, and what they share before the last answer is the prompt (a text in the prompt
    column, as some hub sets have it, is ignored). The tokenizer's chat template renders the
    prompt with its generation prompt; a completion is what the template adds for the answer. The
    beginning-of-sequence text is cut from the prompt, because tokenising adds that token, and the
    end-of-sequence text from the completions, because training adds that one.

    Args:
        records: the rows.
        name: what reports call the set.
        tokenizer: a tokenizer with a chat template.
        prompt_column: column of the prompt; may be absent.
        chosen_column: column of the preferred messages.
        rejected_column: column of the other messages.

    Raises:
        DataError: there is no chat template, it refuses a conversation, messages are malformed, or
            nothing usable is left.
    """
    dropped: Counter[str] = Counter()
    pairs = []
    for record in records:
        columns = (chosen_column, rejected_column)
        if any(column not in record.values for column in columns):
            raise DataError(missing_columns(record, columns))
        chosen, rejected = (_messages(record, column) for column in columns)
        if isinstance(record.values.get(prompt_column), list):
            prompt = _messages(record, prompt_column)
            chosen, rejected = (_without_prompt(prompt, m) for m in (chosen, rejected))
        else:
            prompt, chosen, rejected = _implicit_prompt(chosen, rejected)
            if prompt and not chosen and not rejected:
                dropped["identical chosen and rejected"] += 1
                continue
        if not prompt or not chosen or not rejected:
            dropped["differing prompts"] += 1
            continue
        template = _require_template(tokenizer, record.where)
        text = _render(template, prompt, record.where, generation=True)
        completions = []
        for messages in (chosen, rejected):
            whole = _render(template, [*prompt, *messages], record.where, generation=False)
            if not whole.startswith(text):
                raise DataError(
                    f"{record.where}: the chat template writes the prompt differently once an "
                    f"answer follows, so prompt and completion cannot be told apart; use another "
                    f"template, or render the texts and give them as columns"
                )
            completions.append(strip_eos(whole[len(text) :], template))
        bos = template.bos_token
        if isinstance(bos, str):
            text = text.removeprefix(bos)
        pairs.append(PreferencePair(text, completions[0], completions[1], source=name))
    return PreferenceSet.from_pairs(pairs, name=name, dropped=dropped)


def strip_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Cut the text of the end-of-sequence token, and white space after it, from a completion."""
    eos = tokenizer.eos_token
    if isinstance(eos, str) and eos and text.rstrip().endswith(eos):
        return text.rstrip().removesuffix(eos)
    return text


def _messages(record: Record, column: str) -> list[Message]:
    value = record.values[column]
    if isinstance(value, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in value
    ):
        return [{"role": m["role"], "content": m["content"]} for m in value]
    raise DataError(
        f"{record.where}: {column} is not a list of messages; expected "
        f'[{{"role": …, "content": text}}, …]'
    )


def _without_prompt(prompt: list[Message], messages: list[Message]) -> list[Message]:
    """Answers alone, where a row repeats the prompt in them."""
    return messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages


def _implicit_prompt(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """What both conversations share, and the answers after it; no prompt where a human parts."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    answers = chosen[shared:], rejected[shared:]
    if any(answers) and not all(rest and rest[0]["role"] == "assistant" for rest in answers):
        return [], *answers
    return chosen[:shared], *answers


def _require_template(
    tokenizer: PreTrainedTokenizerBase | None, where: str
) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise DataError(
            f"{where}: found lists of messages, which need a tokenizer with a chat template; pass "
            f"tokenizer="
        )
    if not tokenizer.chat_template:
        raise DataError(
            f"{where}: found lists of messages, but the tokenizer has no chat template; set "
            f"tokenizer.chat_template, or render the texts and give them as columns"
        )
    return tokenizer


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], where: str, *, generation: bool
) -> str:
    from jinja2 import TemplateError

    conversation: list[dict[str, Any]] = [dict(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=generation
        )
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{where}: the chat template refuses the roles {roles} ({error}); expected a "
            f"conversation that the template can write"
        ) from error
    return str(text)
