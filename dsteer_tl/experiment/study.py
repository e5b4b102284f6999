"""The stages of a toxicity study (Lee et al. 2024), in the order of the paper's sections.

labelled texts → texts → probe → value vectors → what changed → logit lens → interventions →
un-align → patching; each leaves tables, and models are loaded only if a stage needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory, StageReport
from dsteer_tl.experiment.shuffled_pairs import SHUFFLED_PAIRS, train_shuffled_pairs
from dsteer_tl.experiment.study_inputs import StudyInputs
from dsteer_tl.experiment.study_stages import StudyStages
from dsteer_tl.experiment.suites import suite_path
from dsteer_tl.files import hash_content, hash_file

_FORMAT = 2
Build = Callable[[StudyStages], Mapping[str, pd.DataFrame]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """One stage: what it does, what it leaves, and what makes it run again.

    Attributes:
        build: Gives its tables.
        tables: Their names.
        files: What it writes beside them.
        reads: Settings that it depends on; the models and the seed are read by all.
        after: Stages whose outputs it reads.
        scored: Whether it depends on the scorer being there.
    """

    build: Build
    tables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    scored: bool = False


_WRITING = ("max_new_tokens", "temperature")
_COUNTING = ("token_budget", "draws")
_STAGES: Mapping[str, _Stage] = {
    "metrics": _Stage(
        build=StudyStages.metrics, tables=("toxicity_metrics",), reads=("scorer",), scored=True
    ),
    "labelled": _Stage(
        build=StudyStages.labelled,
        files=("labelled.jsonl",),
        reads=("labels", "label_texts", "label_margin", "scorer", "window_tokens", "prompts"),
        scored=True,
    ),
    "texts": _Stage(
        build=StudyStages.study_texts,
        files=("texts.json",),
        reads=(
            *("prompts", "prompt_limit", "text", "windows", "window_tokens", "window_prompt"),
            *_WRITING,
        ),
    ),
    "probe": _Stage(
        build=StudyStages.fit,
        tables=("toxicity_probe", "toxicity_probe_scores"),
        files=("probe.safetensors", "shuffled_probe.safetensors"),
        reads=("attribute", "labels", "held_out_share", *_COUNTING),
        after=("labelled",),
    ),
    "value_vectors": _Stage(
        build=StudyStages.value_vectors,
        tables=("toxicity_value_vectors", "toxicity_tokens", "toxicity_svd"),
        reads=("vectors", "scorer"),
        after=("probe",),
    ),
    "weights": _Stage(build=StudyStages.weights, tables=("toxicity_weights",)),
    "changes": _Stage(
        build=StudyStages.changes,
        tables=(
            "toxicity_activations",
            "toxicity_activation_changes",
            "toxicity_offsets",
            "toxicity_residuals",
            "toxicity_decomposition",
            "toxicity_value_changes",
        ),
        reads=("vectors", *_COUNTING),
        after=("texts", "probe"),
    ),
    "lens": _Stage(
        build=StudyStages.lens,
        tables=("toxicity_lens",),
        reads=("scorer", "target_words", *_COUNTING),
        after=("texts",),
    ),
    "interventions": _Stage(
        build=StudyStages.interventions,
        tables=("toxicity_interventions", "toxicity_continuations"),
        reads=(
            *("scorer", "vectors", "single_vectors", "singular_vectors", "shuffled_pairs"),
            *(*_WRITING, *_COUNTING),
        ),
        after=("texts", "probe"),
        scored=True,
    ),
    "unalign": _Stage(
        build=StudyStages.unalign,
        tables=("toxicity_unalign", "toxicity_unalign_continuations"),
        reads=("scorer", "vectors", "neurons", "scales", *_WRITING, *_COUNTING),
        after=("texts", "probe"),
        scored=True,
    ),
    "patching": _Stage(
        build=StudyStages.patching,
        tables=("toxicity_patching",),
        reads=("vectors", "neurons", *_COUNTING),
        after=("texts", "probe"),
    ),
}
#: Every table of the study.
STUDY_TABLES = tuple(table for stage in _STAGES.values() for table in stage.tables)


def run_study(inputs: StudyInputs) -> list[StageReport]:
    """Run every stage that is not up to date.

    Raises:
        DsteerError: Texts cannot be had, or the models are not fit for the study.
    """
    study = StudyStages(inputs)
    trained = [train_shuffled_pairs(inputs)] if inputs.configuration.shuffled_pairs else []
    return [*trained, *(_run(study, name, stage) for name, stage in _STAGES.items())]


def _run(study: StudyStages, name: str, stage: _Stage) -> StageReport:
    directory = study.inputs.directory

    def run() -> list[Path]:
        tables = stage.build(study)
        files = [study.folder / file for file in stage.files]
        return [*files, *(directory.write_table(*item) for item in tables.items())]

    after = list(stage.after)
    if name == "interventions" and study.settings.shuffled_pairs:
        after.append(SHUFFLED_PAIRS)
    keys = [
        _FORMAT,
        {setting: getattr(study.settings, setting) for setting in ("seed", *stage.reads)},
        study.inputs.keys,
        _sources(study, stage),
        study.scorer.obstacle() if stage.scored else "",
        [_files_of(directory, earlier) for earlier in after],
    ]
    return directory.stage(f"toxicity/{name}", keys, run)


def _files_of(directory: RunDirectory, name: str) -> dict[str, str]:
    """Hashes of what a stage left for later ones; its tables are for people."""
    outputs = directory.output_hashes(f"toxicity/{name}")
    return {path: digest for path, digest in outputs.items() if not path.startswith("tables/")}


def _sources(study: StudyStages, stage: _Stage) -> list[Any]:
    """Hashes of the texts that a stage reads from outside the study."""
    if stage.after or not {"labels", "prompts"} & set(stage.reads):
        return []
    settings = study.settings
    entries = [
        getattr(settings, name) for name in ("labels", "prompts", "text") if name in stage.reads
    ]
    paths = [suite_path(entry)[1] or Path(entry) for entry in entries]
    return [
        hash_content(study.inputs.prompts),
        study.inputs.directory.output_hashes("preferences"),
        [hash_file(path) if path.is_file() else "" for path in paths],
    ]
