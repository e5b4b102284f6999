"""The sweep stages of a run: what the vectors come from, what is done again, what comes out."""

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

from dsteer_tl.behavior.curves import POINT
from dsteer_tl.behavior.settings import FAMILIES, SweepConfiguration
from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.experiment.run_directory import RunDirectory, StageReport
from dsteer_tl.experiment.sweep_inputs import SweepInputs
from dsteer_tl.experiment.sweep_vectors import SweepVectors
from dsteer_tl.experiment.sweeping import (
    SWEEP_TABLES,
    _unanswered,
    describe_sweeps,
    run_sweeps,
)
from dsteer_tl.files import hash_file, write_json
from dsteer_tl.preferences import PreferencePair, PreferenceSet
from tests.counted_batches import Stopped, counting
from tests.tiny_pairs import PAIRS, probes, tiny_pair

SCALE = 0.2
TEXT_FAMILIES = ("preference", "distribution", "lexicon", "degeneration", "fidelity")
QUICK: dict[str, Any] = {
    "prompts": 3,
    "interpolate": (0.0, 1.0),
    "invert": (0.0, 1.0),
    "sites": ("h",),
    "vectors": ("v_star", "random"),
    "generated": ("v_star", "random"),
    "kl_matched": (),
    "max_new_tokens": 3,
    "rows": 6,
    "draws": 5,
    "families": TEXT_FAMILIES,
}
#: Every vector, at h and below it, as a run has them by default.
FULL: dict[str, Any] = {
    name: getattr(SweepConfiguration(), name) for name in ("vectors", "generated", "kl_matched")
} | {"sites": ("h", "resid_post@0.5")}
COMPLETIONS = [
    *POINT,
    *("prompt", "prompt_text", "completion", "n_tokens", "ended", "tokens"),
    *("steered", "base", "policy"),
]


@cache
def shard() -> dict[str, torch.Tensor]:
    """The residuals of the tiny pair at the prompts of its pairs."""
    (found,) = capture_shifts(
        tiny_pair(scale=SCALE), probes(), configuration=CaptureConfiguration(progress=False)
    )._shards
    assert isinstance(found, dict)
    return found


def shift_set(tensors: dict[str, torch.Tensor]) -> ShiftSet:
    kinds = [name.removeprefix("kind.") for name in tensors if name.startswith("kind.")]
    pair = tiny_pair(scale=SCALE)
    return ShiftSet(
        [tensors], sites=pair.base.sites, models=["base", "policy"], kinds=kinds, hashes={}
    )


def inputs(folder: Path, **changes: Any) -> SweepInputs:
    """A run of the tiny pair that has captured its residuals."""
    directory = RunDirectory(folder)
    captured = folder / "capture" / "shard"

    def capture() -> list[Path]:
        captured.parent.mkdir(parents=True, exist_ok=True)
        captured.write_bytes(b"residuals")
        return [captured]

    directory.stage("capture", [], capture)
    own = {name: changes.pop(name) for name in list(changes) if name in _FIELDS}
    given: dict[str, Any] = {
        "directory": directory,
        "configuration": SweepConfiguration(**(QUICK | own)),
        "load_pair": lambda: tiny_pair(scale=SCALE),
        "shift_set": shift_set(shard()),
        "load_probes": probes,
        "pairs": PreferenceSet(PAIRS, {}, "tiny"),
        "training_pairs": (),
        "prompts": None,
        "anthropic_hh": False,
        "beta": 0.5,
        "seed": 0,
        "keys": ["tiny"],
        "progress": False,
    }
    return SweepInputs(**(given | changes))


_FIELDS = set(SweepConfiguration.__dataclass_fields__) - {"seed", "prompts"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeping") / "run"
    run_sweeps(inputs(folder))
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeping") / "full"
    run_sweeps(inputs(folder, **FULL))
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "run"))


def ran(reports: list[StageReport]) -> set[str]:
    return {report.name for report in reports if report.ran}


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "tables" / f"{name}.parquet").read_bytes() for name in SWEEP_TABLES}


def table(folder: Path, name: str) -> pd.DataFrame:
    return RunDirectory(folder).table(name)


# What the vectors come from.


def altered(prompts: set[int]) -> ShiftSet:
    """The residuals of some prompts, of both models and at every site, replaced by others."""
    rows = torch.tensor([int(prompt) in prompts for prompt in shard()["prompt"]])
    assert 0 < int(rows.sum()) < len(rows)
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, tensor in shard().items():
        if "/" in name:
            noise = torch.randn(tensor.shape, generator=generator)
            tensor = torch.where(rows[:, None], tensor + noise, tensor)
        tensors[name] = tensor
    return shift_set(tensors)


def vectors(found: SweepInputs) -> dict[tuple[str, str], np.ndarray]:
    settings = SweepVectors(found).scored["interpolate"]
    return {
        (setting.intervention.name, setting.intervention.site): np.concatenate(
            [vector.values for vector in setting.intervention.vectors]
            or [setting.intervention.logit_bias]  # type: ignore[list-item]
        )
        for setting in settings
    }


def test_vectors_are_estimated_on_one_half_and_swept_on_the_other(tmp_path: Path) -> None:
    own = inputs(tmp_path, **(FULL | {"kl_matched": ()}))
    estimating, judging = (set(half) for half in own.halves)
    assert estimating | judging == set(range(len(PAIRS)))
    assert not estimating & judging
    before = vectors(own)
    assert len(before) == 8 + 2  # and v* with its random control below h
    unmoved = vectors(replace(own, shift_set=altered(judging)))
    moved = vectors(replace(own, shift_set=altered(estimating)))
    for key, values in before.items():
        np.testing.assert_array_equal(unmoved[key], values)
        if key[0] != "mean_preference":  # its direction comes from tokens; its norm is that of v*
            assert np.abs(moved[key] - values).max() > 1e-3 * np.abs(values).max()


def scales(found: SweepInputs) -> list[float]:
    return [
        scale
        for settings in SweepVectors(found).scored.values()
        for setting in settings
        if setting.matching == "kl"
        for scale in setting.scales
    ]


def replaced(prompts: set[int]) -> PreferenceSet:
    other = (
        replace(pair, chosen=" no, no, no.", rejected=" low.") if index in prompts else pair
        for index, pair in enumerate(PAIRS)
    )
    return PreferenceSet(tuple(other), {}, "other")


def test_controls_are_matched_by_kl_on_the_estimating_half(tmp_path: Path) -> None:
    own = inputs(tmp_path, kl_matched=("random",))
    estimating, judging = (set(half) for half in own.halves)
    before = scales(own)
    assert len(before) == 4  # two directions, two λ
    assert any(scale not in (0.0, 1.0) for scale in before)
    assert scales(replace(own, pairs=replaced(judging))) == before
    assert scales(replace(own, pairs=replaced(estimating))) != before


def test_the_mean_preference_is_that_of_the_estimating_half(tmp_path: Path) -> None:
    own = inputs(tmp_path, vectors=("mean_preference",))
    estimating, judging = (set(half) for half in own.halves)

    def other(prompts: set[int]) -> np.ndarray:
        changed = tuple(
            replace(probe, chosen_token=40, rejected_token=41) if probe.prompt in prompts else probe
            for probe in probes()
        )
        return vectors(replace(own, load_probes=lambda: changed))["mean_preference", "h"]

    before = vectors(own)["mean_preference", "h"]
    np.testing.assert_array_equal(other(judging), before)
    assert np.abs(other(estimating) - before).max() > 0.1


def test_the_judging_half_is_swept(copy: Path) -> None:
    own = inputs(copy)
    judging = own.halves[1]
    completions = table(copy, "completions").drop_duplicates("prompt").sort_values("prompt")
    assert list(completions["prompt"]) == [0, 1, 2]
    assert list(completions["prompt_text"]) == [PAIRS[i].prompt for i in judging[:3]]
    sweep = table(copy, "sweep")
    assert set(sweep.query("metric == 'reward_margin'")["n"]) == {len(judging)}
    assert set(sweep.query("metric == 'bleu'")["n"]) == {3}


def test_another_seed_of_the_halves_sweeps_other_prompts(tmp_path: Path) -> None:
    first, second = (inputs(tmp_path, seed=seed).halves for seed in (0, 1))
    assert first != second


# What is done again.


def test_a_second_run_is_up_to_date_and_loads_nothing(copy: Path) -> None:
    def refuse() -> Any:
        raise AssertionError("the models were loaded")

    before = tables(copy)
    with counting(0):
        reports = run_sweeps(inputs(copy, load_pair=refuse, load_probes=refuse))
    assert [report.name for report in reports] == ["sweep/held_out", "tables/sweep"]
    assert ran(reports) == set()
    assert tables(copy) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"draws": 6},
        {"beta": 0.1},
        {"families": (*TEXT_FAMILIES, "refusal")},
        {"judged": ()},
        {"vectors": ("v_star", "random", "orthogonal")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_measurement_generates_nothing_again(changes: dict[str, Any], copy: Path) -> None:
    before = hash_file(copy / "tables" / "sweep_metrics.parquet")
    kept = sorted((copy / "sweep" / "held_out" / "parts").glob("completions-*"))
    times = [path.stat().st_mtime_ns for path in kept]
    with counting() as calls:
        assert "sweep/held_out" in ran(run_sweeps(inputs(copy, **changes)))
    if "vectors" in changes:
        assert calls
        return
    assert calls == []
    assert [path.stat().st_mtime_ns for path in kept] == times
    changed = hash_file(copy / "tables" / "sweep_metrics.parquet") != before
    assert changed is ("families" in changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"configuration": SweepConfiguration(**QUICK, seed=1)},
        {"seed": 1},
        {"interpolate": (0.0, 2.0)},
        {"max_new_tokens": 4},
        {"temperature": 1.0},
        {"positions": "response"},
        {"configuration": SweepConfiguration(**(QUICK | {"prompts": 2}))},
    ],
    ids=["sweep seed", "halves", "grid", "length", "sampling", "positions", "prompts"],
)
def test_another_sweep_is_run_again(changes: dict[str, Any], copy: Path) -> None:
    before = tables(copy)
    with counting() as calls:
        assert ran(run_sweeps(inputs(copy, **changes))) == {"sweep/held_out", "tables/sweep"}
    assert "generate_rows" in calls
    assert tables(copy)["completions"] != before["completions"]


def test_an_altered_table_is_made_again_from_what_was_generated(copy: Path) -> None:
    before = tables(copy)
    (copy / "tables" / "sweep.parquet").write_bytes(b"altered")
    with counting(0):
        assert ran(run_sweeps(inputs(copy))) == {"tables/sweep"}
    assert tables(copy) == before
    (copy / "sweep" / "held_out" / "sweep.parquet").unlink()
    with counting(0):
        assert "sweep/held_out" in ran(run_sweeps(inputs(copy)))
    assert tables(copy) == before


def test_an_interrupted_sweep_continues(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with counting() as whole:
        run_sweeps(inputs(tmp_path / "whole"))
    assert whole == ["generate_rows"] * 4 + ["score_directions"]
    with counting(3), pytest.raises(Stopped):
        run_sweeps(inputs(folder))
    assert "sweep/held_out" not in RunDirectory(folder).manifest["stages"]
    with counting() as calls:
        run_sweeps(inputs(folder))
    assert len(calls) == len(whole) - 3
    # Two runs in two folders, and one that was interrupted, give the same bytes.
    assert tables(folder) == tables(tmp_path / "whole") == tables(finished)


# Several suites.


@pytest.fixture
def added(copy: Path, tmp_path: Path) -> Path:
    """A run to which a suite of its owner's was added."""
    path = tmp_path / "mine.txt"
    path.write_text("the dog was\nhe said\n", "utf-8")
    before = hash_file(copy / "sweep" / "held_out" / "sweep.parquet")
    reports = run_sweeps(inputs(copy, suites=("held_out", f"mine={path}")), ["mine"])
    assert [report.name for report in reports] == ["sweep/mine", "tables/sweep"]
    assert ran(reports) == {"sweep/mine", "tables/sweep"}
    assert hash_file(copy / "sweep" / "held_out" / "sweep.parquet") == before
    return copy


def test_an_added_suite_stands_beside_the_others(added: Path) -> None:
    for name in SWEEP_TABLES:
        assert set(table(added, name)["suite"]) == {"held_out", "mine"}
    mine = table(added, "completions").query("suite == 'mine'")
    assert set(mine["prompt_text"]) == {"the dog was", "he said"}
    metrics = table(added, "sweep_metrics").query("suite == 'mine'").set_index("metric")
    assert metrics.loc["reward_accuracy", "status"] == "NOT RUN"
    assert metrics.loc["bleu", "status"] == "NOT RUN"
    assert metrics.loc["lexicon_toxicity", "status"] == "measured"


def test_an_added_suite_survives_another_run_of_the_same_policy(added: Path) -> None:
    before = tables(added)
    with counting(0):
        assert ran(run_sweeps(inputs(added))) == set()
    assert tables(added) == before


def test_a_suite_of_another_policy_is_left_out(
    added: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="dsteer_tl"):
        run_sweeps(inputs(added, keys=["another policy"]))
    for name in SWEEP_TABLES:
        assert set(table(added, name)["suite"]) == {"held_out"}
    assert "suite mine belongs to another policy and is left out" in caplog.text
    assert "held_out belongs" not in caplog.text


def test_another_file_of_prompts_is_swept_again(added: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    suites = ("held_out", f"mine={path}")
    assert ran(run_sweeps(inputs(added, suites=suites))) == set()
    path.write_text("the old man\n", "utf-8")
    reports = run_sweeps(inputs(added, suites=suites))
    assert ran(reports) == {"sweep/mine", "tables/sweep"}
    mine = table(added, "completions").query("suite == 'mine'")
    assert set(mine["prompt_text"]) == {"the old man"}


# What comes out.


def test_the_tables_have_their_columns(finished: Path) -> None:
    completions = table(finished, "completions")
    assert list(completions.columns[: len(COMPLETIONS)]) == COMPLETIONS
    sweep = table(finished, "sweep")
    assert list(sweep.columns) == [
        *POINT,
        *("family", "metric", "value", "ci_low", "ci_high", "n"),
    ]
    metrics = table(finished, "sweep_metrics")
    expected = ["suite", "family", "metric", "status", "reason", "unit", "better"]
    assert list(metrics.columns) == expected
    assert set(metrics["family"]) == set(FAMILIES)
    for row in completions.itertuples():
        assert len(row.tokens) == len(row.steered) == len(row.base) == row.n_tokens  # type: ignore[arg-type]


def test_every_vector_has_its_curves(full: Path) -> None:
    completions, sweep = table(full, "completions"), table(full, "sweep")
    below = "resid_post.1"
    generated = {
        ("v_star", "norm", "h"),
        ("random", "norm", "h"),
        ("random", "kl", "h"),
        ("logit_bias", "norm", "h"),
        ("v_star", "norm", below),
        ("random", "norm", below),
        ("random", "kl", below),
    }
    curve = ["vector", "matching", "site"]
    for direction, own in completions.groupby("direction"):
        assert {tuple(row) for row in own[curve].itertuples(index=False)} == generated
        for _, rows in own.groupby(curve):
            assert sorted(set(rows["coefficient"])) == [0.0, 1.0]
            assert len(rows) == 2 * 3
        margins = sweep.query("metric == 'reward_margin'")
        margins = margins[margins["direction"] == direction]
        at_h = {"mean_preference", "u1", "u1_centred", "orthogonal", "sign_permuted"}
        assert {tuple(row) for row in margins[curve].itertuples(index=False)} == generated | {
            (name, "norm", "h") for name in at_h
        }
    assert set(completions["suite"]) == {"held_out"}
    assert completions.groupby(["direction", "prompt"]).size().eq(14).all()


def test_the_unsteered_rows_are_one_text_whatever_the_vector(full: Path) -> None:
    unsteered = table(full, "completions").query("coefficient == 0")
    assert unsteered.groupby(["direction", "prompt"])["completion"].nunique().eq(1).all()
    assert set(unsteered["scale"]) == {0.0}


def test_the_source_says_what_was_swept(finished: Path) -> None:
    found = json.loads((finished / "sweep" / "held_out" / "source.json").read_text("utf-8"))
    assert found["configuration"]["max_new_tokens"] == 3
    assert found["plan"].startswith("held_out: ")
    assert found["classifier"]["train_pairs"] == found["classifier"]["held_out_pairs"] == 4
    assert found["judge"] == {}


def test_training_pairs_teach_the_classifier(tmp_path: Path) -> None:
    taught = tuple(PreferencePair("p", " yes yes", " no no") for _ in range(5))
    run_sweeps(inputs(tmp_path, training_pairs=taught, interpolate=(0.0,), invert=()))
    found = json.loads((tmp_path / "sweep" / "held_out" / "source.json").read_text("utf-8"))
    assert found["classifier"]["train_pairs"] == 5


# Prompts alone.


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{pair.prompt} {i}\n" for i, pair in enumerate(PAIRS)), "utf-8")
    return path


def test_prompts_alone_are_halved_too(prompts: Path, tmp_path: Path) -> None:
    own = inputs(tmp_path / "run", pairs=None, prompts=prompts, kl_matched=("random",))
    run_sweeps(own)
    source = tmp_path / "run" / "sweep" / "held_out" / "source.json"
    lines = prompts.read_text("utf-8").splitlines()
    completions = table(tmp_path / "run", "completions")
    assert set(completions["prompt_text"]) == {lines[i] for i in own.halves[1][:3]}
    assert set(completions["matching"]) == {"norm"}  # without completions there is no KL
    assert describe_sweeps(own)[0] == json.loads(source.read_text("utf-8"))["plan"]
    metrics = table(tmp_path / "run", "sweep_metrics").set_index("metric")
    for name in ("reward_margin", "kl_base", "classifier_preference", "bleu"):
        assert metrics.loc[name, "status"] == "NOT RUN", name
    assert metrics.loc["base_perplexity", "status"] == "measured"


def test_a_prompt_that_leaves_no_room_is_left_out(prompts: Path, tmp_path: Path) -> None:
    """It was measured at its last token; it cannot be continued."""
    judging = inputs(tmp_path / "run").halves[1]
    lines = prompts.read_text("utf-8").splitlines()
    lines[judging[0]] = "the man " * 15
    prompts.write_text("\n".join(lines), "utf-8")
    own = inputs(tmp_path / "run", pairs=None, prompts=prompts, max_new_tokens=40)
    run_sweeps(own)
    texts = set(table(tmp_path / "run", "completions")["prompt_text"])
    assert texts == {lines[i] for i in judging[1:4]}


# Before anything runs.


def test_a_plan_is_described_and_nothing_runs(full: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("the dog was\nhe said\n", "utf-8")
    own = inputs(tmp_path / "run", suites=("held_out", f"mine={path}"), **FULL)
    with counting(0):
        held_out, mine = describe_sweeps(own)
    # A direction at h: unsteered, v*, random, its match and the bias; below h all but the bias.
    assert held_out.startswith(f"held_out: {3 * 2 * (5 + 4)} completions of at most 3 tokens")
    assert mine.startswith(f"mine: {2 * 2 * (5 + 4)} completions")
    assert "0 given tokens" in mine
    assert not (tmp_path / "run" / "sweep").exists()
    assert not (tmp_path / "run" / "tables").exists()
    # What was said is what was run.
    source = json.loads((full / "sweep" / "held_out" / "source.json").read_text("utf-8"))
    assert held_out == source["plan"]


def test_questions_that_a_server_left_open_make_a_suite_stale(tmp_path: Path) -> None:
    """A failure of the server may pass; an answer without a score will not."""
    source = tmp_path / "source.json"
    assert _unanswered(source) == 0
    failed = {"connection": 2, "not_asked": 3, "no_score": 7}
    write_json(source, {"judge": {"interpolate": {"failed": failed}, "invert": {"failed": {}}}})
    assert _unanswered(source) == 5
    write_json(source, {"judge": {}})
    assert _unanswered(source) == 0


def test_all_pairs_of_a_prompt_are_on_one_side(tmp_path: Path) -> None:
    own = inputs(tmp_path)
    first = PAIRS[own.halves[0][0]]
    again = replace(first, chosen=" no, no, no.", rejected=" low.")
    more = replace(own, pairs=PreferenceSet((*PAIRS, again), {}, "more"))
    estimating, judging = (more.pairs_of(half) for half in more.halves)
    assert first in estimating and again in estimating
    assert not {pair.prompt for pair in estimating} & {pair.prompt for pair in judging}
    assert len(estimating) + len(judging) == len(PAIRS) + 1
