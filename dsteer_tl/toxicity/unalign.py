"""Undoing DPO by making a few key vectors longer (Lee et al. 2024, sec. 6, Table 4; claim 28).

Neurons of the attribute are still there after DPO; what they read no longer reaches them. Keys that
are several times as long widen the region that activates them. Perplexity stands beside every
attribute score, since what breaks the text may do anything to the score, and so do other neurons
and the base, which has nothing to be undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.lens_model import Edit, LensModel
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.toxicity.continuing import continue_prompts
from dsteer_tl.toxicity.evaluation import (
    CONTINUATION_COLUMNS,
    Evaluation,
    continuation_rows,
    evaluation_of,
    start_texts,
    summary,
)
from dsteer_tl.toxicity.neuron_edits import (
    KEYS,
    Keys,
    mean_contributions,
    most_active_neurons,
    scale_keys,
)
from dsteer_tl.toxicity.perplexity import window_losses
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import AttributeScorer, Neurons, StudyTexts
from dsteer_tl.toxicity.value_vectors import random_neurons

#: The controls' keys: where there is a choice, those that multiply the activation by the scale, on
#: which claim 28 is judged. The attribute's are scaled in every way that the model has.
CONTROL_KEYS: Keys = "in"
#: Name of the conditions in ``toxicity_continuations``, followed by the keys.
CONDITION = "scaled_keys"

_COLUMNS = (
    *("host", "group", "keys", "scale", "neurons"),
    *("attribute_score", "low", "high"),
    *("change", "change_low", "change_high"),
    *("perplexity", "perplexity_low", "perplexity_high"),
    *("prompts", "windows"),
)


def measure_unalign(
    hosts: Mapping[str, LensModel],
    tokenizer: PreTrainedTokenizerBase,
    texts: StudyTexts,
    scorer: AttributeScorer | None,
    attribute: Neurons,
    configuration: ToxicityConfiguration,
    decoding: Decoding,
    *,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Attribute score and perplexity of every host over the scales of a few neurons' keys.

    The groups, the same neurons in every host, are the first ``configuration.neurons`` of the
    attribute's, as many drawn at random, and as many that write most in the base; neither control
    holds any of the attribute's. In a gated MLP the attribute's keys are those of W_in, of
    W_gate and of both, see `scale_keys`. Scale 1 is the host as it is: it is measured once and
    stands in the rows of all groups and keys. ``change`` is paired over prompts: the attribute
    score minus that of the same host, base or policy, at scale 1.

    Args:
        hosts: ``base``, ``policy`` and others by name.
        tokenizer: Decodes continuations.
        texts: Prompts, windows, and the base's continuations.
        scorer: Scores continuations; scores are NaN where it cannot run.
        attribute: The attribute's neurons, closest to the probe first.
        configuration: Number of neurons, scales, seed, bootstrap draws and token budget.
        decoding: Length and sampling of continuations.
        progress: Show a progress bar.

    Returns:
        ``toxicity_unalign``, and rows of ``toxicity_continuations`` for the attribute's neurons at
        the largest scale; their condition is ``scaled_keys.<keys>``, their coefficient the scale.

    Raises:
        ConfigurationError: There is no base among the hosts.
        HookError: A host has no such neurons, or value vectors are not what neurons write.
        ShapeError: Texts do not fit a host, or too few neurons are left for the controls.
    """
    if "base" not in hosts:
        raise ConfigurationError(
            f"scaled keys: found hosts {sorted(hosts)}, expected the base among them: the most "
            "active neurons are found there"
        )
    base = hosts["base"]
    settings: list[tuple[Neurons, Keys]] = []
    for group in scaled_groups(base, texts, attribute, configuration, progress=progress):
        own = group.group == attribute.group and base.gated_mlp
        settings += [(group, keys) for keys in (KEYS if own else (CONTROL_KEYS,))]
    scales = sorted({1.0, *map(float, configuration.scales)})
    starts = start_texts(texts, tokenizer)
    rows: list[dict[str, object]] = []
    continuations: list[dict[str, object]] = []
    total = len(hosts) * (1 + len(settings) * (len(scales) - 1))
    with tqdm(total=total, desc="scaled keys", unit="condition", disable=not progress) as bar:
        for host, lens in hosts.items():
            measure = partial(
                _evaluation, lens, texts, tokenizer, scorer, decoding, configuration.token_budget
            )
            plain = measure(())
            bar.update()
            for group, keys in settings:
                for scale in scales:
                    found = plain
                    if scale != 1:
                        found = measure(scale_keys(lens, group, scale, keys))
                        bar.update()
                    numbers = summary(
                        found, plain, draws=configuration.draws, seed=configuration.seed
                    )
                    setting = {"host": host, "group": group.group, "keys": keys, "scale": scale}
                    rows.append({**setting, "neurons": len(group), **numbers})
                    if group.group == attribute.group and scale == scales[-1]:
                        name = f"{CONDITION}.{keys}"
                        continuations += continuation_rows(
                            found, starts, condition=name, host=host, coefficient=scale
                        )
    return {
        "toxicity_unalign": pd.DataFrame(rows, columns=list(_COLUMNS)),
        "toxicity_continuations": pd.DataFrame(continuations, columns=list(CONTINUATION_COLUMNS)),
    }


def scaled_groups(
    base: LensModel,
    texts: StudyTexts,
    attribute: Neurons,
    configuration: ToxicityConfiguration,
    *,
    progress: bool = True,
) -> tuple[Neurons, Neurons, Neurons]:
    """The attribute's first neurons, and as many random and most active ones outside the group.

    Activity is read in the base, on the prompts with what it writes after them.

    Raises:
        HookError: Value vectors are not what neurons write.
        ShapeError: Too few neurons are left.
    """
    count = min(configuration.neurons, len(attribute))
    pairs = zip(texts.prompts, texts.continuations["base"], strict=True)
    contributions = mean_contributions(
        base,
        [(*prompt, *continuation) for prompt, continuation in pairs],
        token_budget=configuration.token_budget,
        progress=progress,
    )
    return (
        attribute.first(count),
        random_neurons(base.n_layers, base.d_mlp, count, configuration.seed, exclude=attribute),
        most_active_neurons(contributions, count, exclude=attribute),
    )


def _evaluation(
    lens: LensModel,
    texts: StudyTexts,
    tokenizer: PreTrainedTokenizerBase,
    scorer: AttributeScorer | None,
    decoding: Decoding,
    token_budget: int,
    edits: Sequence[Edit],
) -> Evaluation:
    """Of the prompts and the windows; windows are not continued."""
    written = continue_prompts(lens, texts.prompts, decoding, edits=edits)
    losses = window_losses(lens, texts.windows, edits=edits, token_budget=token_budget)
    return evaluation_of(written, losses, texts, tokenizer, scorer, decoding)
