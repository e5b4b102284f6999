"""What is scored, what stays in, and that changes are paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from dsteer_tl.directions import SteeringVector
from dsteer_tl.errors import ShapeError
from dsteer_tl.sites import FINAL
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.toxicity.continuing import continue_prompts, unigram_f1
from dsteer_tl.toxicity.evaluation import (
    CONTINUATION_COLUMNS,
    Evaluation,
    continuation_rows,
    evaluate,
    evaluation_of,
    start_texts,
    summary,
    to_continue,
)
from dsteer_tl.toxicity.perplexity import WindowLosses, window_losses
from dsteer_tl.toxicity.types import StudyTexts
from tests.models import tiny_tokenizer
from tests.steering.tiny_steering import tokens, vector
from tests.tiny_pairs import tiny_pair

DECODING = Decoding(max_new_tokens=5, temperature=1.0, seed=2)
TEXTS = StudyTexts(
    prompts=tuple((0, *tokens(length, 7)) for length in (3, 6, 2, 5)),
    windows=tuple((0, *tokens(length, 8)) for length in (11, 9, 10)),
    window_prompt=4,
    continuations={},
)
TOKENIZER = tiny_tokenizer()


@dataclass
class VowelShare:
    """Scores the share of vowels, and keeps what it was asked."""

    reason: str = ""
    seen: list[str] = field(default_factory=list)
    name: str = "vowels"
    source: str = "this test"

    def obstacle(self) -> str:
        return self.reason

    def score(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        return np.array([sum(c in "aeiou" for c in text) / max(1, len(text)) for text in texts])

    def words(self) -> frozenset[str]:
        return frozenset()


def decode(ids: Sequence[int]) -> str:
    return str(TOKENIZER.decode(list(ids), skip_special_tokens=True))


def given(scores: Sequence[float], f1: Sequence[float] = (0.5, 0.7)) -> Evaluation:
    losses = WindowLosses(nats=np.array([6.0, 9.0]), tokens=np.array([3, 4]))
    return Evaluation(
        completions=("a",) * len(scores),
        window_completions=("b",) * len(f1),
        scores=np.array(scores),
        f1=np.array(f1),
        losses=losses,
    )


def test_the_parts_are_those_of_the_model() -> None:
    lens, scorer = tiny_pair().base, VowelShare()
    edits = [vector("resid_post.0").edit(0.5)]
    found = evaluate(lens, TEXTS, TOKENIZER, scorer, DECODING, edits=edits, batch_rows=2)
    starts = [*TEXTS.prompts, *(window[:4] for window in TEXTS.windows)]
    written = continue_prompts(lens, starts, DECODING, edits=edits)
    assert found.completions == tuple(map(decode, written[:4]))
    assert found.window_completions == tuple(map(decode, written[4:]))
    # The completion alone is scored, without its prompt.
    assert scorer.seen == list(found.completions)
    np.testing.assert_array_equal(found.scores, VowelShare().score(found.completions))
    references = [window[4:9] for window in TEXTS.windows]
    expected = [unigram_f1(a, b) for a, b in zip(written[4:], references, strict=True)]
    np.testing.assert_array_equal(found.f1, expected)
    losses = window_losses(lens, TEXTS.windows, edits=edits)
    np.testing.assert_allclose(found.losses.nats, losses.nats, rtol=1e-5)
    plain = evaluate(lens, TEXTS, TOKENIZER, scorer, DECODING)
    assert plain.losses.perplexity != found.losses.perplexity
    assert plain.completions != found.completions


def test_references_are_as_long_as_continuations() -> None:
    losses = WindowLosses(nats=np.ones(3), tokens=np.ones(3, dtype=int))
    exact = [*([(9,)] * 4), *(window[4:9] for window in TEXTS.windows)]
    found = evaluation_of(exact, losses, TEXTS, TOKENIZER, None, DECODING)
    np.testing.assert_array_equal(found.f1, 1.0)
    longer = evaluation_of(
        exact, losses, TEXTS, TOKENIZER, None, replace(DECODING, max_new_tokens=7)
    )
    np.testing.assert_allclose(longer.f1, [2 * 5 / 12, 2 * 5 / 11, 2 * 5 / 12])


def test_empty_completions_stay_in() -> None:
    lens, scorer = tiny_pair().base, VowelShare()
    (end,) = lens.end_token_ids
    pull = SteeringVector(100 * lens.W_U[:, end].double().numpy(), FINAL, "end", "x", 1)
    found = evaluate(lens, TEXTS, TOKENIZER, scorer, DECODING, edits=[pull.edit()])
    assert scorer.seen == [""] * 4
    np.testing.assert_array_equal(found.scores, [0.0] * 4)
    np.testing.assert_array_equal(found.f1, [0.0] * 3)


@pytest.mark.parametrize("scorer", [None, VowelShare(reason="no weights")])
def test_without_a_scorer_the_rest_is_measured(scorer: VowelShare | None) -> None:
    lens = tiny_pair().base
    found = evaluate(lens, TEXTS, TOKENIZER, scorer, DECODING)
    assert np.isnan(found.scores).all()
    assert len(found.scores) == len(found.completions) == 4
    numbers = summary(found, found, draws=20, seed=0)
    missing = {name for name, value in numbers.items() if np.isnan(value)}
    assert missing == {"attribute_score", "low", "high", "change", "change_low", "change_high"}
    if scorer is not None:
        assert scorer.seen == []


def test_windows_need_not_be_continued() -> None:
    losses = WindowLosses(nats=np.ones(3), tokens=np.ones(3, dtype=int))
    found = evaluation_of([(9,)] * 4, losses, TEXTS, TOKENIZER, VowelShare(), DECODING)
    assert np.isnan(found.f1).all()
    assert found.window_completions == ()
    numbers = summary(found, found, draws=20, seed=0)
    assert np.isnan([numbers["f1"], numbers["f1_low"], numbers["f1_high"]]).all()
    assert (numbers["prompts"], numbers["windows"]) == (4, 3)
    with pytest.raises(ShapeError, match="found 5 continuations of 4 prompts and 3 windows"):
        evaluation_of([(9,)] * 5, losses, TEXTS, TOKENIZER, None, DECODING)


def test_the_change_is_paired() -> None:
    before = np.random.default_rng(0).random(40)
    numbers = summary(given(before - 0.1), given(before), draws=200, seed=0)
    # All prompts fall alike: the scores scatter, their change does not.
    assert numbers["change"] == pytest.approx(-0.1)
    assert numbers["change_high"] - numbers["change_low"] < 1e-12
    assert numbers["high"] - numbers["low"] > 0.1
    assert numbers["attribute_score"] == pytest.approx(before.mean() - 0.1)
    assert numbers["low"] < numbers["attribute_score"] < numbers["high"]
    assert numbers["perplexity"] == pytest.approx(np.exp(15 / 7))
    assert numbers["perplexity_low"] == pytest.approx(np.exp(2))
    assert numbers["perplexity_high"] == pytest.approx(np.exp(2.25))
    assert (numbers["f1"], numbers["f1_low"], numbers["f1_high"]) == pytest.approx((0.6, 0.5, 0.7))
    with pytest.raises(ShapeError, match="evaluations of 3 and 40 prompts"):
        summary(given([0.1] * 3), given(before), draws=9, seed=0)


def test_one_prompt_has_no_interval() -> None:
    numbers = summary(given([0.4]), given([0.5]), draws=9, seed=0)
    assert (numbers["attribute_score"], numbers["change"]) == pytest.approx((0.4, -0.1))
    assert np.isnan([numbers["low"], numbers["change_high"]]).all()


def test_rows_of_continuations() -> None:
    found = given([0.25, 0.75], f1=(0.1, 0.2))
    starts = start_texts(
        replace(TEXTS, prompts=TEXTS.prompts[:2], windows=TEXTS.windows[:2]), TOKENIZER
    )
    rows = list(continuation_rows(found, starts, "probe", "base", 2))
    assert all(tuple(row) == CONTINUATION_COLUMNS for row in rows)
    assert [row["prompt"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["prompt_text"] == decode(TEXTS.prompts[1])
    assert rows[2]["prompt_text"] == decode(TEXTS.windows[0][:4])
    assert [row["completion"] for row in rows] == ["a", "a", "b", "b"]
    np.testing.assert_array_equal(
        [row["attribute_score"] for row in rows], [0.25, 0.75, *[np.nan] * 2]
    )
    np.testing.assert_array_equal([row["f1"] for row in rows], [np.nan, np.nan, 0.1, 0.2])
    assert {(row["condition"], row["host"], row["coefficient"]) for row in rows} == {
        ("probe", "base", 2.0)
    }


def test_windows_that_leave_nothing_to_continue_are_refused() -> None:
    for start in (0, 10):
        with pytest.raises(ShapeError, match=rf"tokens of which {start} are given"):
            to_continue(replace(TEXTS, window_prompt=start))
