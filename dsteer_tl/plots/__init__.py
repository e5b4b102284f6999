"""Figures, drawn from stored tables only: nothing here loads a model.

Each function takes tidy tables of a run and returns a `plotly.graph_objects.Figure`.
"""

from __future__ import annotations

from dsteer_tl.plots.behavior_curves import figure_2a, figure_2b
from dsteer_tl.plots.clouds import clouds
from dsteer_tl.plots.collapse import collapse
from dsteer_tl.plots.component_patching import component_patching
from dsteer_tl.plots.contributions import contributions
from dsteer_tl.plots.cosine_histogram import cosine_histogram
from dsteer_tl.plots.dose_response import dose_response, spearman_by_metric
from dsteer_tl.plots.entropy import entropy
from dsteer_tl.plots.export import ExportReport, find_browser, write_figures
from dsteer_tl.plots.formation import formation, training_curve
from dsteer_tl.plots.gradient_field import gradient_field
from dsteer_tl.plots.localisation import localisation
from dsteer_tl.plots.logit_geometry import logit_geometry, logit_lens_by_layer
from dsteer_tl.plots.margin_ledger import margin_ledger
from dsteer_tl.plots.multiverse import multiverse
from dsteer_tl.plots.recovery import kl_recovery, rank_recovery
from dsteer_tl.plots.refusal import refusal
from dsteer_tl.plots.separation import separation
from dsteer_tl.plots.show import show
from dsteer_tl.plots.singular_values import mass, sigma_ratio, singular_values
from dsteer_tl.plots.stress_axes import stress_axes
from dsteer_tl.plots.stress_encodings import stress_encodings
from dsteer_tl.plots.stress_models import stress_models
from dsteer_tl.plots.stress_prompts import stress_prompts
from dsteer_tl.plots.stress_turns import stress_turns
from dsteer_tl.plots.stress_variants import stress_variants
from dsteer_tl.plots.text_browser import text_browser, write_text_browser
from dsteer_tl.plots.token_shift_page import token_shift_page, write_token_shift_page
from dsteer_tl.plots.token_shifts import token_shifts
from dsteer_tl.plots.token_view import TokenPage, colored_tokens_html, token_scripts
from dsteer_tl.plots.tokens import tokens
from dsteer_tl.plots.toxicity_activations import toxicity_activations
from dsteer_tl.plots.toxicity_decomposition import toxicity_decomposition
from dsteer_tl.plots.toxicity_interventions import toxicity_interventions
from dsteer_tl.plots.toxicity_lens import toxicity_lens
from dsteer_tl.plots.toxicity_offsets import toxicity_offsets
from dsteer_tl.plots.toxicity_patching import toxicity_patching
from dsteer_tl.plots.toxicity_probe import toxicity_probe
from dsteer_tl.plots.toxicity_residuals import toxicity_residuals
from dsteer_tl.plots.toxicity_tokens import toxicity_tokens
from dsteer_tl.plots.toxicity_unalign import toxicity_unalign
from dsteer_tl.plots.toxicity_value_changes import toxicity_value_changes
from dsteer_tl.plots.toxicity_value_vectors import toxicity_value_vectors
from dsteer_tl.plots.toxicity_weights import toxicity_weights
from dsteer_tl.plots.value_vector_page import value_vector_page, write_value_vector_page
from dsteer_tl.plots.weight_spectra import weight_spectra

__all__ = [
    "logit_geometry",
    "logit_lens_by_layer",
    "gradient_field",
    "clouds",
    "cosine_histogram",
    "entropy",
    "singular_values",
    "sigma_ratio",
    "mass",
    "kl_recovery",
    "rank_recovery",
    "localisation",
    "formation",
    "training_curve",
    "tokens",
    "figure_2a",
    "figure_2b",
    "dose_response",
    "spearman_by_metric",
    "collapse",
    "refusal",
    "toxicity_probe",
    "toxicity_value_vectors",
    "toxicity_tokens",
    "toxicity_interventions",
    "toxicity_weights",
    "toxicity_activations",
    "toxicity_offsets",
    "toxicity_residuals",
    "toxicity_value_changes",
    "toxicity_decomposition",
    "toxicity_lens",
    "toxicity_unalign",
    "toxicity_patching",
    "component_patching",
    "contributions",
    "margin_ledger",
    "multiverse",
    "separation",
    "stress_axes",
    "stress_encodings",
    "stress_models",
    "stress_prompts",
    "stress_turns",
    "stress_variants",
    "token_shift_page",
    "write_token_shift_page",
    "token_shifts",
    "weight_spectra",
    "text_browser",
    "write_text_browser",
    "colored_tokens_html",
    "token_scripts",
    "TokenPage",
    "write_figures",
    "ExportReport",
    "find_browser",
    "show",
    "value_vector_page",
    "write_value_vector_page",
]
