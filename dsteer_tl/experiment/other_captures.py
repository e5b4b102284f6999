"""The tables of a run under other choices: captured once and kept, for the multiverse to read."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pandas as pd

from dsteer_tl.experiment.loaded_run import LoadedRun
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.lens_model import LensModel
from dsteer_tl.measurements import MeasurementInputs
from dsteer_tl.measurements.other_captures import Choice, Precision, other_capture_tables
from dsteer_tl.positions import PROMPT_KINDS, Probe, probes_from_prompts
from dsteer_tl.preferences.sampled_text import cut_at_word
from dsteer_tl.toxicity.windows import sample_texts

#: Stage, and folder of its tables: ``multiverse/<dimension>/<choice>/<table>.parquet``.
OTHER_CAPTURES = "multiverse"
#: Tokens of a prompt in running text.
_PROMPT_TOKENS = 24
#: Apart from the seeds of everything else that is sampled.
_SEED = 7


def capture_others(run: LoadedRun, inputs: MeasurementInputs) -> list[Path]:
    """Capture what the multiverse judges, and write its tables."""
    precision = run.options.dtype
    found = other_capture_tables(
        run.in_precision,
        inputs.probes,
        inputs.shift_set,
        inputs.configuration,
        encoded=inputs.encoded,
        unrelated=_running_text(run, inputs.pair.base),
        precision=cast(Precision, precision if precision != "float16" else "float32"),
        progress=inputs.progress,
    )
    return [
        run.directory.write_parquet(
            f"{OTHER_CAPTURES}/{_folder(dimension)}/{_folder(choice)}/{name}.parquet", table
        )
        for (dimension, choice), tables in found.items()
        for name, table in tables.items()
    ]


def _running_text(run: LoadedRun, base: LensModel) -> tuple[Probe, ...]:
    """Prompts that no preference is about: openings of texts that the base writes from nothing."""
    tokenizer = run.pair.tokenizer
    rows = sample_texts(
        base,
        tokenizer,
        count=run.configuration.audit.unrelated_prompts,
        max_new_tokens=2 * _PROMPT_TOKENS,
        seed=run.configuration.measurement.seed + _SEED,
        progress=False,
    )
    texts = (cut_at_word(tokenizer, list(row), _PROMPT_TOKENS) for row in rows)
    prompts = list(dict.fromkeys(text for text in texts if text.strip()))
    return probes_from_prompts(tokenizer, prompts, PROMPT_KINDS)


def read_others(directory: RunDirectory) -> dict[Choice, dict[str, pd.DataFrame]]:
    """The tables of `capture_others` by dimension and choice; none where it did not run."""
    entry = directory.manifest["stages"].get(OTHER_CAPTURES, {"outputs": {}})
    found: dict[Choice, dict[str, pd.DataFrame]] = {}
    for output in entry["outputs"]:
        _, dimension, choice, name = output.split("/")
        tables = found.setdefault((_choice(dimension), _choice(choice)), {})
        tables[name.removesuffix(".parquet")] = pd.read_parquet(directory / output)
    return found


def _folder(choice: str) -> str:
    """A choice as the name of a folder, without blanks or dots that a file system may refuse."""
    return choice.replace(" · ", "+").replace(" ", "_")


def _choice(folder: str) -> str:
    return folder.replace("_", " ").replace("+", " · ")
