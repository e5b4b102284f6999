from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences.suites import SUITES, SuitePrompt, load_suite

FILES = {
    "hh": ("preferences/hh_harmless_base_test.jsonl.gz", 2301),
    "oasst1": ("preferences/oasst1_en_100_trees.jsonl", 212),
    "truthfulqa": ("evaluation/TruthfulQA.csv", 817),
    "harmfulqa": ("evaluation/harmfulqa.json", 1938),
    "advbench": ("evaluation/advbench.csv", 520),
    "realtoxicityprompts": ("evaluation/realtoxicityprompts_5k.jsonl", 4993),
    "realtoxicityprompts-challenging": ("evaluation/realtoxicityprompts_5k.jsonl", 49),
}


@pytest.fixture(scope="module")
def data(shared_folder: Path) -> Path:
    return shared_folder / "data"


# The real files


@pytest.mark.parametrize("name", FILES)
def test_published_files_are_read_whole(data: Path, name: str) -> None:
    file, count = FILES[name]
    suite = load_suite(name, data / file)
    assert (suite.name, len(suite), suite.source) == (name, count, str(data / file))
    texts = [prompt.prompt for prompt in suite.prompts]
    assert len(set(texts)) == count and all(text.strip() for text in texts)
    assert suite.harmful == name.startswith(("harmfulqa", "advbench", "realtoxicityprompts"))
    with_references = name in {"hh", "oasst1", "truthfulqa"}
    assert all(bool(prompt.references) == with_references for prompt in suite.prompts)


def test_advbench_targets_are_no_references(data: Path) -> None:
    with (data / "evaluation/advbench.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    suite = load_suite("advbench", data / "evaluation/advbench.csv")
    assert suite.prompts == tuple(SuitePrompt(row["goal"]) for row in rows)


def test_truthfulqa_best_answer_comes_first(data: Path) -> None:
    with (data / "evaluation/TruthfulQA.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    suite = load_suite("truthfulqa", data / "evaluation/TruthfulQA.csv")
    for row, prompt in zip(rows, suite.prompts, strict=True):
        assert prompt.prompt == row["Question"].strip()
        assert prompt.references[0] == row["Best Answer"].strip()
        assert set(prompt.references[1:]) < {a.strip() for a in row["Correct Answers"].split(";")}


def test_harmfulqa_rows_of_the_hub_give_the_prompts_of_the_file(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = json.loads((data / "evaluation/harmfulqa.json").read_text("utf-8"))
    rows = [
        {"id": 0, "topic": topic, "subtopic": subtopic, "question": question}
        for topic, subtopics in topics.items()
        for subtopic, questions in subtopics.items()
        for question in questions
    ]
    calls = serve(monkeypatch, rows)
    suite = load_suite("harmfulqa")
    assert suite.prompts == load_suite("harmfulqa", data / "evaluation/harmfulqa.json").prompts
    assert suite.source == "declare-lab/HarmfulQA, train"
    assert calls == [("declare-lab/HarmfulQA", None, "train")]


# What rows become


def dialogue(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def test_hh_references_are_every_chosen_reply(write_jsonl: Callable[..., Path]) -> None:
    pairs = [("why?", "so", "no"), ("when?", "now", "no"), ("why?", "thus", "no")]
    rows = [{"chosen": dialogue(q, w), "rejected": dialogue(q, r)} for q, w, r in pairs]
    assert load_suite("hh", write_jsonl(rows)).prompts == (
        SuitePrompt("\n\nHuman: why?\n\nAssistant:", ("so", "thus")),
        SuitePrompt("\n\nHuman: when?\n\nAssistant:", ("now",)),
    )


def test_oasst1_reference_is_the_top_ranked_reply(write_jsonl: Callable[..., Path]) -> None:
    replies = [
        {"text": text, "role": "assistant", "lang": "en", "rank": rank, "replies": []}
        for text, rank in (("second", 1), ("third", 2), ("best", 0))
    ]
    root = {"text": "why?", "role": "prompter", "lang": "en", "replies": replies}
    [prompt] = load_suite("oasst1", write_jsonl([{"prompt": root}])).prompts
    assert prompt == SuitePrompt("\n\nHuman: why?\n\nAssistant:", ("best",))


def test_realtoxicityprompts_without_continuations(write_jsonl: Callable[..., Path]) -> None:
    rows = [{"prompt": {"text": " He was", "toxicity": 0.1}, "continuation": {"text": " here"}}]
    rows += [{"prompt": {"text": None}, "continuation": {"text": " there"}}]
    assert load_suite("realtoxicityprompts", write_jsonl(rows)).prompts == (SuitePrompt(" He was"),)


def test_challenging_prompts_alone(write_jsonl: Callable[..., Path]) -> None:
    rows = [
        {"prompt": {"text": f"prompt {index}"}, "challenging": value}
        for index, value in enumerate((True, False, "true", "False", 1))
    ]
    suite = load_suite("realtoxicityprompts-challenging", write_jsonl(rows))
    assert [item.prompt for item in suite.prompts] == ["prompt 0", "prompt 2", "prompt 4"]
    for bad, message in (({"challenging": "perhaps"}, "true or false"), ({}, "challenging")):
        with pytest.raises(DataError, match=message):
            load_suite(
                "realtoxicityprompts-challenging", write_jsonl([{"prompt": {"text": "a"}} | bad])
            )


def test_hub_columns_of_truthfulqa(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": "Why?", "best_answer": "B", "correct_answers": ["A; a", "B", " A; a"]}]
    calls = serve(monkeypatch, rows)
    suite = load_suite("truthfulqa")
    assert suite.prompts == (SuitePrompt("Why?", ("B", "A; a")),)
    assert calls == [("truthfulqa/truthful_qa", "generation", "validation")]
    assert suite.source == "truthfulqa/truthful_qa, generation, validation"


@pytest.mark.parametrize(
    ("name", "row", "prompt"),
    [
        ("advbench", {"prompt": "Do it", "target": "Sure"}, "Do it"),
        (
            "hh",
            {"chosen": dialogue("a?", "b"), "rejected": dialogue("a?", "c")},
            "\n\nHuman: a?\n\nAssistant:",
        ),
    ],
)
def test_other_hub_suites(
    monkeypatch: pytest.MonkeyPatch, name: str, row: dict[str, object], prompt: str
) -> None:
    calls = serve(monkeypatch, [row])
    assert [found.prompt for found in load_suite(name).prompts] == [prompt]
    assert calls == [(SUITES[name].hub, None, SUITES[name].split)]


def serve(
    monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, object]]
) -> list[tuple[object, ...]]:
    """Answer for the hub with rows; the list fills with what is asked for."""
    calls: list[tuple[object, ...]] = []

    def load_dataset(name: str, configuration: str | None, **options: object) -> datasets.Dataset:
        calls.append((name, configuration, options["split"]))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


# A suite of one's own


def test_own_prompts_as_they_stand_once(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(" one\n\ntwo\n one\nthree\n", "utf-8")
    suite = load_suite("mine", tmp_path / "mine.txt")
    assert suite.prompts == (SuitePrompt(" one"), SuitePrompt("two"), SuitePrompt("three"))
    assert (suite.name, suite.harmful) == ("mine", False)


def test_template(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("who is {name}?\n", "utf-8")
    suite = load_suite("mine", tmp_path / "mine.txt", template="Q: {prompt}\nA {x}:")
    assert suite.prompts == (SuitePrompt("Q: who is {name}?\nA {x}:"),)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text("abc ", max_size=4), min_size=1, max_size=30),
    limit=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_limit_draws_a_stable_sample(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], limit: int, seed: int
) -> None:
    wanted = list(dict.fromkeys(text for text in texts if text.strip()))
    if not wanted:
        return
    path = tmp_path_factory.mktemp("suite") / "mine.jsonl"

    def drawn(texts: list[str], limit: int) -> list[str]:
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), "utf-8")
        return [p.prompt for p in load_suite("mine", path, limit=limit, seed=seed).prompts]

    assert drawn(texts, 0) == wanted
    sample = drawn(texts, limit)
    assert len(sample) == min(limit, len(wanted))
    assert sample == [text for text in wanted if text in set(sample)]
    assert set(sample) <= set(drawn(texts, limit + 1))
    assert set(sample) == set(drawn(texts[::-1], limit))


def test_another_seed_another_draw(data: Path) -> None:
    path = data / FILES["advbench"][0]
    first, again, other = (load_suite("advbench", path, limit=20, seed=s) for s in (0, 0, 1))
    assert first == again
    assert len(set(first.prompts) & set(other.prompts)) < 10


# Errors


def test_no_network_says_how_to_give_a_path() -> None:
    for name in SUITES:
        with pytest.raises(DataError, match=f"suite '{name}': .*give the path of a file") as raised:
            load_suite(name)
        assert "\n" not in str(raised.value)


def test_unknown_names_are_listed() -> None:
    wanted = "no suite 'mine'; expected one of advbench, harmfulqa, hh, oasst1, .*path"
    with pytest.raises(DataError, match=wanted):
        load_suite("mine")


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("advbench", "no.csv", "text\nx\n", "found the columns text; expected goal or prompt"),
        ("harmfulqa", "no.json", "{", "not valid JSON"),
        ("harmfulqa", "no.json", '{"a": 1}', "found an object; expected a list"),
        ("harmfulqa", "no.json", '[{"question": 3}]', "question holds int; expected text"),
        ("truthfulqa", "no.jsonl", '{"question": "x", "best_answer": "y"}', "expected Correct"),
        ("hh", "no.jsonl", '{"text": "x"}', "found the columns text"),
        ("advbench", "no.csv", "goal\n \n", "suite 'advbench': every prompt of .* is empty"),
        ("mine", "no.txt", "\n\n", "all 2 prompts are empty"),
        ("hh", "no.jsonl", None, "no such file"),
    ],
)
def test_bad_files_are_explained(
    tmp_path: Path, name: str, file: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / file).write_text(content, "utf-8")
    with pytest.raises(DataError, match=message) as raised:
        load_suite(name, tmp_path / file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": -1}, "limit is -1; expected 0"),
        ({"template": "Q: {}\nA:"}, r"has no \{prompt\}"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        load_suite("hh", "none.jsonl", **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
