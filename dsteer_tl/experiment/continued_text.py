"""Preference pairs from running text: what the recipe of Lee et al. 2024 reads in a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.experiment.configuration import ExperimentConfiguration
from dsteer_tl.experiment.suites import suite_path
from dsteer_tl.files import hash_file
from dsteer_tl.lens_model import LensModel
from dsteer_tl.preferences import PreferenceSet
from dsteer_tl.toxicity.attribute import get_attribute_scorer
from dsteer_tl.toxicity.continuation_pairs import continuation_pairs
from dsteer_tl.toxicity.labelled_texts import load_labelled_texts
from dsteer_tl.toxicity.linear_probe import LinearProbe
from dsteer_tl.toxicity.probe import fit_text_probe
from dsteer_tl.toxicity.settings import PAIRS, SAMPLED
from dsteer_tl.toxicity.windows import load_text


def continued_text(
    base: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    configuration: ExperimentConfiguration,
    *,
    progress: bool = True,
) -> PreferenceSet:
    """Pairs of a greedy continuation (chosen) and one with the attribute (rejected).

    Guided continuations are made and judged by a probe of the study's labelled texts, selected ones
    by its scorer.

    Raises:
        ConfigurationError: The scorer cannot run, or the labelled texts of the probe would have to
            come from this run itself.
        DataError: Text or labelled texts cannot be had, or no pair is left.
    """
    settings = configuration.preferences.continuations
    lines = load_text(settings.text)
    if settings.rejected == "guided":
        probe = _probe(base, tokenizer, configuration, progress)
        return continuation_pairs(base, tokenizer, lines, settings, probe=probe, progress=progress)
    scorer = get_attribute_scorer(configuration.toxicity.scorer)
    return continuation_pairs(base, tokenizer, lines, settings, scorer=scorer, progress=progress)


def continued_text_keys(configuration: ExperimentConfiguration) -> list[Any]:
    """What the pairs depend on beside the settings of preferences."""
    study = asdict(configuration.toxicity)
    names = ("scorer", "labels", "label_texts", "held_out_share", "seed")
    paths = [
        suite_path(configuration.toxicity.labels)[1],
        Path(configuration.preferences.continuations.text),
    ]
    hashes = [hash_file(path) if path is not None and path.is_file() else "" for path in paths]
    return [[study[name] for name in names], hashes]


def _probe(
    base: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    configuration: ExperimentConfiguration,
    progress: bool,
) -> LinearProbe:
    study = configuration.toxicity
    name, path = suite_path(study.labels)
    if name in (SAMPLED, PAIRS):
        raise ConfigurationError(
            f"guided continuations need a probe before there are pairs, but toxicity.labels is "
            f"{study.labels!r}: give a labelled set such as jigsaw or NAME=FILE, or set "
            "preferences.continuations.rejected=selected"
        )
    texts = load_labelled_texts(name, path, limit=study.label_texts, seed=study.seed)
    return fit_text_probe(base, tokenizer, texts, study, progress=progress).probe
