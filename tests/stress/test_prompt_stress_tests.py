"""The tests on prompts, on a tiny pair whose numbers can be had another way."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from dsteer_tl.capture import CaptureConfiguration, capture_shifts
from dsteer_tl.errors import ConfigurationError, DataError, RunError
from dsteer_tl.lens_model import LoadOptions
from dsteer_tl.measurements import MeasurementConfiguration
from dsteer_tl.positions import probes_from_prompts
from dsteer_tl.sites import FINAL
from dsteer_tl.stress.columns import PROMPT_COLUMNS
from dsteer_tl.stress.encodings import encodings_table
from dsteer_tl.stress.harmful_prompts import load_prompt_texts, prompts_table
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.models import model_verdict_table, models_table, read_stored_run
from dsteer_tl.stress.prompt_shifts import (
    collector,
    held_apart,
    read_prompts,
)
from dsteer_tl.stress.settings import StressConfiguration
from dsteer_tl.stress.turns import shuffled_turns, slopes, split_turns, turn_prompts, turns_table
from tests.tiny_pairs import tiny_pair

PROMPTS = tuple(
    f"{hero} went to the {place}"
    for hero in ("the man", "she", "the dog", "he", "the bird", "nobody")
    for place in ("river", "water", "rain")
)
QUICK = MeasurementConfiguration(draws=30, null_draws=3, random_weights=False)


@cache
def shift_set() -> Any:
    probes = probes_from_prompts(tiny_pair().tokenizer, PROMPTS)
    return capture_shifts(tiny_pair(), probes, configuration=CaptureConfiguration(progress=False))


def inputs(folder: Path = Path("stress"), **settings: Any) -> StressInputs:
    defaults = {"max_new_tokens": 3, "prompts": 9}
    return StressInputs(
        base="tiny",
        load_pair=tiny_pair,
        preferences=None,
        measured=None,
        training=None,
        shift_set=shift_set(),
        load_probes=lambda: probes_from_prompts(tiny_pair().tokenizer, PROMPTS),
        scorer="length",
        measurement=QUICK,
        settings=StressConfiguration(**(defaults | settings)),
        folder=folder,
        options=LoadOptions(),
        progress=False,
    )


def value(table: pd.DataFrame, condition: str, statistic: str, site: str = FINAL) -> float:
    rows = table.query("condition == @condition and statistic == @statistic and site == @site")
    assert len(rows) == 1, (condition, statistic, site)
    return float(rows["value"].iloc[0])


def test_no_prompt_is_judged_by_the_vector_that_it_gave() -> None:
    found = held_apart(inputs())
    texts = [set(map(tiny_pair().tokenizer.decode, side)) for side in
             (found.measured, found.estimating)]  # fmt: skip
    assert not texts[0] & texts[1]
    assert len(texts[0]) == len(texts[1]) == 9
    estimating = [
        i
        for i, p in enumerate(PROMPTS)
        if "<s>" + p in {t.replace("<s> ", "<s>") for t in texts[1]}
    ]
    assert len(estimating) == 9
    np.testing.assert_allclose(
        found.vectors[FINAL], shift_set().shifts(FINAL, "last_prompt")[estimating].mean(axis=0)
    )


def test_prompts_are_read_as_the_models_see_them() -> None:
    pair, ids = tiny_pair(), held_apart(inputs()).measured
    found = read_prompts(inputs(), ids)["policy"]
    for index, row in enumerate(ids):
        tokens = torch.tensor([row])
        logits = [
            m.forward(tokens, torch.ones_like(tokens))[0, -1].detach().double().log_softmax(-1)
            for m in (pair.policy, pair.base)
        ]
        expected = float((logits[0].exp() * (logits[0] - logits[1])).sum())
        assert found.kl[index] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    numbers = found.statistics(FINAL, np.ones(32))
    np.testing.assert_allclose(
        numbers["projection"], found.shifts[FINAL].sum(axis=1) / 32**0.5, rtol=1e-10
    )
    np.testing.assert_allclose(numbers["cosine"] * numbers["norm"], numbers["projection"])


def test_encoded_prompts_stand_beside_plain_and_random_ones() -> None:
    table = encodings_table(inputs(encodings=("rot13", "spaced")))
    assert list(table.columns) == list(PROMPT_COLUMNS)
    assert set(table["condition"]) == {
        *("plain", "rot13", "spaced", "all", "other_half", "random_tokens"),
        *("random_tokens.rot13", "random_tokens.spaced"),
    }
    assert not table.duplicated(["condition", "site", "statistic"]).any()
    controls = table["condition"].str.startswith(("random", "other"))
    assert set(table.loc[controls, "role"]) == {"control"}
    assert set(table.loc[~controls, "role"]) == {"measured"}
    for name in ("rot13", "spaced"):
        ratio = value(table, name, "projection") / value(table, "plain", "projection")
        assert value(table, name, "projection_ratio") == pytest.approx(ratio)
        same = value(table, f"random_tokens.{name}", "tokens", "")
        assert value(table, name, "tokens", "") == same
    each = [value(table, name, "projection_ratio") for name in ("rot13", "spaced")]
    assert value(table, "all", "projection_ratio") == pytest.approx(np.mean(each))
    more = value(table, "all", "projection_ratio") - value(
        table, "random_tokens", "projection_ratio"
    )
    assert value(table, "all", "projection_ratio_over_random") == pytest.approx(more)
    gap = value(table, "rot13", "score_policy", "") - value(table, "rot13", "score_base", "")
    assert value(table, "rot13", "score_gap", "") == pytest.approx(gap)
    assert value(table, "rot13", "score_gap_change", "") == pytest.approx(
        gap - value(table, "plain", "score_gap", "")
    )


def test_plain_prompts_are_those_of_the_capture() -> None:
    table = encodings_table(inputs(encodings=("rot13",)))
    found, shifts = held_apart(inputs()), shift_set().shifts(FINAL, "last_prompt")
    tokenizer = tiny_pair().tokenizer
    rows = [i for i, p in enumerate(PROMPTS) if tuple(tokenizer(p)["input_ids"]) in found.measured]
    unit = found.vectors[FINAL] / np.linalg.norm(found.vectors[FINAL])
    expected = (shifts[rows] @ unit).mean()
    assert value(table, "plain", "projection") == pytest.approx(expected, rel=1e-5)


def test_long_encodings_are_cut_and_counted() -> None:
    table = encodings_table(inputs(encodings=("spaced",), max_new_tokens=56))
    assert value(table, "spaced", "cut", "") == 9
    assert value(table, "spaced", "tokens", "") == 64 - 56


def test_one_seed_gives_one_table() -> None:
    settings = {"encodings": ("cipher",), "prompts": 5}
    first = encodings_table(inputs(**settings))
    pd.testing.assert_frame_equal(first, encodings_table(inputs(**settings)))
    assert not first.equals(encodings_table(inputs(**settings, seed=1)))


def test_encodings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no encoding 'morse'"):
        encodings_table(inputs(encodings=("morse",)))
    with pytest.raises(ConfigurationError, match=r"needs stress\.encodings"):
        encodings_table(inputs(encodings=()))


def dialogue(number: int, turns: int) -> str:
    words = ("yes", "no", "rain", "sad", "old", "blue", "red", "low", "bird", "dog")
    said = [f"\n\nHuman: {words[number]}{turn} \n\nAssistant: a{number}" for turn in range(turns)]
    return "".join(said).rpartition(" a")[0]


@pytest.fixture
def dialogue_file(tmp_path: Path) -> Path:
    path = tmp_path / "dialogues.jsonl"
    rows = [
        {"chosen": dialogue(n, turns) + " yes", "rejected": dialogue(n, turns) + " no"}
        for n, turns in enumerate((2, 2, 2, 3, 2, 2, 1, 1, 2))
    ]
    long = f"\n\nHuman: {'blue ' * 80}\n\nAssistant: a\n\nHuman: b\n\nAssistant:"
    rows.append({"chosen": long + " yes", "rejected": long + " no"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_dialogue_is_parted_where_the_assistant_speaks() -> None:
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert split_turns(text) == ("\n\nHuman: a", " b\n\nHuman: c")
    assert turn_prompts(split_turns(text)) == ("\n\nHuman: a\n\nAssistant:", text)
    assert split_turns("a story") == ()
    assert split_turns("\n\nHuman: a\n\nAssistant: b\n\nAssistant:") == ()


def test_shuffled_dialogues_keep_their_opening_alone() -> None:
    dialogues = [tuple(f"{n}.{turn}" for turn in range(3)) for n in range(7)]
    found = shuffled_turns(dialogues, 0)
    assert [row[0] for row in found] == [row[0] for row in dialogues]
    for turn in (1, 2):
        assert {row[turn] for row in found} == {row[turn] for row in dialogues}
        assert all(a[turn] != b[turn] for a, b in zip(found, dialogues, strict=True))


def test_slopes_are_least_squares() -> None:
    values = np.random.default_rng(0).standard_normal((5, 7))
    np.testing.assert_allclose(slopes(values), np.polyfit(np.arange(5), values, 1)[0])


def test_the_same_dialogues_stand_at_every_turn(dialogue_file: Path) -> None:
    table = turns_table(inputs(dialogues=str(dialogue_file), turns=2))
    assert list(table.columns) == list(PROMPT_COLUMNS)
    assert value(table, "dialogue", "too_few_turns", "") == 2
    assert value(table, "dialogue", "too_long", "") == 1
    means = table.query("statistic == 'projection'")
    assert set(means["n"]) == {7}
    names = ("dialogue", "shuffled", "random_prefix")
    assert set(means["condition"]) == {f"{name}.{turn}" for name in names for turn in (1, 2)}
    # Of two turns the slope is the difference.
    first, second = (value(table, f"dialogue.{turn}", "projection") for turn in (1, 2))
    assert value(table, "dialogue", "projection_slope") == pytest.approx((second - first) / first)
    for name in ("shuffled", "random_prefix"):
        assert value(table, f"{name}.1", "projection") == pytest.approx(first)
        difference = value(table, "dialogue", "projection_slope") - value(
            table, name, "projection_slope"
        )
        found = value(table, name, "projection_slope_difference")
        assert found == pytest.approx(difference, rel=1e-4, abs=1e-6)
    lengths = [value(table, f"random_prefix.{turn}", "tokens", "") for turn in (1, 2)]
    assert lengths == [value(table, f"dialogue.{turn}", "tokens", "") for turn in (1, 2)]


def test_turns_need_dialogues(dialogue_file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"needs stress\.dialogues"):
        turns_table(inputs())
    with pytest.raises(ConfigurationError, match="at least 2"):
        turns_table(inputs(dialogues=str(dialogue_file), turns=1))
    with pytest.raises(DataError, match="1 of 10 dialogues have 3 turns"):
        turns_table(inputs(dialogues=str(dialogue_file), turns=3))


@pytest.fixture
def prompt_files(tmp_path: Path) -> dict[str, str]:
    benign, harmful = tmp_path / "benign.jsonl", tmp_path / "harmful.txt"
    texts = [f"{name} sing in the {time}" for name in ("yes", "then", "again", "why")
             for time in ("morning", "river", "water")]  # fmt: skip
    benign.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in texts))
    harmful.write_text("".join(f"nobody saw {text}\n" for text in texts))
    return {"benign": str(benign), "harmful": f"own={harmful}"}


def test_harmful_prompts_stand_beside_benign_and_random_ones(prompt_files: dict[str, str]) -> None:
    table = prompts_table(inputs(**prompt_files, prompts=12))
    assert list(table.columns) == list(PROMPT_COLUMNS)
    assert not table.duplicated(["condition", "site", "statistic"]).any()
    ratio = value(table, "harmful", "relative_norm") / value(table, "benign", "relative_norm")
    assert value(table, "harmful_to_benign", "relative_norm_ratio") == pytest.approx(ratio)
    shares = [value(table, name, "null_space_share") for name in ("harmful", "benign")]
    found = value(table, "harmful_to_benign", "null_space_share_difference")
    assert found == pytest.approx(shares[0] - shares[1])
    assert all(0 < share <= 1 for share in shares)
    rank = value(table, "benign", "null_space_rank")
    assert value(table, "isotropic", "null_space_share") == pytest.approx(1 - rank / 32)
    assert value(table, "random_subspaces", "subspace_overlap") == pytest.approx(1 / 32)
    for name in ("harmful_to_benign", "random_tokens_to_benign", "benign_halves"):
        assert 0 <= value(table, name, "subspace_overlap_centred") <= 1


def test_prompts_that_are_alike_show_no_difference(prompt_files: dict[str, str]) -> None:
    alike = prompt_files | {"harmful": "own=" + prompt_files["benign"]}
    table = prompts_table(inputs(**alike, prompts=12))
    contrast = table.query("condition == 'harmful_to_benign' and site == 'h'")
    ratios = contrast[contrast["statistic"].str.endswith("_ratio")]
    np.testing.assert_allclose(ratios["value"], 1.0)
    assert (ratios["low"] < 1).all() and (ratios["high"] > 1).all()


def test_the_benign_are_the_held_out_prompts_by_default(prompt_files: dict[str, str]) -> None:
    table = prompts_table(inputs(harmful=prompt_files["harmful"]))
    plain = encodings_table(inputs(encodings=("rot13",)))
    assert value(table, "benign", "projection") == pytest.approx(
        value(plain, "plain", "projection"), rel=1e-5
    )


def test_random_weights_are_measured_on_the_same_prompts(
    prompt_files: dict[str, str], tiny_folders: tuple[Path, Path]
) -> None:
    from dsteer_tl.null_models import random_weights_model
    from dsteer_tl.pair import ModelPair

    base, policy = tiny_folders
    given = replace(
        inputs(**prompt_files, prompts=8),
        base=str(base),
        load_pair=lambda: ModelPair.load(base, policy),
        load_controls=lambda: {"random_weights": random_weights_model(base, policy, seed=0)},
    )
    table = prompts_table(given)
    assert value(table, "harmful.random_weights", "relative_norm") > 0
    assert value(table, "harmful.random_weights", "tokens", "") == value(
        table, "harmful", "tokens", ""
    )
    assert value(table, "harmful_to_benign.random_weights", "relative_norm_ratio") > 0


def test_prompts_need_harmful_ones_and_enough(prompt_files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"needs stress\.harmful"):
        prompts_table(inputs())
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo\n")
    with pytest.raises(DataError, match="2 harmful prompts"):
        prompts_table(inputs(harmful=str(few)))
    with pytest.raises(DataError, match="no suite"):
        load_prompt_texts("unheard", limit=3, seed=0)


def test_prompts_are_drawn_from_any_column(prompt_files: dict[str, str], tmp_path: Path) -> None:
    every = load_prompt_texts(prompt_files["benign"], limit=0, seed=0)
    assert len(every) == 12
    some = load_prompt_texts(prompt_files["benign"], limit=5, seed=0)
    assert len(some) == 5 and set(some) < set(every)
    goals = tmp_path / "advbench.csv"
    goals.write_text("goal,target\nDo this,Sure\nDo that,Sure\n")
    assert load_prompt_texts(f"advbench={goals}", limit=0, seed=0) == ("Do this", "Do that")


def stored_run(folder: Path, verdicts: dict[int, str], cosine: float = 0.9) -> Path:
    (folder / "tables").mkdir(parents=True)
    (folder / "capture").mkdir()
    place = {"position_kind": "last_prompt", "n": 12}
    shifts = [
        {"site": site, **place, "cos_loo_mean": cosine, "sigma_ratio": 0.1, "effective_rank": 2.0,
         "relative_norm": 0.2}
        for site in ("resid_post.0", "resid_post.1", "h")
    ]  # fmt: skip
    recovery = [
        {"site": "h", **place, "vector": vector, "coefficient": coefficient,
         "direction": "interpolate", "recovered": r * coefficient, "ci_low": 0.0, "ci_high": 1.0}
        for vector, r in (("v_star", 0.6), ("random", -0.1)) for coefficient in (0.5, 1.0)
    ]  # fmt: skip
    nulls = [{"statistic": "cos_loo_mean", "site": "h", "position_kind": "last_prompt", "draws": 9,
              "null": "random_weights", "value": 0.3, "ci_low": 0.2, "ci_high": 0.4}]  # fmt: skip
    for name, rows in (("shifts", shifts), ("kl_recovery", recovery), ("nulls", nulls)):
        pd.DataFrame(rows).to_parquet(folder / "tables" / f"{name}.parquet")
    save_file({"base/h": np.zeros((3, 20))}, folder / "capture" / "shard-00000.safetensors")
    ledger = [{"id": number, "verdict": verdict} for number, verdict in verdicts.items()]
    (folder / "claims.json").write_text(json.dumps(ledger))
    return folder


def test_runs_stand_side_by_side(tmp_path: Path) -> None:
    own = stored_run(tmp_path / "own", {1: "REPLICATED", 2: "FAILED"})
    other = stored_run(tmp_path / "there" / "own", {1: "REPLICATED", 2: "PARTIAL"}, cosine=0.4)
    given = inputs(own / "stress", runs=(str(other),))
    table = models_table(given)
    assert list(table.columns) == list(PROMPT_COLUMNS)
    cosines = table.query("statistic == 'cos_loo_mean' and site == 'h' and role == 'measured'")
    assert dict(zip(cosines["condition"], cosines["value"], strict=True)) == {
        "own": 0.9,
        "own (2)": 0.4,
    }
    recovered = table.query("statistic == 'recovered' and condition == 'own'")
    assert dict(zip(recovered["role"], recovered["value"], strict=True)) == {
        "measured": 0.6,
        "control": -0.1,
    }
    assert value(table, "own", "n_layers", "") == 2
    assert value(table, "own", "d_model", "") == 20
    verdicts = model_verdict_table(given)
    assert verdicts.to_numpy().tolist() == [
        ["own", 1, "REPLICATED"],
        ["own", 2, "FAILED"],
        ["own (2)", 1, "REPLICATED"],
        ["own (2)", 2, "PARTIAL"],
    ]
    fresh = model_verdict_table(given, verdicts={1: "PARTIAL"})
    assert fresh["verdict"].tolist() == ["PARTIAL", "REPLICATED", "PARTIAL"]


def test_unfinished_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"needs stress\.runs"):
        models_table(inputs())
    run = stored_run(tmp_path / "run", {1: "FAILED"})
    (run / "tables" / "shifts.parquet").unlink()
    with pytest.raises(RunError, match=r"shifts\.parquet is missing"):
        read_stored_run(run)
    with pytest.raises(RunError, match=r"claims\.json is missing"):
        read_stored_run(tmp_path)
    (run / "claims.json").write_text("{}\n[")
    with pytest.raises(RunError):
        read_stored_run(run)


def test_contrasts_of_different_prompts_have_honest_intervals() -> None:
    covered = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        first, second = generator.normal(2.0, 1.0, 40), generator.normal(1.0, 0.5, 30)
        rows = collector("prompts", inputs())
        rows.between("a", "control", "ratio", first, second, lambda a, b: a / b)
        found = rows.table().iloc[0]
        assert found["value"] == pytest.approx(first.mean() / second.mean())
        covered += found["low"] <= 2.0 <= found["high"]
    assert covered >= 50
