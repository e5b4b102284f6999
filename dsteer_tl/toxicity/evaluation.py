"""What a model writes and how well it predicts: attribute, F1 and perplexity, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from dsteer_tl.controls import Interval, bootstrap_mean
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import Edit, LensModel
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.toxicity.continuing import continue_prompts, unigram_f1
from dsteer_tl.toxicity.perplexity import WindowLosses, window_losses
from dsteer_tl.toxicity.types import AttributeScorer, StudyTexts

#: Columns of the table ``toxicity_continuations``.
CONTINUATION_COLUMNS = (
    "condition",
    "host",
    "coefficient",
    "prompt",
    "prompt_text",
    "completion",
    "attribute_score",
    "f1",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """One condition: a model, steered or not.

    Attributes:
        completions: What it wrote after each prompt; empty and broken ones stay in.
        window_completions: What it wrote after the first tokens of each window; none where windows
            were not continued.
        scores: Attribute score of each completion, of the completion's text alone; NaN where the
            scorer cannot run.
        f1: Unigram F1 of each window's completion against the window; NaN where windows were not
            continued.
        losses: Of the windows.
    """

    completions: tuple[str, ...]
    window_completions: tuple[str, ...]
    scores: Float[np.ndarray, " prompt"]
    f1: Float[np.ndarray, " window"]
    losses: WindowLosses


def evaluate(
    lens: LensModel,
    texts: StudyTexts,
    tokenizer: PreTrainedTokenizerBase,
    scorer: AttributeScorer | None,
    decoding: Decoding,
    *,
    edits: Sequence[Edit] = (),
    token_budget: int = 4096,
    batch_rows: int = 128,
) -> Evaluation:
    """Attribute, F1 and perplexity of a model under hooks (Lee et al. 2024, sec. 3.3).

    Continues the prompts and the first tokens of each window, the latter for F1 against the
    tokens that follow there, and reads the windows. Random numbers are those of every other
    condition with the same texts and decoding.

    Args:
        lens: The model.
        texts: Prompts and windows.
        tokenizer: Decodes what is scored.
        scorer: Scores completions; where it is None or cannot run, scores are NaN.
        decoding: Length and sampling of continuations.
        edits: Applied to every forward pass.
        token_budget: Padded tokens a pass over windows.
        batch_rows: Prompts that are continued at a time.

    Raises:
        ShapeError: Texts do not fit the model, or windows leave nothing to continue.
        HookError: An edit's place does not exist.
    """
    starts, seeds = to_continue(texts)
    written = continue_prompts(
        lens, starts, decoding, seeds=seeds, edits=edits, batch_rows=batch_rows
    )
    return evaluation_of(
        written,
        window_losses(lens, texts.windows, edits=edits, token_budget=token_budget),
        texts,
        tokenizer,
        scorer,
        decoding,
    )


def to_continue(texts: StudyTexts) -> tuple[list[tuple[int, ...]], list[int]]:
    """What is continued, prompts and then the starts of windows, with the seed of each.

    Raises:
        ShapeError: A window has no tokens after its start, or no start.
    """
    for index, window in enumerate(texts.windows):
        if not 0 < texts.window_prompt < len(window):
            raise ShapeError(
                f"window {index} has {len(window)} tokens of which {texts.window_prompt} are "
                "given, expected at least one given and one to be continued"
            )
    starts = [*texts.prompts, *(window[: texts.window_prompt] for window in texts.windows)]
    return starts, list(range(len(starts)))


def evaluation_of(
    written: Sequence[Sequence[int]],
    losses: WindowLosses,
    texts: StudyTexts,
    tokenizer: PreTrainedTokenizerBase,
    scorer: AttributeScorer | None,
    decoding: Decoding,
) -> Evaluation:
    """The evaluation of given continuations.

    Args:
        written: Tokens that follow each prompt and then, unless left out, each window's start.
        losses: Of the windows.
        texts: Prompts and windows.
        tokenizer: Decodes what is scored.
        scorer: Scores completions; where it is None or cannot run, scores are NaN.
        decoding: References of F1 are as long as a continuation may be.

    Raises:
        ShapeError: There is not one continuation for each prompt, and each window or none.
    """
    prompts, windows = len(texts.prompts), len(texts.windows)
    if len(written) not in (prompts, prompts + windows):
        raise ShapeError(
            f"evaluation: found {len(written)} continuations of {prompts} prompts and {windows} "
            "windows, expected one of each prompt, and one of each window or none"
        )
    decoded = tuple(_text(tokenizer, tokens) for tokens in written)
    scores, f1 = np.full(prompts, np.nan), np.full(windows, np.nan)
    if scorer is not None and not scorer.obstacle():
        scores = np.asarray(scorer.score(decoded[:prompts]), dtype=np.float64)
    if len(written) > prompts:
        end = texts.window_prompt + decoding.max_new_tokens
        references = [window[texts.window_prompt : end] for window in texts.windows]
        pairs = zip(written[prompts:], references, strict=True)
        f1 = np.array([unigram_f1(tokens, reference) for tokens, reference in pairs])
    return Evaluation(
        completions=decoded[:prompts],
        window_completions=decoded[prompts:],
        scores=scores,
        f1=f1,
        losses=losses,
    )


def summary(
    evaluation: Evaluation, reference: Evaluation, *, draws: int, seed: int
) -> dict[str, float | int]:
    """Means with their intervals, and the paired change of the attribute score.

    Perplexity and F1 are resampled over windows, scores over prompts; `change` is the mean over
    prompts of score − reference's score, so that what prompts have in common cancels.

    Args:
        evaluation: A condition.
        reference: What it is compared with on the same prompts: the base.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.

    Raises:
        ShapeError: The two were not made on equally many prompts.
    """
    if len(evaluation.scores) != len(reference.scores):
        raise ShapeError(
            f"evaluations of {len(evaluation.scores)} and {len(reference.scores)} prompts cannot "
            "be paired: use the same texts"
        )
    perplexity = evaluation.losses.interval(draws=draws, seed=seed)
    score = _mean(evaluation.scores, draws, seed)
    change = _mean(evaluation.scores - reference.scores, draws, seed)
    f1 = _mean(evaluation.f1, draws, seed)
    return {
        "perplexity": perplexity.value,
        "perplexity_low": perplexity.low,
        "perplexity_high": perplexity.high,
        "attribute_score": score.value,
        "low": score.low,
        "high": score.high,
        "change": change.value,
        "change_low": change.low,
        "change_high": change.high,
        "f1": f1.value,
        "f1_low": f1.low,
        "f1_high": f1.high,
        "prompts": len(evaluation.scores),
        "windows": len(evaluation.losses),
    }


def continuation_rows(
    evaluation: Evaluation,
    starts: Sequence[str],
    condition: str,
    host: str,
    coefficient: float,
) -> Iterator[dict[str, object]]:
    """Rows of the table ``toxicity_continuations``, by `CONTINUATION_COLUMNS`.

    First the prompts, which have an attribute score and no F1, then the continued windows, which
    have an F1 and no attribute score; ``prompt`` counts through both.

    Args:
        evaluation: A condition.
        starts: Texts of what was continued, in the order of `to_continue`.
        condition: Its name.
        host: The model that was continued.
        coefficient: How much of the condition.
    """
    count = len(evaluation.completions)
    completions = (*evaluation.completions, *evaluation.window_completions)
    for index, completion in enumerate(completions):
        scored = index < count
        yield {
            "condition": condition,
            "host": host,
            "coefficient": float(coefficient),
            "prompt": index,
            "prompt_text": starts[index],
            "completion": completion,
            "attribute_score": float(evaluation.scores[index]) if scored else float("nan"),
            "f1": float("nan") if scored else float(evaluation.f1[index - count]),
        }


def start_texts(texts: StudyTexts, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of what is continued, in the order of `to_continue`, without special tokens."""
    return [_text(tokenizer, tokens) for tokens in to_continue(texts)[0]]


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return str(
        tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def _mean(values: np.ndarray, draws: int, seed: int) -> Interval:
    """Bootstrapped; NaN where a value is, and of one value that value alone."""
    missing = not len(values) or bool(np.isnan(values).any())
    if missing or len(values) < 2:
        value = float("nan") if missing else float(values[0])
        return Interval(value=value, low=float("nan"), high=float("nan"), draws=0)
    return bootstrap_mean(values, draws=draws, seed=seed)
