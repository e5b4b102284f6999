"""What a sweep of coefficients costs against doing each coefficient by itself.

Collected only when asked for: `pytest tests/benchmarks`. Ratios within one run go into
`figures/benchmarks.json`; no time is asserted, since it depends on the machine.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from dsteer_tl.lens_model import (
    pad,
)
from dsteer_tl.pair import ModelPair
from dsteer_tl.sites import FINAL, resid_post
from dsteer_tl.steering.interventions import Intervention
from dsteer_tl.steering.packed_generation import generate_rows
from dsteer_tl.steering.reference import ROLES, Role
from dsteer_tl.steering.scored import STATISTICS, TokenSequence
from dsteer_tl.steering.teacher_forced import Engine, Setting, score_sequences
from dsteer_tl.steering.token_choice import Decoding
from tests.benchmarks.results import (
    Seconds,
    median_seconds,
    ratio_entry,
    timed_in_turn,
    write_result,
)
from tests.benchmarks.sweep_work import default_pair, plain_models, plain_scores, sequences, vector

COEFFICIENTS = tuple(float(value) for value in np.linspace(-1, 1, 9))
FINE_GRID = tuple(float(value) for value in np.linspace(-2, 2, 41))
DECODING = Decoding(max_new_tokens=40)
_HEROES = ("The dog", "A girl named Lily", "Tom", "Once upon a time a bird")
_PLACES = ("was in the park", "went home", "saw a friend near the big tree", "said that")
PROMPTS = tuple(f"{hero} {place}" for hero in _HEROES for place in _PLACES)


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    """The embedded model and a perturbed copy."""
    return default_pair()


@pytest.mark.parametrize("site", [FINAL, "resid_post.middle"])
def test_generation_of_a_sweep(pair: ModelPair, site: str) -> None:
    """Prompts × coefficients in one batch, against one batch of prompts a coefficient."""
    lens = pair.base
    own = vector(lens, FINAL if site == FINAL else resid_post(lens.n_layers // 2))
    prompts = [tuple(pair.tokenizer(text)["input_ids"]) for text in PROMPTS]
    item = Intervention(name="random", vectors=(own,))
    batch = pad(prompts, side="left")
    ends = set(lens.end_token_ids)

    def packed() -> list[list[tuple[int, ...]]]:
        rows = generate_rows(lens, prompts, [(item, scale) for scale in COEFFICIENTS], DECODING)
        return [[completion.tokens for completion in row] for row in rows]

    def looped() -> list[list[tuple[int, ...]]]:
        columns = []
        for scale in COEFFICIENTS:
            with own.apply(lens, scale):
                found = lens.generate(batch.ids, batch.mask, max_new_tokens=DECODING.max_new_tokens)
            new = found[:, batch.ids.shape[1] :].tolist()
            columns.append([cut(row, ends) for row in new])
        return [list(row) for row in zip(*columns, strict=True)]

    texts = packed()  # warm-up, and the work compared
    assert texts == looped()
    tokens = sum(len(completion) for row in texts for completion in row)
    packed_times, looped_times = timed_in_turn([packed, looped])
    entry = ratio_entry(looped_times, packed_times, target=2.5, direction=">=")
    assert math.isfinite(entry["ratio"])
    write_result(
        f"sweep_generation_{'h' if site == FINAL else 'middle'}",
        entry
        | {
            "prompts": len(prompts),
            "coefficients": len(COEFFICIENTS),
            "tokens_per_second": round(tokens / median_seconds(packed_times), 1),
            "tokens_per_second_looped": round(tokens / median_seconds(looped_times), 1),
        },
    )


def cut(row: list[int], ends: set[int]) -> tuple[int, ...]:
    """Tokens before the end of sequence."""
    stop = next((index for index, token in enumerate(row) if token in ends), None)
    return tuple(row[:stop])


def test_scores_of_a_fine_grid(pair: ModelPair) -> None:
    """41 coefficients at h by algebra, against other ways to the same statistics.

    Every side scores the same 32 completions: log-probability, KL from base and policy, agreement
    of the likeliest token. The unembedding runs on the scored tokens alone wherever this library
    runs the models.

    *One coefficient*: the same call with one coefficient. *One pass each*: a whole pass of the
    steered base under a hook for each of the 41; both sides run the unsteered base and policy once,
    so that there are 43 passes against 2 and no way of saving them gives more than 21.5, unless the
    statistics of a coefficient cost more than a pass. *Plain transformers*: the same 43 passes with
    a hook on the final norm, logits at all positions and float32 statistics, as one writes them
    without a library. *One call each*: 41 times the time of a call with one coefficient that runs
    base, policy and the steered base, as where each coefficient is a run of its own.
    """
    item = Intervention(name="random", vectors=(vector(pair.base, FINAL, 0.1),))
    rows = sequences(pair.base, 32)
    models = plain_models()
    scored = partial(scored_by, pair, item, rows, references=ROLES)
    plain = partial(plain_scores, models, item.vectors[0].values, rows, FINE_GRID, ROLES)

    found = scored(FINE_GRID, "algebra")
    same_scores(found, scored(FINE_GRID, "hooks"), ROLES)
    same_scores(found, plain(), ROLES)
    one, grid, passes, call, by_plain = timed_in_turn(
        [
            lambda: scored((1.0,), "algebra"),
            lambda: scored(FINE_GRID, "algebra"),
            lambda: scored(FINE_GRID, "hooks"),
            lambda: scored((1.0,), "hooks"),
            plain,
        ]
    )
    calls = [(len(FINE_GRID) * clock, len(FINE_GRID) * cpu) for clock, cpu in call]
    write_ratio("sweep_grid_against_one_coefficient", grid, one, 1.3, "<=", len(rows))
    write_ratio("sweep_grid_against_one_pass_each", passes, grid, 30.0, ">=", len(rows))
    write_ratio("sweep_grid_against_one_call_each", calls, grid, 30.0, ">=", len(rows))
    write_ratio("sweep_grid_against_plain_transformers", by_plain, grid, 30.0, ">=", len(rows))


def test_log_probabilities_of_a_fine_grid(pair: ModelPair) -> None:
    """41 coefficients at h where log-probabilities alone are asked for, so that one model runs.

    41 passes against one, of the base in both; see `test_scores_of_a_fine_grid` for the sides.
    """
    item = Intervention(name="random", vectors=(vector(pair.base, FINAL, 0.1),))
    rows = sequences(pair.base, 32)
    scored = partial(scored_by, pair, item, rows, references=())
    plain = partial(plain_scores, plain_models(), item.vectors[0].values, rows, FINE_GRID, ())

    found = scored(FINE_GRID, "algebra")
    same_scores(found, scored(FINE_GRID, "hooks"), ())
    same_scores(found, plain(), ())
    grid, passes, by_plain = timed_in_turn(
        [
            lambda: scored(FINE_GRID, "algebra"),
            lambda: scored(FINE_GRID, "hooks"),
            plain,
        ]
    )
    name = "sweep_grid_of_log_probabilities_against"
    write_ratio(f"{name}_one_pass_each", passes, grid, 30.0, ">=", len(rows))
    write_ratio(f"{name}_plain_transformers", by_plain, grid, 30.0, ">=", len(rows))


def scored_by(
    pair: ModelPair,
    item: Intervention,
    rows: list[TokenSequence],
    scales: tuple[float, ...],
    engine: Engine,
    references: tuple[Role, ...],
) -> dict[str, np.ndarray]:
    """Scores of one engine, by statistic."""
    (found,) = score_sequences(
        pair,
        [Setting.by_norm(item, scales)],
        rows,
        "interpolate",
        engine=engine,
        references=references,
        progress=False,
    )
    return {name: getattr(found, name) for name in STATISTICS}


def same_scores(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], references: tuple[Role, ...]
) -> None:
    """Log-probabilities and KL within a hundredth of a nat a completion."""
    for name in ("log_probability", *(f"kl_{role}" for role in references)):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-2)
    for role in references:  # near ties may fall either way
        assert np.abs(found[f"top1_{role}"] - expected[f"top1_{role}"]).max() <= 1


def write_ratio(
    name: str,
    above: list[Seconds],
    below: list[Seconds],
    target: float,
    direction: str,
    completions: int,
) -> None:
    """One entry on the fine grid."""
    entry = ratio_entry(above, below, target=target, direction=direction)
    assert math.isfinite(entry["ratio"])
    write_result(name, entry | {"coefficients": len(FINE_GRID), "sequences": completions})
