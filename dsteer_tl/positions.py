"""Which tokens a residual is read at.

``last_prompt``
    the last token of the prompt, which predicts the first token of the response;
``divergence``
    the last token of the longest common context of chosen and rejected: it predicts the first
    token in which they differ, so that one hidden state gives both log-probabilities;
``response``
    the tokens of the chosen response, each with a next token still inside it;
``token.<k>``
    the k-th token of the sequence, counted from 0.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences import PreferencePair, divergence_position, encode_pair

PROMPT_KINDS = ("last_prompt",)
PAIR_KINDS = ("last_prompt", "divergence", "response")
_KTH_TOKEN = re.compile(r"token\.(0|[1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class Probe:
    """One token sequence and the positions to read in it.

    Attributes:
        prompt: Number of its prompt, the same for every pair of one prompt: the unit that is
            resampled, left out, and put on one side of a split.
        ids: Token ids of the prompt, with the chosen response where there is one.
        positions: Positions for each kind.
        chosen_token, rejected_token: The two tokens that follow the divergence position, or None.
        item: Number of the pair or prompt in its set, in whose order rows are kept; None where each
            prompt has one sequence.
    """

    prompt: int
    ids: tuple[int, ...]
    positions: Mapping[str, tuple[int, ...]]
    chosen_token: int | None = None
    rejected_token: int | None = None
    item: int | None = None

    @property
    def order(self) -> int:
        """What rows are sorted by."""
        return self.prompt if self.item is None else self.item


def check_kinds(kinds: Sequence[str], *, pairs: bool) -> tuple[str, ...]:
    """Return the position kinds if they exist for this kind of data.

    Raises:
        ConfigurationError: An unknown kind, or one that needs pairs where there are only prompts.
    """
    allowed = PAIR_KINDS if pairs else PROMPT_KINDS
    for kind in kinds:
        if kind not in allowed and not _KTH_TOKEN.fullmatch(kind):
            what = "preference pairs" if pairs else "prompts without responses"
            raise ConfigurationError(
                f"unknown position kind {kind!r} for {what}: expected one of "
                f"{', '.join(allowed)} or token.<k>"
            )
    return tuple(kinds)


def spread_evenly(positions: Sequence[int], limit: int | None) -> tuple[int, ...]:
    """At most ``limit`` positions, first and last kept, the rest at even distances."""
    if limit is None or len(positions) <= limit:
        return tuple(positions)
    chosen = np.unique(np.linspace(0, len(positions) - 1, limit).round().astype(int))
    return tuple(positions[index] for index in chosen)


def _kth(kinds: Iterable[str], length: int, prompt: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for kind in kinds:
        match = _KTH_TOKEN.fullmatch(kind)
        if match:
            if int(match.group(1)) >= length:
                raise DataError(
                    f"prompt {prompt} has {length} tokens, so it has no position {kind!r}"
                )
            found[kind] = (int(match.group(1)),)
    return found


def probes_from_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    kinds: Sequence[str] = PROMPT_KINDS,
) -> tuple[Probe, ...]:
    """Tokenise prompts with the tokenizer's own special tokens.

    Raises:
        DataError: A prompt has no tokens.
        ConfigurationError: An unknown kind of position.
    """
    kinds = check_kinds(kinds, pairs=False)
    probes = []
    numbers: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        ids = tuple(tokenizer(prompt)["input_ids"])
        if not ids:
            raise DataError(f"prompt {index} has no tokens: {prompt!r}")
        positions = _kth(kinds, len(ids), index)
        if "last_prompt" in kinds:
            positions["last_prompt"] = (len(ids) - 1,)
        probes.append(Probe(numbers.setdefault(prompt, index), ids, positions, item=index))
    return tuple(probes)


def probes_from_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[PreferencePair],
    kinds: Sequence[str] = PAIR_KINDS,
    *,
    response_limit: int | None = 16,
) -> tuple[Probe, ...]:
    """Prompt and chosen response as one sequence; causality makes one pass serve every kind.

    Args:
        tokenizer: The tokenizer of the base.
        pairs: Preference pairs.
        kinds: Position kinds to read.
        response_limit: At most so many response positions a pair, evenly spread; None for all.

    Raises:
        DataError: A prompt has no tokens, or a sequence has no k-th token.
        ConfigurationError: An unknown kind of position.
    """
    kinds = check_kinds(kinds, pairs=True)
    probes = []
    numbers: dict[str, int] = {}
    for index, pair in enumerate(pairs):
        encoded = encode_pair(tokenizer, pair)
        prompt_length = len(encoded.prompt_ids)
        if prompt_length == 0:
            raise DataError(f"the prompt of pair {index} has no tokens: {pair.prompt!r}")
        ids = tuple(encoded.prompt_ids) + tuple(encoded.chosen_ids)
        divergence = divergence_position(encoded)
        positions = _kth(kinds, len(ids), index)
        if "last_prompt" in kinds:
            positions["last_prompt"] = (prompt_length - 1,)
        if "divergence" in kinds and divergence is not None:
            positions["divergence"] = (divergence.position,)
        if "response" in kinds:
            positions["response"] = spread_evenly(
                range(prompt_length, len(ids) - 1), response_limit
            )
        probes.append(
            Probe(
                numbers.setdefault(pair.prompt, index),
                ids,
                positions,
                None if divergence is None else divergence.chosen_token,
                None if divergence is None else divergence.rejected_token,
                index,
            )
        )
    return tuple(probes)


def check_lengths(probes: Iterable[Probe], n_ctx: int, model: str) -> None:
    """Refuse sequences longer than the context.

    Raises:
        DataError: Names the first, its length and the limit, and counts the others.
    """
    overlong = [(probe.prompt, len(probe.ids)) for probe in probes if len(probe.ids) > n_ctx]
    if overlong:
        prompt, length = overlong[0]
        raise DataError(
            f"prompt {prompt} has {length} tokens, more than the context of {model} ({n_ctx}); "
            f"{len(overlong)} such in all: shorten them or choose to drop overlong ones"
        )


def content_hash(probes: Iterable[Probe]) -> str:
    """SHA-256 over token ids and positions."""
    digest = hashlib.sha256()
    for probe in probes:
        digest.update(
            repr((probe.prompt, probe.order, probe.ids, sorted(probe.positions.items()))).encode()
        )
    return digest.hexdigest()
