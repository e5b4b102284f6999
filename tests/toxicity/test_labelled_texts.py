from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.toxicity.labelled_texts import (
    JIGSAW_HUB,
    PARADETOX_HUB,
    group_numbers,
    label_by_scorer,
    load_labelled_texts,
    read_labelled_texts,
    save_labelled_texts,
)
from dsteer_tl.toxicity.types import LabelledText

REWRITES = [
    ('a stupid "plan" this', ["a poor plan", "a weak plan", ""]),
    ("he is dumb", ["he is wrong", "", ""]),
    ("A STUPID  plan", ["a weak plan", "He is Dumb", ""]),
]


@dataclass
class Scorer:
    """Gives every text the number that it spells."""

    reason: str = ""
    name: str = "spelled"
    source: str = ""

    def obstacle(self) -> str:
        return self.reason

    def score(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([float(text) for text in texts])

    def words(self) -> frozenset[str]:
        return frozenset()


def serve(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, object]]) -> list[object]:
    """Answer for the hub with rows; the list fills with what is asked for."""
    calls: list[object] = []

    def load_dataset(name: str, configuration: str | None, **options: object) -> datasets.Dataset:
        calls.append((name, configuration, options["split"]))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.fixture
def paradetox(tmp_path: Path) -> Path:
    lines = ["toxic\tneutral1\tneutral2\tneutral3"]
    lines += ["\t".join((toxic, *neutral)) for toxic, neutral in REWRITES]
    path = tmp_path / "paradetox.tsv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: object) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return write


# ParaDetox


def test_paradetox_keeps_a_text_and_its_rewrites_together(paradetox: Path) -> None:
    texts = load_labelled_texts("paradetox", paradetox)
    assert texts == (
        LabelledText('a stupid "plan" this', True, 0),
        LabelledText("a poor plan", False, 0),
        LabelledText("a weak plan", False, 0),  # the second time it is a repetition
        LabelledText("he is wrong", False, 1),
        LabelledText("A STUPID  plan", True, 2),
    )  # "he is dumb" comes with both labels


def test_paradetox_of_the_hub(monkeypatch: pytest.MonkeyPatch, paradetox: Path) -> None:
    rows: list[dict[str, object]] = [
        {"en_toxic_comment": toxic, "en_neutral_comment": text}
        for toxic, neutral in REWRITES
        for text in neutral
        if text
    ]
    calls = serve(monkeypatch, rows)
    found = load_labelled_texts("paradetox")
    assert found == load_labelled_texts("paradetox", paradetox)
    assert calls == [(PARADETOX_HUB, None, "train")]


def test_paradetox_as_published(shared_folder: Path) -> None:
    path = shared_folder / "data/preferences/paradetox.tsv"
    texts = load_labelled_texts("paradetox", path)
    counts = Counter(text.label for text in texts)
    assert 11_700 < counts[True] <= 11_935 and 18_500 < counts[False] <= 19_743
    folded = [" ".join(text.text.casefold().split()) for text in texts]
    assert all(folded) and len(set(folded)) == len(folded)
    drawn = load_labelled_texts("paradetox", path, limit=400, seed=1)
    assert 395 <= len(drawn) <= 400
    sizes, whole = Counter(t.group for t in drawn), Counter(t.group for t in texts)
    assert all(count == whole[group] for group, count in sizes.items())


# Jigsaw and RealToxicityPrompts


def test_jigsaw_file_and_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.csv").write_text(
        'id,comment_text,toxic,severe_toxic\n1,"You ""fool"",\ngo",1,0\n2,Thanks,0,0\n3, ,0,0\n',
        "utf-8",
    )
    expected = (LabelledText('You "fool",\ngo', True), LabelledText("Thanks", False))
    assert load_labelled_texts("jigsaw", tmp_path / "train.csv") == expected
    rows: list[dict[str, object]] = [
        {"comment_text": text.text, "toxic": int(text.label)} for text in expected
    ]
    calls = serve(monkeypatch, rows)
    assert load_labelled_texts("jigsaw") == expected
    assert calls == [(JIGSAW_HUB, None, "train")]


def test_unlabelled_rows_are_no_negatives(tmp_path: Path) -> None:
    # The competition's test labels hold −1 where nobody was asked.
    (tmp_path / "test.csv").write_text("comment_text,toxic\nHello,-1\n", "utf-8")
    with pytest.raises(DataError, match=r"test\.csv, line 2: toxic holds '-1'; expected 1 or true"):
        load_labelled_texts("jigsaw", tmp_path / "test.csv")


def test_realtoxicityprompts_are_toxic_from_a_half_on(write_rows: Callable[..., Path]) -> None:
    rows = [("calm", 0.49), ("harsh", 0.5), ("unknown", None), ("cruel", 1)]
    path = write_rows(
        *(
            {
                "prompt": {"text": text, "toxicity": toxicity},
                "continuation": {"text": "x", "toxicity": 0.9},
            }
            for text, toxicity in rows
        )
    )
    assert load_labelled_texts("realtoxicityprompts", path) == (
        LabelledText("calm", False),
        LabelledText("harsh", True),
        LabelledText("cruel", True),
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [({"text": "a"}, "found the columns text"), ({"text": "a", "toxicity": "high"}, "a number")],
)
def test_realtoxicityprompts_without_toxicity(
    write_rows: Callable[..., Path], prompt: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_labelled_texts("realtoxicityprompts", write_rows({"prompt": prompt}))


def test_realtoxicityprompts_as_published(shared_folder: Path) -> None:
    path = shared_folder / "data/evaluation/realtoxicityprompts_5k.jsonl"
    counts = Counter(text.label for text in load_labelled_texts("realtoxicityprompts", path))
    assert 1_240 <= counts[True] <= 1_249 and sum(counts.values()) > 4_950


# Files of one's own


def test_own_file_with_groups(write_rows: Callable[..., Path]) -> None:
    path = write_rows(
        {"text": "one", "label": 1, "group": "a"},
        {"text": "two", "label": False, "group": "b"},
        {"text": "three", "label": "True", "group": "a"},
        {"text": "four", "label": "0", "group": ""},
        {"text": None, "label": 0, "group": None},
        {"text": "five", "label": 1.0, "group": None},
    )
    assert load_labelled_texts("mine", path) == (
        LabelledText("one", True, 0),
        LabelledText("two", False, 1),
        LabelledText("three", True, 0),
        LabelledText("four", False),
        LabelledText("five", True),
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "expected label"),
        ({"label": 1}, "expected text"),
        ({"text": "a", "label": "maybe"}, "label holds 'maybe'"),
        ({"text": "a", "label": 0.5}, "label holds 0.5"),
        ({"text": 3, "label": 1}, "text holds int"),
    ],
)
def test_rows_that_say_nothing_are_refused(
    write_rows: Callable[..., Path], row: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_labelled_texts("mine", write_rows(row))


def test_unknown_names_and_limits(paradetox: Path) -> None:
    with pytest.raises(DataError, match="expected one of paradetox, jigsaw"):
        load_labelled_texts("mine")
    with pytest.raises(ConfigurationError, match="limit is -1"):
        load_labelled_texts("paradetox", paradetox, limit=-1)
    with pytest.raises(DataError, match="no such file"):
        load_labelled_texts("jigsaw", paradetox.with_name("none.csv"))


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    for name, hub in (("jigsaw", JIGSAW_HUB), ("paradetox", PARADETOX_HUB)):
        with pytest.raises(DataError, match=f"{hub}.*give the path"):
            load_labelled_texts(name)


def test_smaller_draws_are_parts_of_larger_ones(write_rows: Callable[..., Path]) -> None:
    rows = [{"text": f"text {i}", "label": i % 2, "group": i // 3} for i in range(60)]
    path = write_rows(*rows)
    all_of_them = load_labelled_texts("mine", path)
    draws = [load_labelled_texts("mine", path, limit=limit) for limit in (7, 20, 59, 60, 99)]
    assert [len(draw) for draw in draws] == [6, 18, 57, 60, 60]
    for small, large in pairwise(draws):
        assert set(small) <= set(large)
    assert list(draws[1]) == [text for text in all_of_them if text in draws[1]]  # in their order
    assert len({text.group for text in draws[1]}) == 6  # whole groups
    assert load_labelled_texts("mine", path, limit=20, seed=1) != draws[1]
    turned = load_labelled_texts("mine", write_rows(*reversed(rows)), limit=20)
    assert {text.text for text in turned} == {text.text for text in draws[1]}


# Labels by a scorer


def test_margin_decides_what_has_a_label() -> None:
    texts = ["0.3", "0.31", "0.5", "0.69", "0.7", "1", "0", "0.7", " "]
    assert label_by_scorer(texts[:-1], Scorer(), 0.2) == (
        LabelledText("0.3", False),
        LabelledText("0.7", True),
        LabelledText("1", True),
        LabelledText("0", False),
    )
    assert [text.label for text in label_by_scorer(texts[:-1], Scorer(), 0.0)] == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]
    assert label_by_scorer(["0.9", "1"], Scorer(), 0.5) == (LabelledText("1", True),)


def test_a_scorer_that_cannot_run_labels_nothing() -> None:
    with pytest.raises(DataError, match="labelled by spelled: no weights"):
        label_by_scorer(["1"], Scorer(reason="no weights"), 0.2)
    with pytest.raises(ConfigurationError, match=r"label margin is 0\.6"):
        label_by_scorer(["1"], Scorer(), 0.6)


# Groups and files


def test_group_numbers() -> None:
    groups = [None, 4, None, 0, 4, 2]
    texts = [LabelledText(str(row), True, group) for row, group in enumerate(groups)]
    assert group_numbers(texts).tolist() == [0, 1, 2, 3, 1, 4]
    assert group_numbers([]).shape == (0,)


def test_saved_texts_come_back(tmp_path: Path) -> None:
    texts = (
        LabelledText('quoted "text"\nof two lines', True, 3),
        LabelledText("naïve — ✓", False, 3),
        LabelledText("same", True),
        LabelledText("same", False, 5),
    )
    save_labelled_texts(texts, tmp_path / "labels.jsonl")
    found = read_labelled_texts(tmp_path / "labels.jsonl")
    assert [(t.text, t.label) for t in found] == [(t.text, t.label) for t in texts]
    assert group_numbers(found).tolist() == group_numbers(texts).tolist()
    before = (tmp_path / "labels.jsonl").read_bytes()
    save_labelled_texts(found, tmp_path / "again.jsonl")
    save_labelled_texts(read_labelled_texts(tmp_path / "again.jsonl"), tmp_path / "third.jsonl")
    assert (tmp_path / "third.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert before.count(b"\n") == 4


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text('{"text": "a", "label": true}\n{"te', "utf-8")
    with pytest.raises(DataError, match=r"labels\.jsonl, line 2"):
        read_labelled_texts(tmp_path / "labels.jsonl")
