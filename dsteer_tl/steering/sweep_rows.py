"""What a sweep computes, as rows of tables: completions, and scores of given sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from dsteer_tl.errors import RunError
from dsteer_tl.lens_model import Gather, LensModel, pad
from dsteer_tl.pair import ModelPair
from dsteer_tl.steering.interventions import SIGNS, Direction, Intervention
from dsteer_tl.steering.packed_generation import Completion, generate_rows
from dsteer_tl.steering.plan import (
    GenerationBlock,
    SweepPlan,
    SweepPrompt,
    SweepSequence,
    place_of,
)
from dsteer_tl.steering.scored import (
    STATISTICS,
    Scored,
    TokenSequence,
    token_log_probabilities,
)
from dsteer_tl.steering.teacher_forced import HOSTS, Setting, score_directions


class RelativeNorms:
    """‖what is added‖ over the mean norm of the residual it is added to."""

    def __init__(self, pair: ModelPair, plan: SweepPlan) -> None:
        self._pair, self._plan = pair, plan
        self._means: dict[tuple[Direction, str], float] = {}

    def __call__(self, direction: Direction, intervention: Intervention, scale: float) -> float:
        """|scale| · ‖v‖ / mean ‖x‖ at the last prompt token of the host; NaN for a logit bias."""
        if not intervention.vectors:
            return float("nan")
        key = (direction, intervention.vectors[0].space)
        if key not in self._means:
            self._means[key] = self._mean(*key)
        return abs(scale) * intervention.norm / self._means[key]

    def _mean(self, direction: Direction, site: str) -> float:
        rows = [prompt.ids for prompt in self._plan.prompts] or [
            item.tokens.prompt_ids for item in self._plan.sequences
        ]
        host: LensModel = getattr(self._pair, HOSTS[direction])
        norms = []
        for start in range(0, len(rows), 32):
            batch = pad(rows[start : start + 32])
            last = Gather(torch.arange(len(batch.ids)), batch.mask.sum(dim=1) - 1)
            captured = host.capture(batch.ids, batch.mask, [site], last)[site]
            norms.append(captured.double().norm(dim=1))
        return float(torch.cat(norms).mean())


def _columns(
    plan: SweepPlan,
    direction: Direction,
    setting: Setting,
    index: int,
    relative: RelativeNorms,
) -> dict[str, Any]:
    intervention, scale = setting.intervention, setting.scales[index]
    return {
        "suite": plan.suite,
        "direction": direction,
        "vector": intervention.name,
        "matching": setting.matching,
        "site": intervention.site,
        "positions": intervention.positions,
        "coefficient": float(setting.coefficients[index]),
        "scale": float(scale),
        "relative_norm": relative(direction, intervention, scale),
    }


def completion_rows(
    plan: SweepPlan, pair: ModelPair, block: GenerationBlock, relative: RelativeNorms
) -> pd.DataFrame:
    """Generate one packed batch: a row of the table ``completions`` for each text."""
    host: LensModel = getattr(pair, HOSTS[block.direction])
    sign = SIGNS[block.direction]
    prompts = [plan.prompts[index] for index in block.prompts]
    generated = generate_rows(
        host,
        [prompt.ids for prompt in prompts],
        [(item, sign * scale) for item, scale in block.rows],
        plan.decoding,
        seeds=block.prompts,
    )
    unsteered = _unsteered(pair, block.direction, prompts, generated)
    place = {(id(item), scale): index for index, (item, scale) in enumerate(block.rows)}
    zero = next((index for index, (_, scale) in enumerate(block.rows) if scale == 0), None)
    texts = _Texts(pair.tokenizer)
    records = []
    for setting in plan.generated[block.direction]:
        if place_of(setting) != block.place:
            continue
        for index, scale in enumerate(setting.scales):
            row = zero if scale == 0 else place[(id(setting.intervention), scale)]
            shared = _columns(plan, block.direction, setting, index, relative)
            for local, number in enumerate(block.prompts):
                at = local * len(block.rows) + cast(int, row)
                completion = generated[local][cast(int, row)]
                records.append(
                    shared
                    | {"prompt": number, "prompt_text": prompts[local].text}
                    | texts.of(completion)
                    | {"base": unsteered["base"][at], "policy": unsteered["policy"][at]}
                )
    return pd.DataFrame(records)


def _unsteered(
    pair: ModelPair,
    direction: Direction,
    prompts: Sequence[SweepPrompt],
    generated: Sequence[Sequence[Completion]],
) -> dict[str, list[list[float]]]:
    """What base and host, unsteered, give each token of each completion.

    The host's numbers come with the generation at h. A policy that is not the host is not asked:
    nothing is drawn or measured from it, and its pass would cost as much as the base's.
    """
    flat = [
        (TokenSequence(prompt.ids, completion.tokens), completion)
        for prompt, rows in zip(prompts, generated, strict=True)
        for completion in rows
    ]
    found: dict[str, list[list[float]]] = {"base": [], "policy": [[] for _ in flat]}
    for role in dict.fromkeys(("base", HOSTS[direction])):
        known = [completion.unsteered for _, completion in flat]
        if role == HOSTS[direction] and all(own is not None for own in known):
            found[role] = [list(own) for own in known if own is not None]
        else:
            found[role] = token_log_probabilities(
                getattr(pair, role), [sequence for sequence, _ in flat]
            )
    return found


class _Texts:
    """Completions as text; equal ones are decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: dict[int, str] = {}

    def of(self, completion: Completion) -> dict[str, Any]:
        for token in completion.tokens:
            if token not in self._tokens:
                self._tokens[token] = str(self._tokenizer.decode([token]))
        return {
            "completion": str(
                self._tokenizer.decode(
                    list(completion.tokens),
                    skip_special_tokens=True,
                    clean_up_tokenization_spaces=False,
                )
            ),
            "n_tokens": len(completion.tokens),
            "ended": completion.ended,
            "tokens": [self._tokens[token] for token in completion.tokens],
            "steered": list(completion.log_probabilities),
        }


def scored_rows(
    plan: SweepPlan,
    pair: ModelPair,
    sequences: tuple[SweepSequence, ...],
    relative: RelativeNorms,
    progress: bool,
) -> pd.DataFrame:
    """Score given sequences: a row a sequence, setting and coefficient, with sums over tokens.

    Direction after direction, with one pass of base and policy for all.

    Raises:
        RunError: A log-probability is not finite, as at coefficients that overflow.
    """
    found = score_directions(
        pair, plan.scored, [item.tokens for item in sequences], progress=progress
    )
    tables = [
        _scored_table(plan, direction, settings, found[direction], sequences, relative)
        for direction, settings in plan.scored.items()
    ]
    return pd.concat(tables, ignore_index=True)


def _scored_table(
    plan: SweepPlan,
    direction: Direction,
    settings: Sequence[Setting],
    found: Sequence[Scored],
    sequences: Sequence[SweepSequence],
    relative: RelativeNorms,
) -> pd.DataFrame:
    frames = []
    labels = {
        "item": [item.item for item in sequences],
        "side": [item.side for item in sequences],
    }
    for setting, scored in zip(settings, found, strict=True):
        for index in range(len(setting.scales)):
            frames.append(
                pd.DataFrame(
                    labels
                    | {name: getattr(scored, name)[index] for name in STATISTICS}
                    | {
                        "base_log_probability": scored.base_log_probability,
                        "policy_log_probability": scored.policy_log_probability,
                        "tokens": scored.tokens,
                    }
                ).assign(**_columns(plan, direction, setting, index, relative))
            )
    joined = pd.concat(frames, ignore_index=True)
    if not np.isfinite(joined[list(STATISTICS)].to_numpy()).all():
        raise RunError(
            f"sweep {plan.suite}: steered log-probabilities are not finite; use smaller "
            "coefficients or model.dtype=float32"
        )
    return joined
