from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences import PreferencePair, load_preferences
from dsteer_tl.preferences.tables import common_beginning

COLUMNS = [{"prompt": "p", "chosen": " a", "rejected": " b"}]


def flatten(message: dict[str, Any], tree: str, parent: str | None) -> Iterator[dict[str, Any]]:
    """A tree as the hub's flat messages."""
    keys = ("message_id", "text", "role", "lang", "deleted", "review_result")
    flat = {key: message[key] for key in keys}
    yield {**flat, "rank": message.get("rank"), "parent_id": parent, "message_tree_id": tree}
    for reply in message["replies"]:
        yield from flatten(reply, tree, message["message_id"])


# Anthropic HH


@pytest.mark.parametrize(
    ("file", "rows", "dropped"),
    [
        ("hh_harmless_base_test", 2312, {"differing prompts": 5, "empty chosen": 4}),
        (
            "hh_helpful_base_test",
            2354,
            {"differing prompts": 9, "identical chosen and rejected": 2, "empty rejected": 4},
        ),
    ],
)
def test_hh_files_are_read_whole(
    preference_folder: Path, file: str, rows: int, dropped: dict[str, int]
) -> None:
    preferences = load_preferences(preference_folder / f"{file}.jsonl.gz")
    assert preferences.name == file
    assert preferences.dropped == dropped
    assert len(preferences) + sum(dropped.values()) == rows
    assert all(p.prompt.startswith("\n\nHuman:") for p in preferences)
    assert all(p.prompt.endswith("\n\nAssistant:") for p in preferences)
    assert all("\n\nHuman:" not in p.chosen + p.rejected for p in preferences)
    split = preferences.split(0.2, 0)
    assert not set(split.train.prompts) & set(split.held_out.prompts)


def test_hh_prompt_and_completions_join_to_the_dialogues(preference_folder: Path) -> None:
    path = preference_folder / "hh_harmless_base_test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        wholes = {(row["chosen"], row["rejected"]) for row in map(json.loads, file)}
    preferences = load_preferences(path)
    assert all((p.prompt + p.chosen, p.prompt + p.rejected) in wholes for p in preferences)


def test_hh_dialogue_is_cut_at_its_last_answer(write_jsonl: Callable[..., Path]) -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: well?\n\nAssistant:"
    rows = [
        {"chosen": start + " yes", "rejected": start + " no"},
        {"chosen": start + " yes", "rejected": start.replace("well", "so") + " no"},
        {"chosen": start + " yes\n\nHuman: ok", "rejected": start + " no"},
    ]
    preferences = load_preferences(write_jsonl(rows))
    assert list(preferences) == [PreferencePair(start, " yes", " no", source="rows")]
    assert preferences.dropped == {"differing prompts": 1, "no final answer of the assistant": 1}


# OASST1


def test_oasst_trees_give_every_ranked_pair(preference_folder: Path) -> None:
    preferences = load_preferences(preference_folder / "oasst1_en_100_trees.jsonl")
    assert len(preferences) == 754
    assert preferences.dropped == {}
    assert max(prompt.count("\n\nHuman:") for prompt in preferences.prompts) > 1
    assert all(prompt.endswith("\n\nAssistant:") for prompt in preferences.prompts)


def test_oasst_messages_of_the_hub_give_the_pairs_of_the_trees(
    preference_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = preference_folder / "oasst1_en_100_trees.jsonl"
    with path.open(encoding="utf-8") as file:
        trees = [json.loads(line) for line in file]
    rows = [m for tree in trees for m in flatten(tree["prompt"], tree["message_tree_id"], None)]
    calls = []

    def load_dataset(*args: object, **kwargs: object) -> datasets.Dataset:
        calls.append((args, kwargs))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    preferences = load_preferences("OpenAssistant/oasst1", hub_split="validation")
    assert calls == [(("OpenAssistant/oasst1", None), {"data_dir": None, "split": "validation"})]
    wanted = load_preferences(path)
    assert [(p.prompt, p.chosen, p.rejected) for p in preferences] == [
        (p.prompt, p.chosen, p.rejected) for p in wanted
    ]


def answer(text: str, rank: int | None, **other: object) -> dict[str, object]:
    return {"text": text, "role": "assistant", "lang": "en", "rank": rank, "replies": [], **other}


def test_oasst_rank_decides_and_the_unusable_is_left_out(write_jsonl: Callable[..., Path]) -> None:
    replies = [
        answer("second", 1),
        answer("best", 0),
        answer("unranked", None),
        answer("deleted", 2, deleted=True),
        answer("failed review", 3, review_result=False),
        answer("zweite", 4, lang="de"),
    ]
    question = {"text": "why?", "role": "prompter", "lang": "en", "replies": replies}
    path = write_jsonl([{"message_tree_id": "1", "prompt": question}])
    preferences = load_preferences(path)
    assert [(p.prompt, p.chosen, p.rejected) for p in preferences] == [
        ("\n\nHuman: why?\n\nAssistant:", " best", " second")
    ]
    assert preferences.dropped == {"other language": 2}
    assert len(load_preferences(path, language=None)) == 3


def test_oasst_message_without_parent_is_counted(write_jsonl: Callable[..., Path]) -> None:
    root = {"message_id": "r", "parent_id": None, "text": "q", "role": "prompter", "lang": "en"}
    rows = [
        {**answer("bad", 1), "message_id": "b", "parent_id": "r"},
        {**answer("good", 0), "message_id": "a", "parent_id": "r"},
        {**answer("lost", 0), "message_id": "c", "parent_id": "gone"},
        root,
    ]
    preferences = load_preferences(write_jsonl(rows), layout="messages")
    assert [p.chosen for p in preferences] == [" good"]
    assert preferences.dropped == {"message whose parent is missing": 1}


# Rewrites


def test_paradetox_accounts_for_every_rewrite(preference_folder: Path) -> None:
    path = preference_folder / "paradetox.tsv"
    preferences = load_preferences(path)
    dropped = dict(preferences.dropped)
    assert dropped.pop("no rewrite") == 5
    assert dropped["broken row"] == 13
    assert len(preferences) + sum(dropped.values()) == 19_743
    assert len(preferences) == 3584
    with path.open(encoding="utf-8", newline="") as file:
        toxic = {row[0].strip() for row in csv.reader(file, delimiter="\t", quoting=3) if row}
    assert all(pair.prompt + pair.rejected in toxic for pair in preferences)
    split = preferences.split(0.2, 0)
    wholes = [{p.prompt + p.rejected for p in side} for side in (split.train, split.held_out)]
    assert not wholes[0] & wholes[1]


def test_paradetox_with_a_prompt_for_the_rest(preference_folder: Path) -> None:
    path = preference_folder / "paradetox.tsv"
    preferences = load_preferences(path, fallback_prompt="Comment:")
    assert "no common beginning" not in preferences.dropped
    rest = [p for p in preferences if p.prompt == "Comment:"]
    assert len(rest) > 15_000
    assert all(p.chosen.startswith(" ") and p.rejected.startswith(" ") for p in rest)
    fixed = load_preferences(path, fixed_prompt="Comment:")
    assert set(fixed.prompts) == {"Comment:"}
    split = fixed.split(0.2, 0, group_by="rejected")
    assert abs(len(split.held_out) / len(fixed) - 0.2) < 0.01


@pytest.mark.parametrize(
    ("texts", "beginning"),
    [
        (["it is bad", "it is good"], "it is"),
        (["it is bad", "it isnt"], "it"),
        (["it", "it is"], "it"),
        (["a", "b"], ""),
        (["item", "it"], ""),
        (["x  y", "x  z"], "x"),
    ],
)
def test_common_beginning_is_whole_words(texts: list[str], beginning: str) -> None:
    assert common_beginning(texts) == beginning


# Columns


def test_columns_are_the_same_from_every_kind_of_file(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"q": ["p1\n", 'p"2'], "good": [" a, b", " c"], "bad": [" d", " e"], "extra": [1, 2]}
    )
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    frame.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "x.json", orient="records")
    frame.to_json(tmp_path / "x.jsonl.gz", orient="records", lines=True)
    sets = [
        load_preferences(
            str(tmp_path / file), prompt_column="q", chosen_column="good", rejected_column="bad"
        )
        for file in ("x.csv", "x.parquet", "x.jsonl", "x.json", "x.jsonl.gz")
    ]
    assert list(sets[0]) == [
        PreferencePair("p1\n", " a, b", " d", source="x"),
        PreferencePair('p"2', " c", " e", source="x"),
    ]
    assert all(other == sets[0] for other in sets)


def test_null_completions_are_counted_as_empty(write_jsonl: Callable[..., Path]) -> None:
    rows = [*COLUMNS, {"prompt": "p", "chosen": None, "rejected": " b"}]
    assert load_preferences(write_jsonl(rows)).dropped == {"empty chosen": 1}


def test_a_tokenizer_takes_the_end_of_sequence_off(
    write_jsonl: Callable[..., Path], gpt2_tokenizer: Any
) -> None:
    rows = [{"prompt": "p", "chosen": " a<|endoftext|>\n", "rejected": " b "}]
    (pair,) = load_preferences(write_jsonl(rows), tokenizer=gpt2_tokenizer)
    assert (pair.chosen, pair.rejected) == (" a", " b ")


# The hub


def test_hub_folder_and_configuration_are_passed_on(
    preference_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = preference_folder / "hh_harmless_base_test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:50]
    calls = []

    def load_dataset(*args: object, **kwargs: object) -> datasets.Dataset:
        calls.append((args, kwargs))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    preferences = load_preferences("Anthropic/hh-rlhf:harmless-base", hub_split="test")
    assert calls == [(("Anthropic/hh-rlhf", None), {"data_dir": "harmless-base", "split": "test"})]
    assert preferences.name == "Anthropic/hh-rlhf:harmless-base"
    assert len(preferences) + sum(preferences.dropped.values()) == 50


def test_hub_failure_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: object, **kwargs: object) -> datasets.Dataset:
        raise ConnectionError("Couldn't reach the Hub\nwith details")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as error:
        load_preferences("owner/name")
    assert "hub data set owner/name, split train: could not be loaded" in str(error.value)
    assert "ConnectionError: Couldn't reach the Hub); check the name" in str(error.value)


# Errors


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("missing.jsonl", None, "no such file"),
        ("empty.jsonl", "", "the file is empty"),
        ("blank.jsonl", "\n\n", "the file holds no rows"),
        ("bad.jsonl", '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt"', r"line 2: not"),
        ("list.jsonl", "[1]\n", "line 1: found a list; expected a JSON object"),
        ("object.json", "{}", "found an object; expected a list"),
        ("broken.json", "{", "not valid JSON"),
        ("x.jsonl", '{"a": 1, "b": 2}\n', "found the columns a, b; expected prompt, chosen and"),
        ("y.jsonl", '{"chosen": "a", "rejected": "b"}\n', "found the columns chosen, rejected"),
        ("x.csv", "prompt,chosen,rejected\np,a,b,c\n", "line 2: found 4 columns; expected the 3"),
        ("z.csv", "prompt,chosen,rejected\n", "the file holds no rows"),
        ("x.parquet", "not parquet", "not a readable parquet file"),
        ("x.jsonl.gz", "not compressed", "cannot be read"),
        ("x.xlsx", "?", r"files ending in \.xlsx are not read"),
        (
            "number.jsonl",
            '{"prompt": "p", "chosen": 1, "rejected": "b"}\n',
            "line 1: chosen holds int; expected text",
        ),
        (
            "same.jsonl",
            '{"prompt": "p", "chosen": "b", "rejected": "b"}\n',
            "same: no usable pair is left .dropped: 1 identical chosen and rejected",
        ),
    ],
)
def test_bad_files_are_explained(
    tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        load_preferences(tmp_path / file)
    assert "\n" not in str(error.value)


def test_a_later_row_without_its_columns_is_named(write_jsonl: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"line 2: found the columns prompt; expected chosen"):
        load_preferences(write_jsonl([*COLUMNS, {"prompt": "p"}]))


def test_bytes_that_are_not_utf8_are_explained(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match="expected UTF-8"):
        load_preferences(tmp_path / "x.jsonl")


@pytest.mark.parametrize("source", ["data/missing.jsonl", "./owner/name", "~/none", "one word"])
def test_what_is_no_hub_name_is_a_path(source: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_preferences(source)


def test_folders_and_unknown_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is a folder"):
        load_preferences(tmp_path)
    with pytest.raises(ConfigurationError, match="layout is 'hh'; expected one of auto, dialogues"):
        load_preferences(tmp_path, layout="hh")  # type: ignore[arg-type]
