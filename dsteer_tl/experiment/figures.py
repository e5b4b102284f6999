"""Every figure of a run, rebuilt from its tables alone: no model and no GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dsteer_tl.behavior.settings import HELD_OUT
from dsteer_tl.claims import Verdict
from dsteer_tl.claims.selection import main_kind
from dsteer_tl.errors import ShapeError
from dsteer_tl.experiment.run_directory import RunDirectory, StageReport
from dsteer_tl.sites import FINAL

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dsteer_tl.plots import ExportReport

logger = logging.getLogger(__name__)

Tables = Mapping[str, pd.DataFrame]

#: Bumped when a figure is drawn differently, so that finished runs draw it again.
_DRAWING = 4


def _plots() -> dict[str, tuple[tuple[str, ...], Callable[..., go.Figure | None]]]:
    """Name of each figure, the tables it shows, and how it is drawn."""
    from dsteer_tl import plots

    def at_main_kind(draw: Callable[..., go.Figure]) -> Callable[[pd.DataFrame], go.Figure]:
        return lambda table: draw(table, position_kind=main_kind(table))

    return {
        "figure_1a_logit_geometry": (("geometry", "projections"), plots.logit_geometry),
        "figure_1a_logit_lens": (("logit_lens",), plots.logit_lens_by_layer),
        "figure_1b_gradient_field": (("gradient_field", "gradients"), plots.gradient_field),
        "figure_1c_clouds": (("clouds",), plots.clouds),
        "figure_3_cosines": (("cosines", "cosine_nulls"), plots.cosine_histogram),
        "figure_4a_entropy": (("entropy",), at_main_kind(plots.entropy)),
        "figure_4b_singular_values": (("spectra",), at_main_kind(plots.singular_values)),
        "sigma_ratio": (("shifts", "nulls"), plots.sigma_ratio),
        "mass": (("mass",), plots.mass),
        "kl_recovery": (("kl_recovery",), plots.kl_recovery),
        "rank_recovery": (("rank_recovery",), plots.rank_recovery),
        "localisation": (("shifts", "patching"), plots.localisation),
        "tokens": (("tokens",), plots.tokens),
        "contributions": (("contributions",), plots.contributions),
        "component_patching": (("component_patching",), plots.component_patching),
        "margin_ledger": (("margin_terms", "margin_ledger"), plots.margin_ledger),
        "token_shifts": (("token_shifts",), plots.token_shifts),
        "weight_spectra": (("weight_spectra",), plots.weight_spectra),
        "separation": (("separation",), plots.separation),
        "formation": (("formation",), plots.formation),
        "training_curve": (("training",), plots.training_curve),
        "figure_2a": (("sweep", "sweep_metrics"), _of_the_sweep(plots.figure_2a)),
        "figure_2b": (("sweep", "sweep_metrics"), _of_the_sweep(plots.figure_2b)),
        "dose_response": (("sweep",), _of_the_sweep(plots.dose_response)),
        "collapse": (("sweep",), _of_the_sweep(plots.collapse)),
        "refusal": (("sweep",), _of_the_sweep(plots.refusal, by_suite=True)),
        "toxicity_probe": (
            ("toxicity_probe", "toxicity_probe_scores"),
            plots.toxicity_probe,
        ),
        "toxicity_value_vectors": (
            ("toxicity_value_vectors", "toxicity_svd"),
            plots.toxicity_value_vectors,
        ),
        "toxicity_tokens": (("toxicity_tokens",), plots.toxicity_tokens),
        "toxicity_interventions": (("toxicity_interventions",), plots.toxicity_interventions),
        "toxicity_weights": (("toxicity_weights",), plots.toxicity_weights),
        "toxicity_activations": (
            ("toxicity_activations", "toxicity_activation_changes"),
            plots.toxicity_activations,
        ),
        "toxicity_offsets": (("toxicity_offsets",), plots.toxicity_offsets),
        "toxicity_residuals": (("toxicity_residuals",), plots.toxicity_residuals),
        "toxicity_value_changes": (("toxicity_value_changes",), plots.toxicity_value_changes),
        "toxicity_decomposition": (("toxicity_decomposition",), plots.toxicity_decomposition),
        "toxicity_lens": (("toxicity_lens",), plots.toxicity_lens),
        "toxicity_unalign": (("toxicity_unalign",), plots.toxicity_unalign),
        "toxicity_patching": (("toxicity_patching",), plots.toxicity_patching),
        "stress_embeddings": (("stress_embeddings",), plots.stress_variants),
        "stress_heterogeneous": (("stress_heterogeneous",), plots.stress_axes),
        "stress_models": (("stress_models", "stress_model_verdicts"), plots.stress_models),
        "stress_encodings": (("stress_encodings",), plots.stress_encodings),
        "stress_turns": (("stress_turns",), plots.stress_turns),
        "stress_prompts": (("stress_prompts",), plots.stress_prompts),
        "stress_causes": (("stress_causes",), plots.stress_variants),
        "stress_losses": (("stress_losses",), plots.stress_variants),
        "stress_sensitivity": (("stress_sensitivity",), plots.stress_variants),
        "multiverse": (("multiverse",), _if_judged(plots.multiverse)),
    }


def _if_judged(draw: Callable[..., go.Figure]) -> Callable[[pd.DataFrame], go.Figure | None]:
    """The multiverse of a run that judged anything; equal models have no verdict at all."""
    return lambda table: draw(table) if (table["verdict"] != Verdict.NOT_RUN.value).any() else None


def _of_the_sweep(
    draw: Callable[..., go.Figure], *, by_suite: bool = False
) -> Callable[..., go.Figure | None]:
    """A figure of the curves that the sweep has; none where nothing it shows was measured.

    What a sweep covers is its user's choice, so that a figure without rows is no error.
    """

    def drawn(sweep: pd.DataFrame, *more: pd.DataFrame) -> go.Figure | None:
        chosen = {"site": FINAL, "positions": "all"} | ({} if by_suite else {"suite": HELD_OUT})
        for column, preferred in chosen.items():
            there = list(dict.fromkeys(str(value) for value in sweep[column]))
            chosen[column] = preferred if preferred in there else there[0]
        try:
            return draw(sweep, *more, **chosen)
        except ShapeError as error:
            logger.info("figure %s is left out: %s", draw.__name__, error)
            return None

    return drawn


def draw_figures(tables: Tables) -> dict[str, go.Figure]:
    """Every figure whose tables are there."""
    drawn = {
        name: draw(*(tables[table] for table in needed))
        for name, (needed, draw) in _plots().items()
        if all(table in tables and len(tables[table]) for table in needed)
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def write_run_figures(
    directory: RunDirectory, *, images: bool | None = None, require_images: bool = False
) -> ExportReport:
    """Draw and write the figures of a run: HTML, JSON and, with kaleido and a browser, PNG.

    Raises:
        RunError: Tables are missing, or an image could not be rendered.
        DependencyError: Images are required and cannot be made.
    """
    from dsteer_tl.plots import (
        write_figures,
        write_text_browser,
        write_token_shift_page,
        write_value_vector_page,
    )

    tables = directory.tables()
    report = write_figures(
        draw_figures(tables),
        directory / "figures",
        images=images,
        require_images=require_images,
    )
    pages = []
    for name, write, page in (
        ("completions", write_text_browser, "text_browser"),
        ("toxicity_tokens", write_value_vector_page, "value_vectors"),
        ("token_shifts", write_token_shift_page, "token_shifts_by_response"),
    ):
        if name in tables and len(tables[name]):
            pages.append(write(tables[name], directory / "figures" / f"{page}.html"))
    return replace(report, written=(*report.written, *pages))


def figure_stage(
    directory: RunDirectory, *, images: bool | None = None, require_images: bool = False
) -> StageReport:
    """Draw the figures unless they are up to date.

    Raises:
        DependencyError: Images are required and cannot be made.
    """

    def run() -> list[Path]:
        report = write_run_figures(directory, images=images, require_images=require_images)
        return list(report.written)

    hashes = {
        name: entry["outputs"]
        for name, entry in directory.manifest["stages"].items()
        if name.startswith(("tables/", "toxicity/", "stress/")) or name == "training"
    }
    with_images = [_DRAWING, hashes, True]
    if directory.holds("figures", with_images):  # images stay where they cannot be made again
        return directory.stage("figures", with_images, run)
    return directory.stage("figures", [_DRAWING, hashes, _can_render(images)], run)


def _can_render(images: bool | None) -> bool:
    """Whether images will be made: a browser that appears later makes the figures stale."""
    if images is False:
        return False
    from importlib.util import find_spec

    from dsteer_tl.plots import find_browser

    return find_spec("kaleido") is not None and find_browser() is not None
