"""Extraction in an environment of its own: the worker process, and the checkpoints it reads."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dsteer_tl.positions import Probe
from tests.benchmarks.results import Seconds
from tests.benchmarks.works import Models, Rows

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = Path(os.environ.get("DSTEER_BENCH_ENVIRONMENT") or REPOSITORY / ".venv-bench")
WORKER = Path(__file__).parent / "workers" / "extraction.py"


class Unavailable(Exception):
    """An extraction cannot be run here; the message says why."""


def save_models(found: Models, folder: Path) -> dict[str, Path]:
    """Checkpoints of base and policy, with a tokenizer that reads ``t000017`` as the id 17."""
    folders = {}
    for name, model in found.items():
        folders[name] = folder / name
        model.save_pretrained(folders[name])
        id_tokenizer(model.config.vocab_size).save_pretrained(folders[name])
        # Transformers 4 reads the base of the rotation under its old name.
        path = folders[name] / "config.json"
        content = json.loads(path.read_text("utf-8"))
        content["rope_theta"] = content["rope_parameters"]["rope_theta"]
        path.write_text(json.dumps(content), "utf-8")
    return folders


def id_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose texts are lists of ids, all as long: none begins another one."""
    words = {f"t{token:06}": token for token in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t000000"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="t000000", eos_token="t000001", unk_token="t000000"
    )


class Worker:
    """A process in the other environment that has loaded both models for one extraction."""

    def __init__(
        self,
        extraction: str,
        folders: dict[str, Path],
        probes: Sequence[Probe],
        environment: Path = ENVIRONMENT,
    ) -> None:
        python = environment / "bin" / "python"
        if not python.is_file():
            raise Unavailable(f"there is no environment {environment.name}: `make bench` makes it")
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONPATH": ""},
        )
        try:
            found = self._ask(
                command="load",
                extraction=extraction,
                folders={name: str(folder) for name, folder in folders.items()},
                prompts=[list(probe.ids) for probe in probes],
                threads=torch.get_num_threads(),
            )
        except Unavailable:
            self.close()
            raise
        self.versions: dict[str, str] = found["versions"]
        self.batch: int = found["batch"]

    def run(self) -> Seconds:
        """Do the work once: its seconds, without those of asking for it."""
        found = self._ask(command="run")
        return found["seconds"], found["cpu_seconds"]

    def rows(self) -> Rows:
        """What the last run found."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.npz"
            self._ask(command="rows", path=str(path))
            with np.load(path) as found:
                rows: dict[str, dict[str, np.ndarray]] = {}
                for key in found.files:
                    model, _, site = key.partition("/")
                    rows.setdefault(model, {})[site] = found[key]
        return rows

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            told = self._errors.read().strip().splitlines()
            raise Unavailable(f"its process ended: {told[-1] if told else 'it said nothing'}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Unavailable(found["error"])
        return found

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
