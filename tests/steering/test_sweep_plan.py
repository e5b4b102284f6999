"""A sweep does what its plan says, in tables with the promised columns."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dsteer_tl.pair import ModelPair
from dsteer_tl.sites import FINAL
from dsteer_tl.steering import sweep_rows
from dsteer_tl.steering.interventions import Direction, Intervention
from dsteer_tl.steering.plan import SweepPlan, SweepSequence
from dsteer_tl.steering.scored import STATISTICS, TokenSequence, token_log_probabilities
from dsteer_tl.steering.sweep import SweepResult, execute, plan_sweep, sweep
from dsteer_tl.steering.teacher_forced import Setting, score_sequences
from dsteer_tl.steering.token_choice import Decoding
from tests.steering.tiny_steering import SEQUENCES, at, bias
from tests.tiny_pairs import tiny_pair

PROMPTS = ("Once upon a time", "The old man went to the river", "She", "He said no")
GRID, INVERT = (-1.0, 0.0, 0.5, 2.0), (0.0, 1.0)
DECODING = Decoding(max_new_tokens=4)
COLUMNS = [
    "suite", "direction", "vector", "matching", "site", "positions", "coefficient", "scale",
    "relative_norm", "prompt", "prompt_text", "completion", "n_tokens", "ended", "tokens",
    "steered", "base", "policy",
]  # fmt: skip


def items() -> list[Intervention]:
    return [
        at(FINAL),
        at(FINAL, seed=1, name="random"),
        bias(),
        at("resid_post.0"),
        at("resid_post.0", FINAL),
    ]


def make_plan(pair: ModelPair, own: list[Intervention], **settings: Any) -> SweepPlan:
    grids: dict[Direction, tuple[float, ...]] = {"interpolate": GRID, "invert": INVERT}
    curves = {
        direction: tuple(Setting.by_norm(item, grid) for item in own)
        for direction, grid in grids.items()
    }
    sequences = tuple(
        SweepSequence(item=index // 2, side=("chosen", "rejected")[index % 2], tokens=tokens)
        for index, tokens in enumerate(SEQUENCES)
    )
    return plan_sweep(
        pair,
        PROMPTS,
        generated=curves,
        sequences=sequences,
        scored=curves,
        decoding=DECODING,
        **{"rows": 16, "suite": "tiny"} | settings,
    )


@pytest.fixture(scope="module")
def swept() -> tuple[SweepPlan, SweepResult, Counter[str]]:
    """A run of everything, with what it called."""
    counts: Counter[str] = Counter()
    plan = make_plan(tiny_pair(), items())
    with pytest.MonkeyPatch.context() as patch:
        generate, score = sweep_rows.generate_rows, sweep_rows.score_directions

        def generating(*arguments: Any, **settings: Any) -> Any:
            rows = generate(*arguments, **settings)
            counts["batches"] += 1
            counts["completions"] += sum(len(row) for row in rows)
            counts["widest"] = max(counts["widest"], sum(len(row) for row in rows))
            return rows

        def scoring(pair: ModelPair, settings: Any, sequences: Any, *more: Any, **own: Any) -> Any:
            counts["scored"] += sum(len(item.completion_ids) for item in sequences)
            return score(pair, settings, sequences, *more, **own)

        patch.setattr(sweep_rows, "generate_rows", generating)
        patch.setattr(sweep_rows, "score_directions", scoring)
        return plan, execute(plan, tiny_pair(), progress=False), counts


def test_the_cost_is_what_is_done(swept: tuple[SweepPlan, SweepResult, Counter[str]]) -> None:
    plan, result, counts = swept
    cost = plan.cost()
    assert (cost.completions, cost.batches) == (counts["completions"], counts["batches"])
    assert cost.new_tokens == cost.completions * DECODING.max_new_tokens
    assert cost.scored_tokens == counts["scored"]  # once for both directions
    assert counts["widest"] <= 16
    # At h 1 + 3 · 3 rows and 1 + 3 · 1; at either other site 4 and 2: for each of four prompts.
    assert cost.completions == 4 * ((10 + 4 + 4) + (4 + 2 + 2))
    assert cost.algebraic_coefficients == 3 * (4 + 2)
    assert cost.replayed_coefficients == 2 * (4 + 2)
    assert len(result.completions) == 4 * 5 * (4 + 2)
    assert len(result.scored) == len(SEQUENCES) * 5 * (4 + 2)
    line = plan.describe()
    assert "\n" not in line and line.startswith("tiny: 104 completions of at most 4 tokens")


def test_blocks_hold_every_prompt_and_row_once() -> None:
    plan = make_plan(tiny_pair(), items(), rows=8)
    seen: Counter[tuple[str, str, int]] = Counter()
    for block in plan.blocks():
        assert len(block.prompts) * len(block.rows) <= 8 or len(block.prompts) == 1
        zeros = [scale for _, scale in block.rows if scale == 0]
        assert len(zeros) == 1
        for prompt in block.prompts:
            seen[block.direction, block.place[0], prompt] += 1
    assert set(seen.values()) == {1} and len(seen) == 2 * 3 * 4


def test_the_columns_of_completions(swept: tuple[SweepPlan, SweepResult, Counter[str]]) -> None:
    table = swept[1].completions
    assert list(table.columns) == COLUMNS
    assert set(table["suite"]) == {"tiny"} and set(table["matching"]) == {"norm"}
    assert set(table["site"]) == {"h", "resid_post.0", "resid_post.0+h"}
    keys = ["direction", "vector", "site", "coefficient", "prompt"]
    assert not table.duplicated(keys).any()
    assert (table["scale"] == table["coefficient"]).all()
    assert table["n_tokens"].between(0, DECODING.max_new_tokens).all()
    assert table["ended"].dtype == bool
    for row in table.itertuples():
        assert len(row.tokens) == len(row.steered) == len(row.base) == row.n_tokens
        assert row.prompt_text == PROMPTS[row.prompt]
        whole = "".join(token for token in row.tokens if token != "<s>")
        assert whole == row.completion or "\ufffd" in whole
        assert row.ended or row.n_tokens == DECODING.max_new_tokens
        assert all(value <= 1e-6 for value in (*row.steered, *row.base, *row.policy))
        if row.direction == "invert":
            assert len(row.policy) == row.n_tokens


def test_unsteered_rows_are_there_for_every_vector(
    swept: tuple[SweepPlan, SweepResult, Counter[str]],
) -> None:
    table = swept[1].completions
    zero = table[table["coefficient"] == 0]
    vectors = table.groupby(["direction", "site", "vector"], sort=False).ngroups
    assert len(zero) == vectors * len(PROMPTS) == 10 * len(PROMPTS)
    for (direction, _), own in zero.groupby(["direction", "prompt"]):
        assert own["completion"].nunique() == 1
        anchor = "base" if direction == "interpolate" else "policy"
        for row in own.itertuples():
            assert row.steered == pytest.approx(getattr(row, anchor), abs=1e-4)
    assert table["completion"].nunique() > 2 * len(PROMPTS)
    bias_rows = table["vector"] == "logit_bias"
    assert table["relative_norm"].isna().equals(bias_rows)
    assert (zero.loc[zero["vector"] != "logit_bias", "relative_norm"] == 0).all()


def test_log_probabilities_under_the_unsteered_models(
    swept: tuple[SweepPlan, SweepResult, Counter[str]],
) -> None:
    pair, table = tiny_pair(), swept[1].completions
    for row in table.sample(24, random_state=0).itertuples():
        if not row.n_tokens:
            continue
        prompt = tuple(pair.tokenizer(row.prompt_text)["input_ids"])
        vocabulary = {pair.tokenizer.decode([token]): token for token in range(160)}
        if any(token not in vocabulary for token in row.tokens) or "\ufffd" in "".join(row.tokens):
            continue
        ids = tuple(vocabulary[token] for token in row.tokens)
        for role in ("base", "policy"):
            own = getattr(row, role)
            if role == "policy" and row.direction == "interpolate":
                continue
            (expected,) = token_log_probabilities(getattr(pair, role), [TokenSequence(prompt, ids)])
            assert own == pytest.approx(expected, abs=3e-4)


def test_scored_rows(swept: tuple[SweepPlan, SweepResult, Counter[str]]) -> None:
    plan, result, _ = swept
    table = result.scored
    assert {"item", "side", "tokens", "coefficient", "vector", *STATISTICS} <= set(table.columns)
    for direction in ("interpolate", "invert"):
        settings = plan.scored[direction]
        expected = score_sequences(
            tiny_pair(), settings, SEQUENCES, direction, engine="hooks", progress=False
        )
        for setting, own in zip(settings, expected, strict=True):
            for index, value in enumerate(setting.coefficients):
                rows = table[
                    (table["direction"] == direction)
                    & (table["vector"] == setting.intervention.name)
                    & (table["site"] == setting.intervention.site)
                    & (table["coefficient"] == value)
                ]
                assert rows["item"].tolist() == [0, 0, 1, 1, 2]
                for name in STATISTICS:
                    np.testing.assert_allclose(
                        rows[name], getattr(own, name)[index], rtol=2e-4, atol=2e-4
                    )


def test_relative_norms(swept: tuple[SweepPlan, SweepResult, Counter[str]]) -> None:
    import torch

    pair, table = tiny_pair(), swept[1].completions
    for direction, lens in (("interpolate", pair.base), ("invert", pair.policy)):
        norms = []
        for text in PROMPTS:
            ids = torch.tensor([pair.tokenizer(text)["input_ids"]])
            with torch.inference_mode(), lens.reading(["resid_post.0"]) as kept:
                lens.forward(ids, torch.ones_like(ids))
            norms.append(float(kept["resid_post.0"][0, -1].norm()))
        own = table[(table["direction"] == direction) & (table["site"] == "resid_post.0")]
        expected = own["scale"].abs() * 2.0 / np.mean(norms)  # the vectors have norm 2
        np.testing.assert_allclose(own["relative_norm"], expected, rtol=1e-5)


def text_of(result: SweepResult) -> pd.DataFrame:
    keys = ["direction", "vector", "site", "coefficient", "prompt"]
    return result.completions.sort_values(keys).reset_index(drop=True)


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_packing_and_company_change_no_text(temperature: float) -> None:
    pair, decoding = tiny_pair(), Decoding(max_new_tokens=4, temperature=temperature, top_p=0.9)
    curves = tuple(Setting.by_norm(item, GRID) for item in items())
    one, other = (
        plan_sweep(pair, PROMPTS, generated={"interpolate": curves}, decoding=decoding, rows=rows)
        for rows in (8, 128)
    )
    small, large = (text_of(execute(plan, pair, progress=False)) for plan in (one, other))
    assert small["completion"].tolist() == large["completion"].tolist()
    for name in ("steered", "base"):
        for mine, theirs in zip(small[name], large[name], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)
    alone = sweep(pair, items()[0], PROMPTS, GRID, decoding=decoding, progress=False)
    own = large[(large["vector"] == "v_star") & (large["site"] == FINAL)]
    assert text_of(alone)["completion"].tolist() == own["completion"].tolist()


def test_sweep_is_the_plan_executed() -> None:
    pair, vector = tiny_pair(), at(FINAL)
    found = sweep(
        pair, vector, PROMPTS, GRID, invert=INVERT, decoding=DECODING, progress=False
    ).completions
    assert list(found.columns) == COLUMNS
    assert found.groupby("direction").size().to_dict() == {"interpolate": 16, "invert": 8}
    inverted = found[(found["direction"] == "invert") & (found["coefficient"] == 1)]
    by_hand = sweep(
        ModelPair(pair.policy, pair.policy, pair.tokenizer, pair.preflight),
        vector,
        PROMPTS,
        (-1.0,),
        decoding=DECODING,
        progress=False,
    ).completions
    assert inverted["completion"].tolist() == by_hand["completion"].tolist()
