"""Encodings of text that keep its content and change its letters, and what they become as tokens.

Jailbreaks hide what is asked in an encoding (Wei et al. 2023, arXiv 2307.02483): what training
taught about plain words need not reach encoded ones. Every function here is pure; all encodings
but `leetspeak` can be undone.
"""

from __future__ import annotations

import base64
import codecs
import string
from collections.abc import Callable, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from dsteer_tl.errors import ConfigurationError, DataError

Ids = tuple[int, ...]

_LEET = str.maketrans("aeiostAEIOST", "431057431057")


def rot13(text: str) -> str:
    """Each letter of a–z and A–Z thirteen places on; its own inverse.

    Example:
        >>> rot13("Tell me")
        'Gryy zr'
    """
    return codecs.encode(text, "rot13")


def to_base64(text: str) -> str:
    """Base64 of the text's UTF-8 bytes, on one line.

    Example:
        >>> to_base64("Tell me")
        'VGVsbCBtZQ=='
    """
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def from_base64(encoded: str) -> str:
    """The text that `to_base64` encoded."""
    return base64.b64decode(encoded.encode("ascii")).decode("utf-8")


def leetspeak(text: str) -> str:
    """Digits for a, e, i, o, s and t of either case; a digit of the text stays, so not invertible.

    Example:
        >>> leetspeak("Tell me a story")
        '7311 m3 4 570ry'
    """
    return text.translate(_LEET).replace("l", "1").replace("L", "1")


def spaced(text: str) -> str:
    """A space between every two characters.

    Example:
        >>> spaced("Tell me")
        'T e l l   m e'
    """
    return " ".join(text)


def unspaced(text: str) -> str:
    """The text that `spaced` pulled apart: every other character."""
    return text[::2]


def cipher(text: str, seed: int) -> str:
    """A substitution of letters by a table drawn from a seed; no letter stands for itself.

    The table is one cycle through the alphabet, the same for both cases. Like ROT13, but no model
    has read it in training.
    """
    return text.translate(_cipher_table(seed))


def decipher(text: str, seed: int) -> str:
    """The text that `cipher` encoded with the same seed."""
    return text.translate({after: before for before, after in _cipher_table(seed).items()})


def _cipher_table(seed: int) -> dict[int, int]:
    order = np.random.default_rng(seed).permutation(26).tolist()
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return {
        ord(letters[place]): ord(letters[next_place])
        for letters in (string.ascii_lowercase, string.ascii_uppercase)
        for place, next_place in following.items()
    }


#: From the text and a seed, which only the cipher reads, to the encoded text.
ENCODINGS: dict[str, Callable[[str, int], str]] = {
    "rot13": lambda text, _: rot13(text),
    "base64": lambda text, _: to_base64(text),
    "leetspeak": lambda text, _: leetspeak(text),
    "spaced": lambda text, _: spaced(text),
    "cipher": cipher,
}


def encode_text(name: str, text: str, *, seed: int = 0) -> str:
    """The text in an encoding of `ENCODINGS`.

    Args:
        name: ``"rot13"``, ``"base64"``, ``"leetspeak"``, ``"spaced"`` or ``"cipher"``.
        text: What is encoded.
        seed: Of the cipher's table.

    Raises:
        ConfigurationError: There is no such encoding.
    """
    if name not in ENCODINGS:
        raise ConfigurationError(
            f"there is no encoding {name!r}; expected one of {', '.join(ENCODINGS)}"
        )
    return ENCODINGS[name](text, seed)


def fitting_ids(tokenizer: PreTrainedTokenizerBase, text: str, room: int) -> tuple[Ids, bool]:
    """The tokens of a text, cut on the left to the room that there is.

    A beginning-of-sequence token stays at the front.

    Args:
        tokenizer: Adds its own special tokens.
        text: What is tokenised.
        room: Most tokens.

    Returns:
        The tokens, and whether any were cut.

    Raises:
        DataError: The text has no tokens.
        ConfigurationError: There is room for fewer than two tokens.
    """
    if room < 2:
        raise ConfigurationError(
            f"there is room for {room} tokens of a prompt, expected at least 2: set "
            "stress.max_new_tokens lower"
        )
    ids = tuple(tokenizer(text, verbose=False)["input_ids"])
    if not ids:
        raise DataError(f"a prompt has no tokens: {text[:60]!r}")
    if len(ids) <= room:
        return ids, False
    begin = ids[:1] if ids[0] == tokenizer.bos_token_id else ()
    return (*begin, *ids[len(ids) - room + len(begin) :]), True


def random_tokens(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Ids], d_vocab: int, seed: int
) -> tuple[Ids, ...]:
    """Rows as long as the given ones, of tokens drawn uniformly from the vocabulary.

    Keeps the length and a beginning-of-sequence token; breaks everything else, so that what it
    shares with an encoding is only that the model cannot read it.

    Args:
        tokenizer: Tells which tokens are special and never drawn.
        rows: Tokens, one row a prompt.
        d_vocab: Size of the vocabulary.
        seed: Of the draw.
    """
    special = set(tokenizer.all_special_ids)
    drawable = np.array(
        [token for token in range(min(d_vocab, len(tokenizer))) if token not in special]
    )
    generator = np.random.default_rng(seed)
    found = []
    for row in rows:
        begin = row[:1] if row[0] == tokenizer.bos_token_id else ()
        drawn = generator.choice(drawable, size=len(row) - len(begin)).tolist()
        found.append((*begin, *drawn))
    return tuple(found)
