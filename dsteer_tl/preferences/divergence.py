"""Where the two completions of a pair part: the position at which DPO's gradient is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsteer_tl.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dsteer_tl.preferences.preference_set import PreferencePair


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair in tokens; either sequence the model sees is `prompt_ids` + one completion.

    Attributes:
        prompt_ids: the prompt with the tokenizer's special tokens.
        chosen_ids: y_w without special tokens.
        rejected_ids: y_l without special tokens.
    """

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The last position at which both sequences have the same context.

    Attributes:
        position: index, in prompt + completion, of the last common token; its logits predict the
            first token where the completions differ.
        chosen_token: y_w's token at `position + 1`.
        rejected_token: y_l's token at `position + 1`.
    """

    position: int
    chosen_token: int
    rejected_token: int


def encode_pair(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> EncodedPair:
    """Tokenise a pair: prompt with special tokens, completions without, joined as tokens.

    Joining tokens, not text, keeps the prompt's tokens equal in both sequences.
    """
    return EncodedPair(
        prompt_ids=tuple(tokenizer(pair.prompt, verbose=False)["input_ids"]),
        chosen_ids=_completion_ids(tokenizer, pair.chosen),
        rejected_ids=_completion_ids(tokenizer, pair.rejected),
    )


def divergence_position(encoded: EncodedPair) -> Divergence | None:
    """Find the last token of the longest common context.

    At this position, and only there, ∇_h L_DPO ∝ −(e_w − e_l) holds exactly (D-STEER,
    arXiv 2512.11838; rows 1 and 2 of the claims ledger).

    Returns:
        None when one completion is a prefix of the other (or they are equal): then no position
        has two next tokens to compare.

    Raises:
        DataError: the sequences have no token in common, because the prompt has none.
    """
    for offset, (chosen, rejected) in enumerate(
        zip(encoded.chosen_ids, encoded.rejected_ids, strict=False)
    ):
        if chosen != rejected:
            position = len(encoded.prompt_ids) + offset - 1
            if position < 0:
                raise DataError(
                    "the prompt has no tokens and the completions differ at their first, so there "
                    "is no common context; expected a prompt of at least one token"
                )
            return Divergence(position, chosen, rejected)
    return None


def _completion_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
