"""Probes on disk against probes in memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset, IterableDataset

from dsteer_tl import positions
from dsteer_tl.errors import ConfigurationError, DataError, RunError
from dsteer_tl.positions import Probe, probes_from_prompts
from dsteer_tl.preferences import load_prompts
from dsteer_tl.streaming import probe_table
from dsteer_tl.streaming.probe_table import ProbeTable, probe_table_from_prompts, prompt_number
from dsteer_tl.streaming.prompt_streams import prompt_batches
from tests.models import tiny_tokenizer

#: What readers of tables like to change: numbers, missing values, quotes, line breaks.
TEXTS = (
    "Once upon a time",
    "007",
    "NA",
    "null",
    'a "quoted", text',
    "",
    "line\nbreak",
    "é\u2028x",
    "  spaced ",
    "Once upon a time",
    "1.50",
)
TOKENIZER = tiny_tokenizer()


def write_source(folder: Path, kind: str, texts: tuple[str, ...] = TEXTS) -> Path:
    path = folder / f"prompts.{kind}"
    flat = [text.replace("\n", " ") for text in texts]
    if kind == "txt":
        path.write_text("\ufeff" + "\n".join(flat), "utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"n": 1, "prompt": text}) + "\n" for text in texts))
    elif kind == "jsonl.gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"prompt": text or None}) + "\n" for text in texts)
    elif kind == "csv":
        pd.DataFrame({"n": 1, "prompt": texts}).to_csv(path, index=False)
    elif kind == "tsv":
        path.write_text("text\tn\n" + "".join(f"{text}\t1\n" for text in flat), "utf-8")
    else:
        pd.DataFrame({"prompt": texts}).to_parquet(path)
    return path


def assert_same(table: ProbeTable, expected: tuple[Probe, ...]) -> None:
    """Equal in everything but the numbers of the prompts, which part them in the same way."""
    assert len(table) == len(expected)
    names = {}
    for found, wanted in zip(table, expected, strict=True):
        assert (found.ids, found.item) == (wanted.ids, wanted.item)
        assert found.positions == wanted.positions and found.order == wanted.order
        assert (found.chosen_token, found.rejected_token) == (None, None)
        assert names.setdefault(found.prompt, wanted.prompt) == wanted.prompt
    assert len(names) == len({probe.prompt for probe in expected})


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "csv", "tsv", "parquet"])
def test_a_table_is_the_probes_of_the_same_file(tmp_path: Path, kind: str) -> None:
    source = write_source(tmp_path, kind)
    kinds = ("token.0", "last_prompt")
    table = probe_table_from_prompts(TOKENIZER, source, tmp_path / "table", kinds=kinds)
    expected = probes_from_prompts(TOKENIZER, load_prompts(source), kinds)
    assert_same(table, expected)
    assert table.kinds == kinds and table.dropped == {"empty": 1}
    assert table.longest == max(len(probe.ids) for probe in expected)
    assert table.content_hash() == positions.content_hash(table)


def test_sources_of_the_datasets_library(tmp_path: Path) -> None:
    expected = probes_from_prompts(TOKENIZER, [text for text in TEXTS if text])
    rows = Dataset.from_dict({"text": list(TEXTS), "other": [[0.0]] * len(TEXTS)})
    streams = IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS))
    for name, source in (("rows", rows), ("stream", streams)):
        table = probe_table_from_prompts(TOKENIZER, source, tmp_path / name)
        assert_same(table, expected)


def test_reading_some_of_them(tmp_path: Path) -> None:
    table = probe_table_from_prompts(TOKENIZER, write_source(tmp_path, "jsonl"), tmp_path / "t")
    every = list(table)
    assert [table[index] for index in range(-len(table), len(table))] == every + every
    assert table[2:5] == tuple(every[2:5]) and table[::-3] == tuple(every[::-3])
    assert table[4:4] == () and table[0] in table
    with pytest.raises(IndexError):
        table[len(table)]
    assert repr(table) == (
        f"ProbeTable(10 prompts; last_prompt; longest {table.longest} tokens; left out: 1 empty)"
    )


def test_many_batches_and_blocks(tmp_path: Path) -> None:
    texts = [f"the river {number % 1200}" for number in range(2500)]
    table = probe_table_from_prompts(TOKENIZER, Dataset.from_dict({"prompt": texts}), tmp_path)
    assert_same(table, probes_from_prompts(TOKENIZER, texts))


def test_limits(tmp_path: Path) -> None:
    source = write_source(tmp_path, "jsonl")
    prompts = load_prompts(source)
    first = probe_table_from_prompts(TOKENIZER, source, tmp_path / "first", limit=7)
    assert_same(first, probes_from_prompts(TOKENIZER, prompts[:7]))
    n_ctx = 8
    short = probe_table_from_prompts(TOKENIZER, source, tmp_path / "short", n_ctx=n_ctx)
    every = probes_from_prompts(TOKENIZER, prompts)
    expected = tuple(probe for probe in every if len(probe.ids) <= n_ctx)
    assert 0 < len(expected) < len(every)
    assert_same(short, expected)
    assert short.dropped == {"empty": 1, "longer than the context": len(every) - len(expected)}
    assert short.longest <= n_ctx


def test_the_same_table_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = write_source(tmp_path, "jsonl"), tmp_path / "table"
    made = probe_table_from_prompts(TOKENIZER, source, folder)

    def refused(*arguments: object) -> None:
        raise AssertionError("tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr(probe_table, "prompt_batches", refused)
        TOKENIZER(["padded", "to one length"], padding=True)  # leaves a trace in the tokenizer
        again = probe_table_from_prompts(TOKENIZER, source, folder)
        assert list(again) == list(made) and again.content_hash() == made.content_hash()
        for settings in ({"limit": 2}, {"n_ctx": 9}, {"kinds": ("token.0",)}):
            with pytest.raises(AssertionError, match="tokenised again"):
                probe_table_from_prompts(TOKENIZER, source, folder, **settings)  # type: ignore[arg-type]
    write_source(tmp_path, "jsonl", (*TEXTS, "The dog"))
    longer = probe_table_from_prompts(TOKENIZER, source, folder)
    assert len(longer) == len(made) + 1
    assert longer.content_hash() != made.content_hash()
    # What was opened before is still what it was.
    assert len(list(made)) == len(made) == len(longer) - 1


def test_a_failed_table_is_no_table(tmp_path: Path) -> None:
    source, folder = write_source(tmp_path, "jsonl"), tmp_path / "table"
    probe_table_from_prompts(TOKENIZER, source, folder)
    with pytest.raises(DataError, match=r"prompt 1 has 1 tokens, so it has no position 'token\.3'"):
        probe_table_from_prompts(TOKENIZER, source, folder, kinds=["token.3"])
    with pytest.raises(RunError, match=r"probes\.json is missing"):
        ProbeTable(folder)
    made = probe_table_from_prompts(TOKENIZER, source, folder)
    rows = folder / "probes.arrow"
    content = rows.read_bytes()
    rows.write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"probes\.arrow.*make the table again"):
        ProbeTable(folder)
    assert len(probe_table_from_prompts(TOKENIZER, source, folder)) == 10
    assert made.folder == folder


def test_refusals(tmp_path: Path) -> None:
    source = write_source(tmp_path, "jsonl")
    with pytest.raises(DataError, match="found the columns n, prompt; expected question"):
        probe_table_from_prompts(TOKENIZER, source, tmp_path / "t", column="question")
    with pytest.raises(DataError, match="n holds int; expected text"):
        list(prompt_batches(source, "n"))
    with pytest.raises(DataError, match="no prompt is left"):
        probe_table_from_prompts(TOKENIZER, source, tmp_path / "t", n_ctx=0)
    with pytest.raises(ConfigurationError, match="unknown position kind 'response'"):
        probe_table_from_prompts(TOKENIZER, source, tmp_path / "t", kinds=["response"])
    with pytest.raises(DataError, match="no such file"):
        list(prompt_batches(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="neither a file nor the name of a hub data set"):
        list(prompt_batches("prompts"))
    with pytest.raises(DataError, match="hub data set nobody/nothing: prompts could not be read"):
        list(prompt_batches("nobody/nothing"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(DataError, match="prompts could not be read"):
        list(prompt_batches(broken))


def test_numbers_of_prompts() -> None:
    """SHA-256 of "abc" begins with ba7816bf8f01cfea."""
    assert prompt_number("abc") == 0xBA7816BF8F01CFEA >> 11
    assert float(prompt_number("abc")).is_integer() and prompt_number("abc") < 2**53


def rivers(count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        yield {"text": f"the old man saw the river {number}"}


def test_memory_does_not_grow_with_the_prompts(tmp_path: Path) -> None:
    """Peak of Python's memory while a table is made and read, and where all probes are kept."""

    def peak(count: int, in_memory: bool = False) -> int:
        tracemalloc.start()
        kept: Sequence[Probe]
        if in_memory:
            kept = probes_from_prompts(TOKENIZER, [row["text"] for row in rivers(count)])
        else:
            source = IterableDataset.from_generator(rivers, gen_kwargs={"count": count})
            kept = probe_table_from_prompts(TOKENIZER, source, tmp_path / str(count))
        assert sum(1 for _ in kept) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1100)  # what is loaded once, and full batches
    assert peak(5 * 1100) < peak(1100) + 2**19 < peak(5 * 1100, in_memory=True)
