from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dsteer_tl.errors import DataError
from dsteer_tl.preferences import load_prompts

PROMPTS = ("first prompt", "second, with “marks”")


def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path) -> None:
    pd.DataFrame({"prompt": PROMPTS}).to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    pd.DataFrame({"text": PROMPTS}).to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    pd.DataFrame({"prompt": PROMPTS, "text": "x"}).to_csv(tmp_path / "c.csv", index=False)
    pd.DataFrame({"text": PROMPTS}).to_parquet(tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_text("first prompt\r\n\n" + PROMPTS[1], encoding="utf-8", newline="")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    assert [load_prompts(file) for file in files] == [PROMPTS] * 5


def test_a_named_column_is_read(shared_folder: Path) -> None:
    prompts = load_prompts(shared_folder / "data" / "evaluation" / "advbench.csv", column="goal")
    assert len(prompts) == 520


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("no.txt", None, "no such file"),
        ("no.txt", b"", "the file is empty"),
        ("no.txt", b"\n \n", "all 2 prompts are empty"),
        ("no.txt", b"\xff", "expected UTF-8"),
        ("no.jsonl", b'{"question": "x"}\n', "found the columns question; expected prompt or text"),
        ("no.jsonl", b"{\n", "line 1: not valid JSON"),
        ("no.jsonl", b'{"prompt": ["x"]}\n', "line 1: prompt holds list; expected text"),
    ],
)
def test_bad_files_are_explained(
    tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_prompts(tmp_path / file)
