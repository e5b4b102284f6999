"""What each stage of a toxicity study measures, from models and texts to tables."""

from __future__ import annotations

import logging
from functools import cached_property

import pandas as pd

from dsteer_tl.experiment.shuffled_pairs import (
    load_shuffled_pairs,
)
from dsteer_tl.experiment.study_inputs import StudyInputs
from dsteer_tl.experiment.study_texts import (
    decoding,
    labelled_texts,
    read_study_texts,
    save_study_texts,
    study_texts,
)
from dsteer_tl.lens_model import LensModel
from dsteer_tl.toxicity.attribute import get_attribute_scorer
from dsteer_tl.toxicity.changes import measure_changes
from dsteer_tl.toxicity.interventions import measure_interventions
from dsteer_tl.toxicity.labelled_texts import read_labelled_texts, save_labelled_texts
from dsteer_tl.toxicity.linear_probe import LinearProbe
from dsteer_tl.toxicity.patching import measure_patching
from dsteer_tl.toxicity.probe import fit_text_probe
from dsteer_tl.toxicity.probe_tables import probe_score_table, probe_table
from dsteer_tl.toxicity.subtracted import subtracted_vectors
from dsteer_tl.toxicity.target_lens import target_lens_table
from dsteer_tl.toxicity.types import AttributeScorer, Neurons, StudyTexts
from dsteer_tl.toxicity.unalign import measure_unalign
from dsteer_tl.toxicity.value_vector_tables import svd_table, token_table, value_vector_table
from dsteer_tl.toxicity.value_vectors import closest_value_vectors, probe_cosines
from dsteer_tl.toxicity.weight_changes import weight_change_table

logger = logging.getLogger(__name__)


class StudyStages:
    """The stages, and what they have loaded so far."""

    def __init__(self, inputs: StudyInputs) -> None:
        self.inputs, self.settings = inputs, inputs.configuration
        self.folder, self.progress = inputs.folder, inputs.progress

    # What stages share.

    @cached_property
    def scorer(self) -> AttributeScorer:
        """What scores texts, whether or not it can run here."""
        return get_attribute_scorer(self.settings.scorer, cache_folder=self.folder / "cache")

    @cached_property
    def usable_scorer(self) -> AttributeScorer | None:
        """The same, or None where it cannot run."""
        obstacle = self.scorer.obstacle()
        if obstacle:
            logger.warning("attribute score NOT RUN: %s", obstacle)
        return None if obstacle else self.scorer

    @cached_property
    def texts(self) -> StudyTexts:
        """What the models read."""
        return read_study_texts(self.folder / "texts.json")

    @cached_property
    def probe(self) -> LinearProbe:
        """The probe of the attribute."""
        return LinearProbe.load(self.folder / "probe.safetensors")

    @cached_property
    def attribute(self) -> Neurons:
        """The neurons whose value vectors are closest to the probe, the closest first."""
        base = self.inputs.pair.base
        base.check_value_vectors()
        cosines = probe_cosines(base, self.probe.unit)
        return closest_value_vectors(cosines, self.settings.vectors, gated=base.gated_mlp)

    @property
    def hosts(self) -> dict[str, LensModel]:
        """Base and policy."""
        return {"base": self.inputs.pair.base, "policy": self.inputs.pair.policy}

    # The stages.

    def metrics(self) -> dict[str, pd.DataFrame]:
        """What the study measures of texts, and what it cannot, with the reason."""
        obstacle = self.scorer.obstacle()
        rows = [("attribute_score", self.scorer.name, "NOT RUN" if obstacle else "RUN", obstacle)]
        rows += [(name, "study", "RUN", "") for name in ("perplexity", "f1")]
        table = pd.DataFrame(rows, columns=["metric", "family", "status", "reason"])
        sources = [self.scorer.source, "this library", "Lee et al. 2024, sec. 3.3"]
        return {"toxicity_metrics": table.assign(source=sources)}

    def labelled(self) -> dict[str, pd.DataFrame]:
        """Texts with and without the attribute."""
        found = labelled_texts(self.inputs, self.scorer)
        save_labelled_texts(found, self.folder / "labelled.jsonl")
        return {}

    def study_texts(self) -> dict[str, pd.DataFrame]:
        """Prompts, running text, and what both models write."""
        save_study_texts(study_texts(self.inputs), self.folder / "texts.json")
        return {}

    def fit(self) -> dict[str, pd.DataFrame]:
        """The probe and its controls (sec. 3.1)."""
        settings, pair = self.settings, self.inputs.pair
        texts = read_labelled_texts(self.folder / "labelled.jsonl")
        found = fit_text_probe(pair.base, pair.tokenizer, texts, settings, progress=self.progress)
        found.probe.save(self.folder / "probe.safetensors")
        found.shuffled.save(self.folder / "shuffled_probe.safetensors")
        return {
            "toxicity_probe": probe_table(found, settings.attribute, settings.labels),
            "toxicity_probe_scores": probe_score_table(found),
        }

    def value_vectors(self) -> dict[str, pd.DataFrame]:
        """The value vectors closest to the probe (sec. 3.1)."""
        pair, seed, words = self.inputs.pair, self.settings.seed, self.scorer.words()
        shuffled = LinearProbe.load(self.folder / "shuffled_probe.safetensors")
        shared = (self.attribute, words, seed)
        read = (pair.base, pair.tokenizer, self.probe.unit)
        return {
            "toxicity_value_vectors": value_vector_table(*read, shuffled.unit, *shared),
            "toxicity_tokens": token_table(*read, *shared),
            "toxicity_svd": svd_table(*read, *shared, shuffled_direction=shuffled.unit),
        }

    def weights(self) -> dict[str, pd.DataFrame]:
        """How far training moved each tensor."""
        table = weight_change_table(
            self.inputs.base,
            self.inputs.policy,
            seed=self.settings.seed,
            options=self.inputs.options,
            policy_options=self.inputs.policy_options,
        )
        return {"toxicity_weights": table}

    def changes(self) -> dict[str, pd.DataFrame]:
        """Activations, offsets, axes, value vectors and the decomposition (sec. 5.2)."""
        return measure_changes(
            self.inputs.pair.base,
            self.inputs.pair.policy,
            self.inputs.random_weights,
            self.texts,
            self.attribute,
            self.settings,
            progress=self.progress,
        )

    def lens(self) -> dict[str, pd.DataFrame]:
        """The logit lens of the attribute's words, layer by layer (Figure 1)."""
        pair, settings = self.inputs.pair, self.settings
        chosen = frozenset(word.casefold() for word in settings.target_words)
        table = target_lens_table(
            pair.base,
            pair.policy,
            pair.tokenizer,
            self.texts,
            chosen or self.scorer.words(),
            token_budget=settings.token_budget,
            draws=settings.draws,
            seed=settings.seed,
        )
        return {"toxicity_lens": table}

    def interventions(self) -> dict[str, pd.DataFrame]:
        """Vectors subtracted at matched perplexity (sec. 3.3), and what training did."""
        models = self.hosts
        if self.inputs.random_weights is not None:
            models["random_weights"] = self.inputs.random_weights
        if self.settings.shuffled_pairs:
            models["shuffled_pairs"] = load_shuffled_pairs(self.inputs)
        vectors, controls = subtracted_vectors(
            self.inputs.pair.base, self.probe, self.attribute, self.settings
        )
        return measure_interventions(
            models,
            self.inputs.pair.tokenizer,
            self.texts,
            self.usable_scorer,
            vectors,
            controls,
            configuration=self.settings,
            decoding=decoding(self.settings),
        ).tables

    def unalign(self) -> dict[str, pd.DataFrame]:
        """Key vectors scaled up in the policy and the base (sec. 6)."""
        tables = measure_unalign(
            self.hosts,
            self.inputs.pair.tokenizer,
            self.texts,
            self.usable_scorer,
            self.attribute,
            self.settings,
            decoding(self.settings),
            progress=self.progress,
        )
        return {
            "toxicity_unalign": tables["toxicity_unalign"],
            "toxicity_unalign_continuations": tables["toxicity_continuations"],
        }

    def patching(self) -> dict[str, pd.DataFrame]:
        """The policy's activations of a few neurons in the base (Yang et al. 2024)."""
        table = measure_patching(
            self.inputs.pair.base,
            self.inputs.pair.policy,
            self.texts,
            self.probe.unit,
            self.attribute,
            self.settings,
            unread=self.inputs.pair.tokenizer.all_special_ids,
            progress=self.progress,
        )
        return {"toxicity_patching": table}
