"""The preference pairs of a run: read, sampled, put together, cut to size and split."""

from __future__ import annotations

import logging
from collections import Counter
from typing import cast

from dsteer_tl.experiment.configuration import (
    CONTINUATIONS,
    ON_POLICY,
    ExperimentConfiguration,
)
from dsteer_tl.experiment.continued_text import continued_text
from dsteer_tl.lens_model import LensModel, LoadOptions, load_lens_model, load_tokenizer
from dsteer_tl.lens_model.checkpoint import resolve_source
from dsteer_tl.preferences import (
    PreferencePair,
    PreferenceSet,
    describe_dropped,
    get_scorer,
    load_preferences,
    sample_preferences,
)
from dsteer_tl.preferences.sampling import Generate

logger = logging.getLogger(__name__)


def gather_preferences(
    configuration: ExperimentConfiguration, options: LoadOptions, *, progress: bool = True
) -> PreferenceSet:
    """Every source in one set, split if a policy is to be trained on it.

    Raises:
        DataError: A source cannot be read, or pairs are longer than the context.
        CheckpointError: The base or its tokenizer cannot be loaded.
    """
    settings = configuration.preferences
    tokenizer = load_tokenizer(configuration.base, options)
    pairs: list[PreferencePair] = []
    dropped: Counter[str] = Counter()
    base: LensModel | None = None
    for source in settings.sources:
        if source in (ON_POLICY, CONTINUATIONS) and base is None:
            base = load_lens_model(
                configuration.base, backend=configuration.model.backend, options=options
            )
        if source == CONTINUATIONS and base is not None:
            found = continued_text(base, tokenizer, configuration, progress=progress)
        elif source == ON_POLICY and base is not None:
            found = sample_preferences(
                cast(Generate, base.generate),
                tokenizer,
                get_scorer(settings.scorer),
                settings.sampling,
                progress=progress,
            )
        else:
            found = load_preferences(
                source,
                layout=settings.layout,  # type: ignore[arg-type]
                tokenizer=tokenizer,
                hub_split=settings.hub_split,
            )
        pairs += list(found)
        dropped.update(found.dropped)
    preferences = PreferenceSet.from_pairs(
        pairs, name=configuration.name, dropped=dropped
    ).without_overlong(
        tokenizer,
        base.n_ctx if base is not None else _context(configuration.base, options),
        strict=settings.overlong == "error",
    )
    if settings.limit:
        preferences = preferences.limit(settings.limit, settings.seed)
    if not configuration.policy:
        preferences = preferences.split(settings.held_out_share, settings.seed)
    logger.info("%d pairs; dropped: %s", len(preferences), describe_dropped(preferences.dropped))
    return preferences


def _context(base: str, options: LoadOptions) -> int:
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(
        resolve_source(base),
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    return int(settings.get_text_config().max_position_embeddings)
