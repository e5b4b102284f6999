"""The token sequences and positions of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from dsteer_tl.errors import DataError
from dsteer_tl.experiment.configuration import ExperimentConfiguration
from dsteer_tl.lens_model import LensModel
from dsteer_tl.positions import (
    PAIR_KINDS,
    PROMPT_KINDS,
    Probe,
    check_lengths,
    probes_from_pairs,
    probes_from_prompts,
)
from dsteer_tl.preferences import PreferenceSet, load_prompts
from dsteer_tl.shift_set import FEWEST_PROMPTS

logger = logging.getLogger(__name__)


def build_probes(
    tokenizer: PreTrainedTokenizerBase,
    pairs: PreferenceSet | None,
    configuration: ExperimentConfiguration,
    base: LensModel,
) -> tuple[Probe, ...]:
    """Probes from pairs, or from the file of prompts where there are none.

    Raises:
        DataError: Prompts are longer than the context, or too few are left.
    """
    settings = configuration.measurement
    if pairs is not None:
        return with_enough_prompts(
            probes_from_pairs(
                tokenizer,
                pairs,
                settings.position_kinds or PAIR_KINDS,
                response_limit=settings.response_limit,
            )
        )
    prompts = load_prompts(Path(configuration.preferences.prompts))
    if settings.pairs:
        prompts = prompts[: settings.pairs]
    probes = probes_from_prompts(tokenizer, prompts, settings.position_kinds or PROMPT_KINDS)
    if configuration.preferences.overlong == "error":
        check_lengths(probes, base.n_ctx, base.name)
    kept = tuple(probe for probe in probes if len(probe.ids) <= base.n_ctx)
    if len(kept) < len(probes):
        logger.info("%d prompts longer than the context were dropped", len(probes) - len(kept))
    if not kept:
        raise DataError(
            f"all {len(probes)} prompts are longer than the context of {base.name}, "
            f"{base.n_ctx} tokens"
        )
    return with_enough_prompts(kept)


def with_enough_prompts(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """The probes without the position kinds that too few prompts have.

    Raises:
        DataError: No kind is left.
    """
    prompts: dict[str, set[int]] = {}
    for probe in probes:
        for kind, positions in probe.positions.items():
            if positions:
                prompts.setdefault(kind, set()).add(probe.prompt)
    few = {kind: len(found) for kind, found in prompts.items() if len(found) < FEWEST_PROMPTS}
    if len(few) == len(prompts):
        raise DataError(
            f"there are {max(few.values(), default=0)} prompts to measure on, expected at least "
            f"{FEWEST_PROMPTS}: give more, or hold out a larger share of them"
        )
    for kind, count in few.items():
        logger.warning(
            "position kind %r is left out: %d prompts have it, and %d are needed",
            kind,
            count,
            FEWEST_PROMPTS,
        )
    return tuple(
        replace(
            probe,
            positions={
                kind: found
                for kind, found in probe.positions.items()
                if kind not in few and kind in prompts
            },
        )
        for probe in probes
    )
