"""The logit lens on the attribute's tokens, base against policy, layer by layer.

Lee et al. 2024, Fig. 1, read one target token on prompts that the base continues with it. Prompts
chosen that way regress to the mean whatever training did, so here every prompt counts, the targets
are all tokens of the attribute, and tokens of like probability stand beside them.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dsteer_tl.controls import bootstrap_mean
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import Gather, LensModel, length_sorted_batches, pad
from dsteer_tl.sites import resid_post
from dsteer_tl.toxicity.types import StudyTexts

logger = logging.getLogger(__name__)

ATTRIBUTE, NEUTRAL = "attribute", "neutral"
#: Columns of the table ``toxicity_lens``.
LENS_COLUMNS = (
    *("place", "layer", "group"),
    *("base", "policy", "log_ratio", "low", "high"),
    *("tokens", "prompts"),
)
_PLACES = ("resid_mid", "resid_post")
# Logits of one block of rows.
_BLOCK_LOGITS = 2**22
# Numbers of all places that one batch may gather: 512 MiB as float32.
_GATHERED = 2**27

Tokens = Int[np.ndarray, " token"]


def target_lens_table(
    base: LensModel,
    policy: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: StudyTexts,
    words: Collection[str],
    *,
    token_budget: int = 4096,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """The table ``toxicity_lens``: what every layer would say of the attribute's tokens.

    Both models read the same tokens, each prompt with the base's continuation. At every layer's
    ``resid_mid`` and ``resid_post`` each stream goes through its own model's final norm and
    readout; p is the summed probability of a group of tokens, averaged over the last prompt token
    and all tokens of the continuation. ``log_ratio`` is the mean over prompts of
    ln(p_policy/p_base), with a bootstrap interval over prompts.

    The neutral group are tokens outside the list that the base finds as likely as the targets, one
    for each. They are chosen on one half of the prompts, drawn by the seed, and both groups are
    reported on the other half, so that what was chosen is not judged by what it was chosen on.

    Args:
        base: Base.
        policy: Policy.
        tokenizer: Names the tokens.
        texts: Prompts and the base's continuations.
        words: Case-folded words of the attribute.
        token_budget: Padded tokens a forward pass.
        draws: Bootstrap draws.
        seed: Seed of the halves and the bootstrap.

    Returns:
        `LENS_COLUMNS`; no rows, with a warning, where no word is a token.

    Raises:
        ShapeError: There are fewer than four prompts, or not one continuation for each.
    """
    vocabulary = min(base.d_vocab, policy.d_vocab)
    targets = target_tokens(tokenizer, words, vocabulary)
    if not len(targets):
        logger.warning("none of the attribute's %d words is a token of its own", len(words))
        return pd.DataFrame(columns=list(LENS_COLUMNS))
    matching, judging = _halves(_sequences(texts), seed)
    likely = mean_log_probabilities(base, matching, token_budget=token_budget)
    special = {*tokenizer.all_special_ids, *base.end_token_ids}
    usable = range(min(vocabulary, len(tokenizer)))
    neutral = neutral_tokens(likely, targets, [each for each in usable if each not in special])
    groups = {ATTRIBUTE: targets, NEUTRAL: neutral}
    places = [(kind, layer) for layer in range(base.n_layers) for kind in _PLACES]
    names = [f"{kind}.{layer}" for kind, layer in places]
    found = [_prompt_log_p(lens, judging, names, groups, token_budget) for lens in (base, policy)]
    rows = []
    for (kind, layer), name in zip(places, names, strict=True):
        for group, tokens in groups.items():
            before, after = (log_p[name, group] for log_p in found)
            ratio = bootstrap_mean(after - before, draws=draws, seed=seed)
            rows.append(
                {
                    "place": kind,
                    "layer": layer,
                    "group": group,
                    "base": float(np.exp(before).mean()),
                    "policy": float(np.exp(after).mean()),
                    "log_ratio": ratio.value,
                    "low": ratio.low,
                    "high": ratio.high,
                    "tokens": len(tokens),
                    "prompts": len(judging),
                }
            )
    return pd.DataFrame(rows, columns=list(LENS_COLUMNS))


def target_tokens(
    tokenizer: PreTrainedTokenizerBase, words: Collection[str], d_vocab: int
) -> Tokens:
    """Ids of the tokens whose text is one of the words, with or without a space before it.

    A token of a word's first letters, as "hell" in "hello", is one of them if its text is a word.

    Args:
        tokenizer: Its tokens are decoded one by one, stripped and case-folded.
        words: Case-folded.
        d_vocab: Ids from here on are no tokens of the model.
    """
    wanted = set(words) - {""}  # white space, stripped
    special = set(tokenizer.all_special_ids)
    ids = [each for each in range(min(d_vocab, len(tokenizer))) if each not in special]
    decoded = tokenizer.batch_decode([[each] for each in ids], clean_up_tokenization_spaces=False)
    kept = [
        each for each, text in zip(ids, decoded, strict=True) if text.strip().casefold() in wanted
    ]
    return np.array(kept, dtype=np.int64)


def neutral_tokens(
    log_p: Float[np.ndarray, " d_vocab"], targets: Tokens, candidates: Collection[int]
) -> Tokens:
    """For every target, from the likeliest on, the nearest token by log p that is still free.

    Args:
        log_p: Mean log-probability of every token.
        targets: Never taken.
        candidates: What may be taken.

    Returns:
        As many different tokens as there are targets, in their order, or all that are free.
    """
    free = sorted(set(candidates) - set(targets.tolist()), key=lambda each: (log_p[each], each))
    heights = [float(log_p[each]) for each in free]
    taken: dict[int, int] = {}
    for target in sorted(targets.tolist(), key=lambda each: (-log_p[each], each)):
        if not free:
            break
        height = float(log_p[target])
        above = bisect.bisect_left(heights, height)
        near = [place for place in (above - 1, above) if 0 <= place < len(free)]
        place = min(near, key=lambda place: (abs(heights[place] - height), place))
        taken[target] = free.pop(place)
        heights.pop(place)
    return np.array([taken[each] for each in targets.tolist() if each in taken], dtype=np.int64)


@torch.inference_mode()
def lens_log_probabilities(
    lens: LensModel, rows: Float[Tensor, "row d_model"], groups: Sequence[Tokens]
) -> Float[np.ndarray, "group row"]:
    """Ln of the summed probability of each group of tokens, read off residuals of any layer.

    The final norm is computed anew from every row: the scale that the last layer's stream has
    there would be another layer's, and another model's, in its place. Gain, unembedding, bias and
    soft-capping are the model's own.

    Args:
        lens: The model that the rows are of.
        rows: Residuals.
        groups: Token ids; an empty group has probability 0.
    """
    read = _reader(lens)
    chosen = [torch.from_numpy(group).to(lens.device) for group in groups]
    found = []
    for block in _blocks(lens, rows):
        logits = read(block)
        whole = logits.logsumexp(dim=-1)
        found.append(
            torch.stack([logits[:, ids].logsumexp(dim=-1) - whole for ids in chosen]).cpu()
        )
    return torch.cat(found, dim=1).double().numpy()


@torch.inference_mode()
def mean_log_probabilities(
    lens: LensModel, sequences: Sequence[_Sequence], *, token_budget: int = 4096
) -> Float[np.ndarray, " d_vocab"]:
    """Mean log-probability of every token of the vocabulary, of positions and then of prompts."""
    site = resid_post(lens.n_layers - 1)
    read = _reader(lens)
    total = np.zeros(lens.d_vocab)
    for owners, captured in _captured(lens, sequences, [site], token_budget):
        weights = 1 / (np.bincount(owners)[owners] * len(sequences))
        place = 0
        for block in _blocks(lens, captured[site]):
            log_p = read(block).log_softmax(dim=-1).cpu().double().numpy()
            total += weights[place : place + len(block)] @ log_p
            place += len(block)
    return total


def _reader(lens: LensModel) -> Callable[[Tensor], Tensor]:
    """From residuals of any layer to logits, through the norm of each row itself."""
    # Logits of half precision would be off by a tenth of a nat.
    readout = lens.readout.to(dtype=torch.promote_types(lens.dtype, torch.float32))
    return lambda rows: readout(
        lens.final_norm(rows.to(lens.device, lens.dtype)).to(readout.W_U.dtype)
    )


def _blocks(lens: LensModel, rows: Tensor) -> Iterator[Tensor]:
    step = max(1, _BLOCK_LOGITS // lens.d_vocab)
    return (rows[start : start + step] for start in range(0, len(rows), step))


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A prompt with its continuation, read from the last prompt token on."""

    tokens: tuple[int, ...]
    first: int


def _sequences(texts: StudyTexts) -> list[_Sequence]:
    written = texts.continuations.get("base", ())
    if len(written) != len(texts.prompts):
        raise ShapeError(
            f"logit lens: found {len(written)} continuations of the base for "
            f"{len(texts.prompts)} prompts, expected one a prompt"
        )
    return [
        _Sequence((*prompt, *continuation), len(prompt) - 1)
        for prompt, continuation in zip(texts.prompts, written, strict=True)
    ]


def _halves(sequences: Sequence[_Sequence], seed: int) -> tuple[list[_Sequence], list[_Sequence]]:
    if len(sequences) < 4:
        raise ShapeError(
            f"logit lens: found {len(sequences)} prompts, expected at least 4, in two halves"
        )
    order = np.random.default_rng(seed).permutation(len(sequences))
    middle = len(order) // 2
    first, second = ([sequences[index] for index in part] for part in np.split(order, [middle]))
    return first, second


def _captured(
    lens: LensModel, sequences: Sequence[_Sequence], places: Sequence[str], token_budget: int
) -> Iterator[tuple[Int[np.ndarray, " row"], Mapping[str, Tensor]]]:
    """Batch by batch the sequence of each row, and its residuals at every place."""
    lengths = [len(sequence.tokens) for sequence in sequences]
    budget = min(token_budget, max(1, _GATHERED // (len(places) * lens.d_model)))
    for indices in length_sorted_batches(lengths, budget):
        batch = pad([sequences[index].tokens for index in indices])
        starts = torch.tensor([sequences[index].first for index in indices])
        order = torch.arange(batch.ids.shape[1])
        read = (batch.mask.bool() & (order >= starts[:, None])).nonzero()
        captured = lens.capture(batch.ids, batch.mask, places, Gather(read[:, 0], read[:, 1]))
        yield np.array(indices)[read[:, 0].numpy()], captured


def _prompt_log_p(
    lens: LensModel,
    sequences: Sequence[_Sequence],
    places: Sequence[str],
    groups: Mapping[str, Tokens],
    token_budget: int,
) -> dict[tuple[str, str], Float[np.ndarray, " prompt"]]:
    """Per place and group ln of the mean over positions of each prompt's probability."""
    found = {
        (place, group): np.full(len(sequences), -np.inf) for place in places for group in groups
    }
    counts = np.zeros(len(sequences))
    for owners, captured in _captured(lens, sequences, places, token_budget):
        np.add.at(counts, owners, 1)
        for place in places:
            values = lens_log_probabilities(lens, captured[place], list(groups.values()))
            for group, log_p in zip(groups, values, strict=True):
                np.logaddexp.at(found[place, group], owners, log_p)
    return {key: total - np.log(counts) for key, total in found.items()}
