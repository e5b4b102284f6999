"""Which tokens residuals are read at."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.positions import (
    Probe,
    check_kinds,
    check_lengths,
    content_hash,
    probes_from_pairs,
    probes_from_prompts,
    spread_evenly,
)
from dsteer_tl.preferences import PreferencePair, encode_pair
from tests.models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WORDS = ["the", "bird", "was", "happy", "sad", "blue", "no", "yes", "rain", "river"]
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
PAIRS = st.builds(PreferencePair, SENTENCES, SENTENCES, SENTENCES)


@settings(deadline=None, max_examples=60)
@given(pair=PAIRS)
def test_positions_of_a_pair(pair: PreferencePair) -> None:
    encoded = encode_pair(TOKENIZER, pair)
    chosen = (*encoded.prompt_ids, *encoded.chosen_ids)
    rejected = (*encoded.prompt_ids, *encoded.rejected_ids)
    (probe,) = probes_from_pairs(TOKENIZER, [pair], response_limit=None)
    assert probe.ids == chosen
    assert probe.positions["last_prompt"] == (len(encoded.prompt_ids) - 1,)
    response = probe.positions["response"]
    assert response == tuple(range(len(encoded.prompt_ids), len(chosen) - 1))
    shorter = min(len(chosen), len(rejected))
    if chosen[:shorter] == rejected[:shorter]:
        assert "divergence" not in probe.positions
        assert probe.chosen_token is None and probe.rejected_token is None
        return
    (position,) = probe.positions["divergence"]
    assert chosen[: position + 1] == rejected[: position + 1]
    assert chosen[position + 1] != rejected[position + 1]
    assert (probe.chosen_token, probe.rejected_token) == (
        chosen[position + 1],
        rejected[position + 1],
    )
    assert position >= probe.positions["last_prompt"][0]


def test_a_known_pair() -> None:
    pair = PreferencePair("Once the", " bird was happy", " bird was sad and")
    (probe,) = probes_from_pairs(TOKENIZER, [pair])
    tokens = TOKENIZER.convert_ids_to_tokens(list(probe.ids))
    assert tokens[:5] == ["<s>", "Once", "Ġthe", "Ġbird", "Ġwas"]
    assert probe.positions["last_prompt"] == (2,)
    assert probe.positions["divergence"] == (4,)
    assert probe.positions["response"] == tuple(range(3, len(tokens) - 1))


def test_response_positions_are_limited() -> None:
    pair = PreferencePair("Once", " the bird was happy and blue and sad and low again", " no")
    (probe,) = probes_from_pairs(TOKENIZER, [pair], ["response"], response_limit=3)
    (all_of_them,) = probes_from_pairs(TOKENIZER, [pair], ["response"], response_limit=None)
    found, everything = probe.positions["response"], all_of_them.positions["response"]
    assert len(found) == 3 and len(everything) > 6
    assert (found[0], found[-1]) == (everything[0], everything[-1])
    assert list(probe.positions) == ["response"]


@settings(deadline=None, max_examples=100)
@given(count=st.integers(0, 200), limit=st.none() | st.integers(0, 40), start=st.integers(0, 50))
def test_spread_evenly(count: int, limit: int | None, start: int) -> None:
    positions = range(start, start + count)
    found = spread_evenly(positions, limit)
    assert list(found) == sorted(set(found)) and set(found) <= set(positions)
    assert len(found) == (count if limit is None else min(count, limit))
    if len(found) >= 2:
        assert (found[0], found[-1]) == (positions[0], positions[-1])
        gaps = [b - a for a, b in itertools.pairwise(found)]
        assert max(gaps) - min(gaps) <= 1


def test_prompts() -> None:
    probes = probes_from_prompts(
        TOKENIZER, ["Once upon", "the bird was"], ["last_prompt", "token.1"]
    )
    assert [probe.prompt for probe in probes] == [0, 1]
    for probe in probes:
        assert probe.ids[0] == 0
        assert probe.positions == {"last_prompt": (len(probe.ids) - 1,), "token.1": (1,)}
        assert probe.chosen_token is None


@pytest.mark.parametrize("kind", ["first", "token.", "token.-1", "token.1\n", "token.01", ""])
def test_unknown_kinds(kind: str) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown position kind .* preference pairs"):
        probes_from_pairs(TOKENIZER, [PreferencePair("a", "the", "no")], [kind])


def test_kinds_that_need_pairs() -> None:
    assert check_kinds(["divergence", "token.3"], pairs=True) == ("divergence", "token.3")
    with pytest.raises(ConfigurationError, match="'divergence' for prompts without responses"):
        probes_from_prompts(TOKENIZER, ["Once"], ["divergence"])


def test_a_token_that_a_prompt_does_not_have() -> None:
    with pytest.raises(DataError, match=r"prompt 1 has 2 tokens, .* no position 'token\.2'"):
        probes_from_prompts(TOKENIZER, ["Once upon a", "Once"], ["token.2"])


def test_prompts_without_tokens() -> None:
    bare = tiny_tokenizer()
    bare.backend_tokenizer.post_processor = None  # no <s>, as in GPT-2
    with pytest.raises(DataError, match="prompt 1 has no tokens: ''"):
        probes_from_prompts(bare, ["Once", ""])
    # The completions share a token, so that a divergence exists; there is no last prompt token.
    with pytest.raises(DataError, match="the prompt of pair 0 has no tokens"):
        probes_from_pairs(bare, [PreferencePair("", "the bird", "the rain")])


def test_lengths() -> None:
    probes = [Probe(index, tuple(range(length)), {}) for index, length in enumerate((3, 9, 8, 5))]
    check_lengths(probes, 9, "m")
    with pytest.raises(DataError, match=r"prompt 1 has 9 tokens, .* of m \(7\); 2 such in all"):
        check_lengths(probes, 7, "m")


def test_content_hash() -> None:
    one = Probe(0, (1, 2, 3), {"last_prompt": (2,), "response": (1,)})
    same = Probe(0, (1, 2, 3), {"response": (1,), "last_prompt": (2,)})
    others = [
        Probe(1, one.ids, one.positions),
        Probe(0, (1, 2, 4), one.positions),
        Probe(0, one.ids, {"last_prompt": (2,)}),
    ]
    assert content_hash([one]) == content_hash([same])
    assert len({content_hash([probe]) for probe in [one, *others]}) == 4


def test_pairs_of_one_prompt_have_one_number_and_keep_their_order() -> None:
    texts = ("the bird", "the rain", "the bird", "no", "the rain")
    pairs = [PreferencePair(text, f" was {i}", f" said {i}") for i, text in enumerate(texts)]
    for probes in (probes_from_pairs(TOKENIZER, pairs), probes_from_prompts(TOKENIZER, texts)):
        assert [probe.prompt for probe in probes] == [0, 1, 0, 3, 1]
        assert [probe.order for probe in probes] == [0, 1, 2, 3, 4]
    assert Probe(7, (1, 2), {}).order == 7
