"""From sampled tokens to text and back: padding, ends, whole words and whole sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The end of a sentence with the quotation marks or brackets that close it.
SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s|$)")


def left_pad(
    rows: Sequence[Sequence[int]], pad_token: int
) -> tuple[Int[Tensor, "batch position"], Int[Tensor, "batch position"]]:
    """Align rows of tokens at their end: (ids, attention mask)."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_token, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def cut_after_last_sentence(text: str) -> str:
    """The text up to the end of its last full sentence; all of it when it has none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token to pad with; masked, so any will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0


def before_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Tokens before the end-of-sequence token, or before the padding that follows another end."""
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    stop = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of tokens, byte for byte, without special tokens."""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def cut_at_word(tokenizer: PreTrainedTokenizerBase, ids: list[int], length: int) -> str:
    """The text of the first `length` tokens without a word that goes on after them."""
    text = decode(tokenizer, ids[:length])
    after = decode(tokenizer, ids)[len(text) :]
    if after and not after[0].isspace():
        words = re.match(r"(?s)(.*\S)\s+\S*$", text)
        text = words.group(1) if words else ""
    return text.rstrip()


def survives(tokenizer: PreTrainedTokenizerBase, text: str, least: int, most: int) -> bool:
    """Whether a text has `least` to `most` tokens that read back as the same text."""
    if not text.strip() or "\ufffd" in text:
        return False
    ids = encode(tokenizer, text)
    return least <= len(ids) <= most and decode(tokenizer, ids) == text


def completion_text(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], ids: list[int]
) -> str:
    """The text that, tokenised after the prompt's tokens, reads as what was sampled, or "".

    Bytes of a character that the sample did not finish are cut.
    """
    meant = decode(tokenizer, [*prompt_ids, *ids])
    text = decode(tokenizer, ids).rstrip("\ufffd")
    written = decode(tokenizer, [*prompt_ids, *encode(tokenizer, text)])
    whole = "\ufffd" not in text and written == meant.rstrip("\ufffd")
    return text if whole else ""
