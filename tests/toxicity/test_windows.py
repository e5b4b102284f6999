from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dsteer_tl.errors import ConfigurationError, DataError, ShapeError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.pair import ModelPair
from dsteer_tl.toxicity.windows import load_text, sample_texts, text_windows, windows_of_rows
from tests.models import CONTEXT, tiny_tokenizer

LINES = [f"The old man went to the river {i} times and saw that it was low." for i in range(200)]
BEGIN, END = 0, 1


def begin_less() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer)


# Windows of a text


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(2, 60), st.integers(0, 5), st.booleans())
def test_windows_are_pieces_of_the_whole_text(
    windows: int, tokens: int, seed: int, begins: bool
) -> None:
    tokenizer = tiny_tokenizer() if begins else begin_less()
    whole = tokenizer("\n".join(LINES), add_special_tokens=False)["input_ids"]
    rows = text_windows(tokenizer, LINES, windows=windows, tokens=tokens, seed=seed)
    assert len(rows) == windows and {len(row) for row in rows} == {tokens}
    width = tokens - begins
    pieces = [tuple(whole[i : i + width]) for i in range(0, len(whole) - width + 1, width)]
    texts = [row[1:] if begins else row for row in rows]
    assert not begins or {row[0] for row in rows} == {BEGIN}
    # One piece of each stretch, in order: no two overlap, and none of the text is out of reach.
    for number, text in enumerate(texts):
        first, last = number * len(pieces) // windows, (number + 1) * len(pieces) // windows
        assert text in pieces[first:last]


def test_lines_are_joined_by_line_ends() -> None:
    tokenizer = tiny_tokenizer()
    [row] = text_windows(tokenizer, ["He said no,", "and yes"], windows=1, tokens=6)
    assert tokenizer.decode(row[1:]) == tokenizer.decode(
        tokenizer("He said no,\nand yes", add_special_tokens=False)["input_ids"][:5]
    )


def test_windows_depend_on_the_seed_alone() -> None:
    draws = [text_windows(tiny_tokenizer(), LINES, windows=8, tokens=16, seed=s) for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_texts_that_are_too_short() -> None:
    with pytest.raises(DataError, match=r"enough for \d+ windows of 50; expected 900"):
        text_windows(tiny_tokenizer(), LINES, windows=900, tokens=50)
    for windows, tokens in ((0, 5), (5, 1)):
        with pytest.raises(ConfigurationError, match=f"found {windows} windows of {tokens} tokens"):
            text_windows(tiny_tokenizer(), LINES, windows=windows, tokens=tokens)


# Texts to cut them from


def test_files_of_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" = Title = \n\n It @-@ was <unk> . \n", "utf-8")
    assert load_text(tmp_path / "text.txt") == [" = Title = ", " It @-@ was <unk> . "]
    with gzip.open(tmp_path / "text.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": "one\ntwo"}) + "\n" + json.dumps({"text": "three"}) + "\n")
    assert load_text(str(tmp_path / "text.jsonl.gz")) == ["one\ntwo", "three"]
    with pytest.raises(DataError, match="no such file"):
        load_text(tmp_path / "none.txt")


def test_wikitext_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def load_dataset(name: str, configuration: str | None, **options: Any) -> datasets.Dataset:
        calls.append((name, configuration, options["split"]))
        return datasets.Dataset.from_list([{"text": t} for t in (" = A = \n", "", "b\n")])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_text("wikitext") == [" = A = ", "b"]
    assert calls == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]


def test_wikitext_without_a_connection_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"Salesforce/wikitext.*give the path of a file"):
        load_text("wikitext")


def test_published_texts(shared_folder: Path) -> None:
    data = shared_folder / "data"
    wikitext = load_text(data / "evaluation/wikitext2_test.txt")
    assert 2_500 < len(wikitext) < 4_358 and all(line.strip() for line in wikitext)
    assert any("<unk>" in line for line in wikitext)
    rows = text_windows(tiny_tokenizer(), wikitext[:300], windows=20, tokens=64)
    assert len(set(rows)) == 20
    assert len(load_text(data / "text/tinystories_valid_head.jsonl.gz")) == 864


# Texts that the model writes


def sampled(pair: ModelPair, **changes: Any) -> list[tuple[int, ...]]:
    options: dict[str, Any] = {"count": 40, "max_new_tokens": 12, "batch_size": 16, "seed": 3}
    return sample_texts(pair.base, pair.tokenizer, progress=False, **options | changes)


def test_rows_are_what_the_model_wrote_before_its_end(
    tiny_pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    generate = LensModel.generate

    def watched(self: LensModel, *arguments: Any, **options: Any) -> torch.Tensor:
        ids = generate(self, *arguments, **options)
        seen.extend(ids.tolist())
        return ids

    monkeypatch.setattr(LensModel, "generate", watched)
    rows = sampled(tiny_pair)
    assert len(rows) == len(set(rows)) == 40
    cut = []
    for ids in seen:
        assert ids[0] == BEGIN
        end = ids.index(END) if END in ids else len(ids)
        if end > 1:
            cut.append(tuple(ids[:end]))
    assert rows == list(dict.fromkeys(cut))[:40]
    assert len({len(row) for row in rows}) > 1  # some ended early


def test_samples_depend_on_their_seed_and_leave_the_state_alone(tiny_pair: ModelPair) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    assert sampled(tiny_pair) == sampled(tiny_pair) != sampled(tiny_pair, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())


def test_batches_of_one_call_differ(tiny_pair: ModelPair) -> None:
    rows = sampled(tiny_pair, count=32)
    assert rows[:16] != rows[16:]


class Parrot:
    """A model that always writes the same."""

    name = "parrot"

    def generate(self, ids: torch.Tensor, mask: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([ids, torch.full((len(mask), 3), 5)], dim=1)


def test_a_model_that_repeats_itself_is_no_source() -> None:
    with pytest.raises(DataError, match="parrot wrote 1 different texts in 20 batches of 4"):
        sample_texts(
            Parrot(),  # type: ignore[arg-type]
            tiny_tokenizer(),
            count=8,
            max_new_tokens=3,
            batch_size=4,
            progress=False,
        )


def test_what_cannot_be_sampled(tiny_pair: ModelPair) -> None:
    for changes in ({"count": 0}, {"temperature": 0.0}, {"batch_size": 0}):
        with pytest.raises(ConfigurationError, match="above 0"):
            sampled(tiny_pair, **changes)
    with pytest.raises(ShapeError, match="exceed the context"):
        sampled(tiny_pair, max_new_tokens=CONTEXT)
    with pytest.raises(DataError, match="neither a beginning- nor an end-of-sequence token"):
        sample_texts(tiny_pair.base, begin_less(), count=1, max_new_tokens=2, progress=False)


# Windows of rows


def test_rows_that_are_long_enough_are_cut() -> None:
    rows = [(0, 1, 2), (0, 3), (0, 4, 5, 6), (0, 7, 8)]
    assert windows_of_rows(rows, windows=2, tokens=3) == ((0, 1, 2), (0, 4, 5))
    with pytest.raises(DataError, match="3 of 4 texts have 3 tokens or more; expected 4"):
        windows_of_rows(rows, windows=4, tokens=3)
    with pytest.raises(ConfigurationError, match="found 0 windows"):
        windows_of_rows(rows, windows=0, tokens=3)


def test_sampled_windows_have_one_length(tiny_pair: ModelPair) -> None:
    rows = windows_of_rows(sampled(tiny_pair), windows=10, tokens=8)
    assert np.array(rows).shape == (10, 8) and {row[0] for row in rows} == {BEGIN}
