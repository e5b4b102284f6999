"""Encodings keep their content, and what they become as tokens keeps its length."""

from __future__ import annotations

import codecs
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.stress.text_encodings import (
    ENCODINGS,
    cipher,
    decipher,
    encode_text,
    fitting_ids,
    from_base64,
    leetspeak,
    random_tokens,
    rot13,
    spaced,
    to_base64,
    unspaced,
)
from tests.models import VOCABULARY, tiny_tokenizer

TEXTS = st.text(st.characters(exclude_categories=("Cs",)))


@given(TEXTS, st.integers(0, 2**31))
def test_encodings_can_be_undone(text: str, seed: int) -> None:
    assert rot13(rot13(text)) == text
    assert from_base64(to_base64(text)) == text
    assert unspaced(spaced(text)) == text
    assert decipher(cipher(text, seed), seed) == text


@given(TEXTS)
def test_lengths_follow_from_the_encoding(text: str) -> None:
    assert len(rot13(text)) == len(leetspeak(text)) == len(cipher(text, 0)) == len(text)
    assert len(spaced(text)) == max(0, 2 * len(text) - 1)
    assert len(to_base64(text)) == 4 * -(-len(text.encode()) // 3)


def test_encodings_on_known_text() -> None:
    assert rot13("Tell me a story, 3 times.") == "Gryy zr n fgbel, 3 gvzrf."
    assert to_base64("Tell me") == "VGVsbCBtZQ=="
    assert leetspeak("Tell me a Story") == "7311 m3 4 570ry"
    assert spaced("Tell") == "T e l l"


@given(st.integers(0, 2**31))
def test_no_letter_of_the_cipher_stands_for_itself(seed: int) -> None:
    encoded = cipher(string.ascii_lowercase, seed)
    assert sorted(encoded) == list(string.ascii_lowercase)
    assert all(a != b for a, b in zip(encoded, string.ascii_lowercase, strict=True))
    assert cipher(string.ascii_uppercase, seed) == encoded.upper()


def test_the_cipher_is_drawn_by_its_seed_and_is_not_rot13() -> None:
    alphabet = string.ascii_lowercase
    assert encode_text("cipher", alphabet, seed=1) == encode_text("cipher", alphabet, seed=1)
    assert encode_text("cipher", alphabet, seed=1) != encode_text("cipher", alphabet, seed=2)
    assert encode_text("cipher", alphabet, seed=1) != codecs.encode(alphabet, "rot13")


def test_an_unknown_encoding_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"'morse'.*" + ", ".join(ENCODINGS)):
        encode_text("morse", "text")


def test_a_text_that_fits_is_left_alone() -> None:
    tokenizer = tiny_tokenizer()
    ids = tuple(tokenizer("the old man")["input_ids"])
    assert fitting_ids(tokenizer, "the old man", len(ids)) == (ids, False)


def test_a_long_text_is_cut_on_the_left_behind_its_first_token() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("the old man went to the river")["input_ids"]
    cut, was_cut = fitting_ids(tokenizer, "the old man went to the river", 5)
    assert was_cut
    assert cut == (tokenizer.bos_token_id, *ids[-4:])


def test_texts_without_tokens_or_room_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(ConfigurationError, match="room for 1 token"):
        fitting_ids(tokenizer, "the", 1)
    tokenizer.backend_tokenizer.post_processor = None  # adds no first token any more
    with pytest.raises(DataError, match="no tokens"):
        fitting_ids(tokenizer, "", 8)


def test_random_tokens_keep_length_and_first_token_alone() -> None:
    tokenizer = tiny_tokenizer()
    rows = [tuple(tokenizer(text)["input_ids"]) for text in ("the old man", "rain", "she " * 200)]
    drawn = random_tokens(tokenizer, rows, VOCABULARY, seed=0)
    assert [len(row) for row in drawn] == [len(row) for row in rows]
    assert {row[0] for row in drawn} == {tokenizer.bos_token_id}
    inside = {token for row in drawn for token in row[1:]}
    assert not inside & set(tokenizer.all_special_ids)
    assert len(inside) > 50, "drawn from the whole vocabulary"
    assert drawn == random_tokens(tokenizer, rows, VOCABULARY, seed=0)
    assert drawn != random_tokens(tokenizer, rows, VOCABULARY, seed=1)
