"""The logit lens on the attribute's tokens, base against policy, layer by layer.

Lee et al. 2024, Fig. 1, read one target token on prompts that the base continues with it. Prompts
chosen that way regress to the mean whatever training did, so here every prompt counts, the targets
are all tokens of the attribute, and beside them stand many groups of tokens as likely: training
moves any group a little, so one group alone would often look suppressed next to one other.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dsteer_tl.controls import bootstrap_mean
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens import lens_log_probabilities, lens_logits
from dsteer_tl.lens_model import Gather, LensModel, length_sorted_batches, pad
from dsteer_tl.sites import resid_post
from dsteer_tl.toxicity.types import StudyTexts

logger = logging.getLogger(__name__)

ATTRIBUTE, NEUTRAL = "attribute", "neutral"
#: Columns of the table ``toxicity_lens``.
LENS_COLUMNS = (
    *("place", "layer", "group"),
    *("base", "policy", "log_ratio", "low", "high"),
    *("tokens", "prompts", "draws"),
)
#: Neutral groups: with 20, one more of their kind lies below all of them once in 21 times.
NEUTRAL_DRAWS = 20
#: How many tokens, nearest in log-probability, each token of a neutral group is drawn from.
NEAREST = 60
_PLACES = ("resid_mid", "resid_post")
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
    ln(p_policy/p_base). The attribute has one group, and ``low`` to ``high`` is its bootstrap
    interval over prompts.

    `NEUTRAL_DRAWS` neutral groups (`neutral_groups`) are drawn outside the list, as likely to the
    base as the targets. Their ``base``, ``policy`` and ``log_ratio`` are means over the groups, and
    ``low`` to ``high`` is the range from 2.5 to 97.5 % of the groups' log ratios, widened by
    nothing else: what training does to a group for which it was not meant. Quantiles are at
    p·(n + 1) of the order, without bias, so those of 20 groups are the lowest and the highest, and
    one more such group lies between them in 19 of 21 cases, and below them in 1 of 21.

    Neutral tokens are chosen on one half of the prompts, drawn by the seed, and all groups are
    reported on the other half, so that what was chosen is not judged by what it was chosen on.

    Args:
        base: Base.
        policy: Policy.
        tokenizer: Names the tokens.
        texts: Prompts and the base's continuations.
        words: Case-folded words of the attribute.
        token_budget: Padded tokens a forward pass.
        draws: Bootstrap draws.
        seed: Seed of the halves, the neutral groups and the bootstrap.

    Returns:
        `LENS_COLUMNS`; ``draws`` is the number of groups. No rows, with a warning, where no word is
        a token; no neutral ones where every token is a target.

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
    candidates = [each for each in usable if each not in special]
    neutral = neutral_groups(likely, targets, candidates, seed=seed)
    shown = {ATTRIBUTE: slice(0, 1)} | ({NEUTRAL: slice(1, None)} if neutral.size else {})
    groups = [targets, *neutral]
    places = [(kind, layer) for layer in range(base.n_layers) for kind in _PLACES]
    names = [f"{kind}.{layer}" for kind, layer in places]
    found = [_prompt_log_p(lens, judging, names, groups, token_budget) for lens in (base, policy)]
    rows = []
    for (kind, layer), name in zip(places, names, strict=True):
        for group, own in shown.items():
            before, after = (log_p[name][own] for log_p in found)
            change = after - before
            ratio = bootstrap_mean(change[0], draws=draws, seed=seed)
            low, high = ratio.low, ratio.high
            if group == NEUTRAL:
                ends = np.quantile(change.mean(axis=1), (0.025, 0.975), method="weibull")
                low, high = ends.tolist()
            rows.append(
                {
                    "place": kind,
                    "layer": layer,
                    "group": group,
                    "base": float(np.exp(before).mean()),
                    "policy": float(np.exp(after).mean()),
                    "log_ratio": float(change.mean()),
                    "low": low,
                    "high": high,
                    "tokens": len(groups[-1 if group == NEUTRAL else 0]),
                    "prompts": len(judging),
                    "draws": len(change),
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


def neutral_groups(
    log_p: Float[np.ndarray, " d_vocab"],
    targets: Tokens,
    candidates: Collection[int],
    *,
    draws: int = NEUTRAL_DRAWS,
    nearest: int = NEAREST,
    seed: int = 0,
) -> Int[np.ndarray, "draw token"]:
    """Groups of tokens about as likely as the targets, drawn independently of each other.

    In each group every target, from the likeliest on, gets one token, drawn uniformly among those
    ``nearest`` to it by log p that the group does not hold yet. Groups may share tokens. In a small
    vocabulary a target draws among all that are free, though they be far, and the groups overlap
    more, so that they differ less than independent ones; with no more candidates than targets all
    are the same.

    Args:
        log_p: Mean log-probability of every token.
        targets: Never taken.
        candidates: What may be taken.
        draws: Groups.
        nearest: Tokens that each is drawn from.
        seed: Seed of the draws.

    Returns:
        A group a row, without repeats: one token a target, or all candidates where they are fewer.
    """
    ids = np.array(sorted(set(candidates) - set(targets.tolist())), dtype=np.int64)
    ids = ids[np.argsort(log_p[ids], kind="stable")]
    heights, count = log_p[ids], min(len(targets), len(ids))
    reach = nearest + count  # what the group may hold already comes on top
    pools = []
    for height in np.sort(log_p[targets])[::-1][:count]:
        middle = int(np.searchsorted(heights, height))
        window = np.arange(max(0, middle - reach), min(len(ids), middle + reach))
        pools.append(window[np.argsort(np.abs(heights[window] - height), kind="stable")])
    found = np.empty((draws, count), dtype=np.int64)
    for group, generator in zip(found, np.random.default_rng(seed).spawn(draws), strict=True):
        free = np.ones(len(ids), dtype=bool)
        for place, pool in enumerate(pools):
            taken = generator.choice(pool[free[pool]][:nearest])
            free[taken] = False
            group[place] = ids[taken]
    return found


@torch.inference_mode()
def mean_log_probabilities(
    lens: LensModel, sequences: Sequence[_Sequence], *, token_budget: int = 4096
) -> Float[np.ndarray, " d_vocab"]:
    """Mean log-probability of every token of the vocabulary, of positions and then of prompts."""
    site = resid_post(lens.n_layers - 1)
    total = np.zeros(lens.d_vocab)
    for owners, captured in _captured(lens, sequences, [site], token_budget):
        weights = 1 / (np.bincount(owners)[owners] * len(sequences))
        place = 0
        for logits in lens_logits(lens, captured[site]):
            log_p = logits.log_softmax(dim=-1).cpu().double().numpy()
            total += weights[place : place + len(log_p)] @ log_p
            place += len(log_p)
    return total


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
    groups: Sequence[Tokens],
    token_budget: int,
) -> dict[str, Float[np.ndarray, "group prompt"]]:
    """Per place ln of the mean over positions of each prompt's probability of each group."""
    found = {place: np.empty((len(groups), len(sequences))) for place in places}
    counts = np.array([len(sequence.tokens) - sequence.first for sequence in sequences])
    for owners, captured in _captured(lens, sequences, places, token_budget):
        starts = np.flatnonzero(np.diff(owners, prepend=-1))  # rows of a prompt are neighbours
        for place in places:
            values = lens_log_probabilities(lens, captured[place], groups)
            found[place][:, owners[starts]] = np.logaddexp.reduceat(values, starts, axis=1)
    return {place: total - np.log(counts) for place, total in found.items()}
