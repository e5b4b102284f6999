from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsteer_tl.errors import DataError
from dsteer_tl.preferences import Record, load_preferences, preferences_from_conversations

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('no late system') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
USER = {"role": "user", "content": "hi"}
GOOD = {"role": "assistant", "content": "hello"}
BAD = {"role": "assistant", "content": "no"}
MORE = {"role": "user", "content": "and?"}


@pytest.fixture
def tokenizer(stories_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(stories_tokenizer, "chat_template", TEMPLATE)
    return stories_tokenizer


def read(rows: list[dict[str, Any]], tokenizer: Any) -> Any:
    records = [Record(row, f"row {i}") for i, row in enumerate(rows)]
    return preferences_from_conversations(records, name="toy", tokenizer=tokenizer)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_every_form_renders_the_same_pair(row: dict[str, Any], tokenizer: Any) -> None:
    (pair,) = read([row], tokenizer)
    assert pair.prompt == "<user>hi\n<assistant>"
    assert (pair.chosen, pair.rejected) == ("hello", "no")
    ids = tokenizer(pair.prompt)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_earlier_answers_stay_in_the_prompt(tokenizer: Any) -> None:
    rows = [{"chosen": [USER, GOOD, MORE, GOOD], "rejected": [USER, GOOD, MORE, BAD]}]
    (pair,) = read(rows, tokenizer)
    assert pair.prompt == "<user>hi\n<assistant>hello</s>\n<user>and?\n<assistant>"


def test_conversations_that_part_at_a_human_turn_are_counted(tokenizer: Any) -> None:
    rows = [
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [MORE, BAD]},
        {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, MORE, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, GOOD, MORE, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, GOOD]},
    ]
    preferences = read(rows, tokenizer)
    assert len(preferences) == 1
    assert preferences.dropped == {"differing prompts": 3, "identical chosen and rejected": 1}


def test_files_of_conversations_are_recognised(
    write_jsonl: Callable[..., Path], tokenizer: Any
) -> None:
    path = write_jsonl([{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}])
    (pair,) = load_preferences(path, tokenizer=tokenizer)
    assert pair.chosen == "hello"
    with pytest.raises(DataError, match=r"line 1: found lists of messages.*pass tokenizer="):
        load_preferences(path)


def test_a_missing_template_is_named(gpt2_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"row 0: .*the tokenizer has no chat template"):
        read([{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}], gpt2_tokenizer)


def test_a_refusing_template_is_quoted(tokenizer: Any) -> None:
    late = {"role": "system", "content": "x"}
    with pytest.raises(DataError, match=r"refuses the roles user, system \(no late system\)"):
        read([{"prompt": [USER, late], "chosen": [GOOD], "rejected": [BAD]}], tokenizer)


def test_a_template_that_rewrites_the_prompt_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages | length }}")
    with pytest.raises(DataError, match="row 0: the chat template writes the prompt differently"):
        read([{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}], tokenizer)


@pytest.mark.parametrize("chosen", ["text", [{"role": "assistant"}], [1]])
def test_malformed_messages_are_named(chosen: object, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="row 0: chosen is not a list of messages"):
        read([{"prompt": [USER], "chosen": chosen, "rejected": [BAD]}], tokenizer)
