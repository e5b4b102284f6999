"""Rows 33–36 on planted tables: what is true is found, and what the control shows too is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest

from dsteer_tl.claims.measured_stress import (
    drift_over_turns,
    encoded_prompts,
    harmful_deflected,
    same_across_models,
)
from dsteer_tl.claims.selection import MissingRowsError
from dsteer_tl.claims.verdicts import Measurement, Tables, Verdict, decide
from dsteer_tl.controls import Interval
from dsteer_tl.stress.prompt_shifts import (
    RowCollector,
)

N = 48
WORLDS = 100
Draw = Callable[[np.random.Generator], Tables]


def verdicts(measure: Callable[[Tables], Measurement], draw: Draw) -> pd.Series:
    found = [decide(measure(draw(np.random.default_rng(seed)))).value for seed in range(WORLDS)]
    return pd.Series(found).value_counts(normalize=True)


def share(found: pd.Series, verdict: Verdict) -> float:
    return float(found.get(verdict.value, 0.0))


def collector(test: str) -> RowCollector:
    return RowCollector(test=test, draws=100, seed=0)


def encodings(encoded: float, random: float, plain: float = 1.0, noise: float = 0.3) -> Draw:
    """Each prompt's projection has a size of its own and what each condition does to it."""

    def draw(generator: np.random.Generator) -> Tables:
        rows, size = collector("encodings"), generator.gamma(9.0, 1 / 9, N)
        each = {
            name: plain * size * left + noise * generator.standard_normal(N)
            for name, left in (("plain", 1.0), ("all", encoded), ("random_tokens", random))
        }
        rows.mean("plain", "measured", "projection", each["plain"], "h")
        for name in ("all", "random_tokens"):
            rows.ratio(name, "measured", "projection_ratio", each[name], each["plain"], "h")
        more = each["all"] - each["random_tokens"]
        rows.ratio("all", "measured", "projection_ratio_over_random", more, each["plain"], "h")
        return {"stress_encodings": rows.table()}

    return draw


def test_an_encoding_that_bypasses_is_found() -> None:
    found = verdicts(encoded_prompts, encodings(0.2, 1.0))
    assert share(found, Verdict.REPLICATED) > 0.95


@pytest.mark.parametrize("left", [0.2, 0.5, 1.0])
def test_an_encoding_that_does_what_any_unknown_text_does_is_not_replicated(left: float) -> None:
    found = verdicts(encoded_prompts, encodings(left, left))
    assert share(found, Verdict.REPLICATED) <= 0.05


def test_partly_bypassed_and_not_at_all() -> None:
    assert share(verdicts(encoded_prompts, encodings(0.75, 1.0)), Verdict.PARTIAL) > 0.9
    assert share(verdicts(encoded_prompts, encodings(1.0, 1.0)), Verdict.FAILED) > 0.9
    assert share(verdicts(encoded_prompts, encodings(0.2, 0.2)), Verdict.TRIVIAL) > 0.9


def test_without_an_offset_on_plain_prompts_there_is_none_to_bypass() -> None:
    found = verdicts(encoded_prompts, encodings(1.0, 1.0, plain=0.0))
    assert share(found, Verdict.UNTESTABLE) > 0.9


def turns(dialogue: float, shuffled: float, prefix: float, noise: float = 0.1) -> Draw:
    """Slopes of each dialogue around a first turn of 1; noise of its own in every condition."""

    def draw(generator: np.random.Generator) -> Tables:
        rows, first = collector("turns"), generator.gamma(25.0, 1 / 25, N)
        slopes = {
            name: drift * first + noise * generator.standard_normal(N)
            for name, drift in (
                ("dialogue", dialogue),
                ("shuffled", shuffled),
                ("random_prefix", prefix),
            )
        }
        rows.mean("dialogue.1", "measured", "projection", first, "h")
        for name, values in slopes.items():
            rows.ratio(name, "control", "projection_slope", values, first, "h")
            more = slopes["dialogue"] - values
            rows.ratio(name, "control", "projection_slope_difference", more, first, "h")
        return {"stress_turns": rows.table()}

    return draw


@pytest.mark.parametrize("drift", [0.15, -0.15])
def test_a_drift_of_dialogues_alone_is_found(drift: float) -> None:
    found = verdicts(drift_over_turns, turns(drift, 0.0, 0.0))
    # The two controls are told from 0 by chance in one of twenty each, half of them its way.
    assert share(found, Verdict.REPLICATED) > 0.85
    assert share(found, Verdict.FAILED) == 0


@pytest.mark.parametrize("drift", [0.0, 0.03, 0.15])
@pytest.mark.parametrize("control", ["shuffled", "prefix"])
def test_a_drift_that_a_control_has_too_is_not_replicated(drift: float, control: str) -> None:
    controls = {"shuffled": 0.0, "prefix": 0.0, control: drift}
    found = verdicts(drift_over_turns, turns(drift, **controls))
    assert share(found, Verdict.REPLICATED) <= 0.05


def test_the_control_that_drifts_furthest_stands_beside_the_drift() -> None:
    tables = turns(0.2, 0.05, 0.4, noise=0.01)(np.random.default_rng(0))
    found = drift_over_turns(tables)
    assert found.measured == pytest.approx(0.2, abs=0.01)
    assert found.null == pytest.approx(0.4, abs=0.01)
    assert found.null_name == "random tokens before"
    assert decide(found) is Verdict.TRIVIAL


def prompts(
    harmful: tuple[float, float], random: tuple[float, float], weights: tuple[float, float]
) -> Draw:
    """Relative norm and null-space share of benign prompts are 1 and 0.5 in every model."""

    def draw(generator: np.random.Generator) -> Tables:
        rows = collector("prompts")

        def numbers(size: float, outside: float) -> Mapping[str, np.ndarray]:
            return {
                "relative_norm": size * generator.gamma(16.0, 1 / 16, N),
                "null_space_share": generator.normal(outside, 0.1, N),
            }

        def contrast(
            name: str, above: Mapping[str, np.ndarray], below: Mapping[str, np.ndarray]
        ) -> None:
            """Intervals of normal theory, as thousands of bootstraps would take minutes."""
            one, two = (side["relative_norm"] for side in (above, below))
            ratio = one.mean() / two.mean()
            spread = ratio * np.hypot(one.std() / one.mean(), two.std() / two.mean())
            rows.add(name, "measured", "relative_norm_ratio", around(ratio, spread), N, "h")
            one, two = (side["null_space_share"] for side in (above, below))
            found = around(one.mean() - two.mean(), np.hypot(one.std(), two.std()))
            rows.add(name, "measured", "null_space_share_difference", found, N, "h")

        benign, one, two = numbers(1.0, 0.5), numbers(*harmful), numbers(*random)
        contrast("harmful_to_benign", one, benign)
        contrast("random_tokens_to_benign", two, benign)
        contrast("harmful_to_random_tokens", one, two)
        name = "harmful_to_benign.random_weights"
        contrast(name, numbers(*weights), numbers(1.0, 0.5))
        return {"stress_prompts": rows.table()}

    return draw


def around(value: float, deviation: float) -> Interval:
    reach = 1.96 * deviation / N**0.5
    return Interval(value=value, low=value - reach, high=value + reach, draws=0)


LIKE_BENIGN = (1.0, 0.5)


def test_harmful_prompts_that_alone_are_deflected_are_found() -> None:
    found = verdicts(harmful_deflected, prompts((1.6, 0.7), LIKE_BENIGN, LIKE_BENIGN))
    assert share(found, Verdict.REPLICATED) > 0.9


@pytest.mark.parametrize("effect", [LIKE_BENIGN, (1.1, 0.54), (1.6, 0.7)])
@pytest.mark.parametrize("control", [0, 1])
def test_what_random_tokens_or_weights_do_too_is_not_replicated(
    effect: tuple[float, float], control: int
) -> None:
    controls = [LIKE_BENIGN, LIKE_BENIGN]
    controls[control] = effect
    found = verdicts(harmful_deflected, prompts(effect, controls[0], controls[1]))
    assert share(found, Verdict.REPLICATED) <= 0.05


def test_larger_shifts_in_the_same_subspace_are_a_part_of_the_claim() -> None:
    found = verdicts(harmful_deflected, prompts((1.6, 0.5), LIKE_BENIGN, LIKE_BENIGN))
    assert share(found, Verdict.PARTIAL) > 0.9


def test_a_run_without_random_weights_has_random_tokens() -> None:
    table = prompts((1.6, 0.7), (1.7, 0.7), LIKE_BENIGN)(np.random.default_rng(0))["stress_prompts"]
    kept = table[~table["condition"].str.endswith("random_weights")]
    found = harmful_deflected({"stress_prompts": kept})
    assert found.null_name == "random tokens"
    assert decide(found) is Verdict.TRIVIAL
    bare = kept[~kept["condition"].str.startswith("random_tokens")]
    with pytest.raises(MissingRowsError, match="no control"):
        harmful_deflected({"stress_prompts": bare})


NAMES = ("REPLICATED", "PARTIAL", "FAILED", "TRIVIAL")


def models(*columns: list[str]) -> Tables:
    rows = [
        {"run": f"run {index}", "id": number, "verdict": verdict}
        for index, column in enumerate(columns)
        for number, verdict in enumerate(column, start=1)
    ]
    return {"stress_model_verdicts": pd.DataFrame(rows)}


def test_equal_ledgers_are_the_same_and_different_ones_partly() -> None:
    column = [NAMES[index % 4] for index in range(20)]
    found = same_across_models(models(column, column, column))
    assert found.measured == 1.0
    assert found.null == pytest.approx(4 * 0.25**3, abs=0.03)
    assert decide(found) is Verdict.REPLICATED
    other = ["FAILED" if index == 0 else verdict for index, verdict in enumerate(column)]
    found = same_across_models(models(column, other))
    assert found.measured == pytest.approx(19 / 20)
    assert decide(found) is Verdict.PARTIAL
    assert "#1" in found.reason


def test_one_verdict_throughout_agrees_in_any_order() -> None:
    assert decide(same_across_models(models(["FAILED"] * 9, ["FAILED"] * 9))) is Verdict.TRIVIAL


def test_rows_that_are_not_judged_everywhere_and_row_33_do_not_count() -> None:
    first = ["PARTIAL", "FAILED", "REPLICATED", "NOT RUN", "UNTESTABLE"]
    second = ["PARTIAL", "FAILED", "FAILED", "PARTIAL", "PARTIAL"]
    tables = models(first, second)
    found = same_across_models(tables)
    assert (found.n, found.measured) == (3, pytest.approx(2 / 3))
    table = tables["stress_model_verdicts"].replace({"id": {3: 33}})
    found = same_across_models({"stress_model_verdicts": table})
    assert (found.n, found.measured) == (2, 1.0)
    with pytest.raises(MissingRowsError, match="1 runs"):
        same_across_models(models(first))


def test_ledgers_without_relation_are_not_replicated() -> None:
    def draw(generator: np.random.Generator) -> Tables:
        return models(*(generator.choice(NAMES, 12).tolist() for _ in range(2)))

    import dsteer_tl.claims.measured_stress as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_DRAWS", 60)
        found = verdicts(same_across_models, draw)
    assert share(found, Verdict.REPLICATED) == 0
    assert share(found, Verdict.PARTIAL) <= 0.07


@pytest.mark.parametrize(
    ("measure", "name"),
    [
        (encoded_prompts, "stress_encodings"),
        (drift_over_turns, "stress_turns"),
        (harmful_deflected, "stress_prompts"),
    ],
)
def test_missing_rows_are_named(measure: Callable[[Tables], Measurement], name: str) -> None:
    with pytest.raises(MissingRowsError, match=r"no projection_|no relative_norm_ratio"):
        measure({name: collector("x").table()})
