"""The stages of a toxicity study (Lee et al. 2024), in the order of the paper's sections.

texts → probe → value vectors → what changed → logit lens → interventions → un-align → patching;
each leaves tables, and models are loaded only if a stage needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from dsteer_tl.experiment.run_directory import StageReport
from dsteer_tl.experiment.shuffled_pairs import SHUFFLED_PAIRS, train_shuffled_pairs
from dsteer_tl.experiment.study_inputs import StudyInputs
from dsteer_tl.experiment.study_stages import StudyStages
from dsteer_tl.experiment.suites import suite_path
from dsteer_tl.files import hash_content, hash_file

_FORMAT = 1
Build = Callable[[], Mapping[str, pd.DataFrame]]
#: Tables of each stage.
_TABLES: Mapping[str, tuple[str, ...]] = {
    "texts": ("toxicity_metrics",),
    "probe": ("toxicity_probe", "toxicity_probe_scores"),
    "value_vectors": ("toxicity_value_vectors", "toxicity_tokens", "toxicity_svd"),
    "weights": ("toxicity_weights",),
    "changes": (
        "toxicity_activations",
        "toxicity_activation_changes",
        "toxicity_offsets",
        "toxicity_residuals",
        "toxicity_decomposition",
        "toxicity_value_changes",
    ),
    "lens": ("toxicity_lens",),
    "interventions": ("toxicity_interventions", "toxicity_continuations"),
    "unalign": ("toxicity_unalign", "toxicity_unalign_continuations"),
    "patching": ("toxicity_patching",),
}
#: Files of each stage beside its tables.
_FILES: Mapping[str, tuple[str, ...]] = {
    "texts": ("labelled.jsonl", "texts.json"),
    "probe": ("probe.safetensors", "shuffled_probe.safetensors"),
}
#: Every table of the study.
STUDY_TABLES = tuple(table for tables in _TABLES.values() for table in tables)


def run_study(inputs: StudyInputs) -> list[StageReport]:
    """Run every stage that is not up to date.

    Raises:
        DsteerError: Texts cannot be had, or the models are not fit for the study.
    """
    study = StudyStages(inputs)
    reports = []
    run: Mapping[str, Build] = {
        "texts": study.write_texts,
        "probe": study.fit,
        "value_vectors": study.value_vectors,
        "weights": study.weights,
        "changes": study.changes,
        "lens": study.lens,
        "interventions": study.interventions,
        "unalign": study.unalign,
        "patching": study.patching,
    }
    if inputs.configuration.shuffled_pairs:
        reports.append(train_shuffled_pairs(inputs))
    return [*reports, *(_stage(study, name, build) for name, build in run.items())]


def _stage(study: StudyStages, name: str, build: Build) -> StageReport:
    """Run one stage unless it is up to date."""

    def run() -> list[Path]:
        tables = build()
        files = [study.folder / file for file in _FILES.get(name, ())]
        return [
            *files,
            *(study.inputs.directory.write_table(*item) for item in tables.items()),
        ]

    return study.inputs.directory.stage(f"toxicity/{name}", _keys(study, name), run)


def _keys(study: StudyStages, name: str) -> list[Any]:
    settings = asdict(study.settings)
    del settings["enabled"]
    directory = study.inputs.directory
    sources = [study.settings.labels, study.settings.prompts, study.settings.text]
    paths = [suite_path(entry)[1] or Path(entry) for entry in sources]
    before = [earlier for earlier in ("texts", "probe") if earlier != name]
    if name == "texts":
        before = []
    elif name == "probe":
        before = ["texts"]
    elif name == "interventions" and study.settings.shuffled_pairs:
        before.append(SHUFFLED_PAIRS)
    return [
        _FORMAT,
        settings,
        study.inputs.keys,
        directory.output_hashes("preferences"),
        hash_content(study.inputs.prompts),
        [hash_file(path) if path.is_file() else "" for path in paths],
        study.scorer.obstacle(),
        [directory.output_hashes(f"toxicity/{earlier}") for earlier in before],
    ]
