"""Statistics of conditions, and variants that are trained once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsteer_tl.controls import bootstrap, bootstrap_mean
from dsteer_tl.cosines import leave_one_out_cosines
from dsteer_tl.distributions import PairedRows
from dsteer_tl.errors import ConfigurationError, DataError, RunError, ShapeError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.recovery import vector_recovery
from dsteer_tl.spectra import spectrum
from dsteer_tl.stress import variant_training
from dsteer_tl.stress.columns import VARIANT_COLUMNS
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.shift_samples import ConditionRows, PlaceRows, resample_weights
from dsteer_tl.stress.shift_summary import summary_table
from dsteer_tl.stress.variant_rows import Captured, place_rows
from dsteer_tl.stress.variant_training import update_count
from dsteer_tl.stress.variants import VariantBench
from dsteer_tl.training import TrainingConfiguration
from tests.stress.tiny_stress import make_inputs
from tests.tiny_pairs import probes, tiny_pair

D = 6


def place(shifts: np.ndarray, prompts: np.ndarray, **changes: Any) -> PlaceRows:
    ones = np.ones(len(shifts))
    halves = prompts >= np.median(prompts)
    content: dict[str, Any] = {
        "site": "h",
        "position_kind": "last_prompt",
        "shifts": shifts,
        "base_norms": 2 * ones,
        "prompts": prompts,
        "kl": ones,
        "kl_whole": ones,
        "kl_readout": 0 * ones,
        "judged": halves,
        "kl_steered": 0.25 * halves,
        "kl_carried": 0.5 * halves,
        "kl_reference": ones,
    }
    return PlaceRows(**content | changes)


def condition(name: str, *places: PlaceRows, **changes: Any) -> ConditionRows:
    prompts = np.arange(8)
    content: dict[str, Any] = {
        "role": "measured",
        "places": places,
        "margins": np.linspace(-1, 2.5, 8),
        "prompts": prompts,
    }
    return ConditionRows(name=name, **content | changes)


def rows(seed: int, per_prompt: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(8), per_prompt)
    return generator.standard_normal((len(prompts), D)) + 1.5, prompts


def one(table: Any, name: str, column: str = "value", condition: str = "first") -> float:
    found = table[(table["statistic"] == name) & (table["condition"] == condition)]
    assert len(found) == 1, name
    return float(found[column].iloc[0])


def test_resamples_are_those_of_the_controls() -> None:
    values = np.random.default_rng(1).standard_normal(7)
    weights = resample_weights(7, 50, seed=3)
    assert (weights[0] == 1).all() and (weights.sum(axis=1) == 7).all()
    means = weights[1:] @ values / 7
    expected = bootstrap(np.mean, values, draws=50, seed=3)
    assert np.quantile(means, 0.025) == pytest.approx(expected.low, abs=1e-12)
    assert np.quantile(means, 0.975) == pytest.approx(expected.high, abs=1e-12)


def test_statistics_agree_with_the_libraries_own() -> None:
    shifts, prompts = rows(0)
    found = summary_table(
        "t", [condition("first", place(shifts, prompts))], reference="first", draws=60, seed=0
    )
    assert tuple(found.columns) == VARIANT_COLUMNS
    cosines = leave_one_out_cosines(shifts, prompts)
    expected = bootstrap_mean(cosines, prompts, draws=60, seed=0)
    assert one(found, "cos_loo_mean") == pytest.approx(expected.value)
    assert one(found, "cos_loo_mean", "low") == pytest.approx(expected.low)
    assert one(found, "cos_loo_mean", "high") == pytest.approx(expected.high)
    whole, centred = spectrum(shifts), spectrum(shifts, centred=True)
    assert one(found, "sigma_ratio") == pytest.approx(whole.sigma_ratio)
    assert one(found, "effective_rank") == pytest.approx(whole.effective_rank)
    assert one(found, "effective_rank_centred") == pytest.approx(centred.effective_rank)
    assert one(found, "pc1_share_centred") == pytest.approx(centred.share[0])
    assert one(found, "v_norm") == pytest.approx(np.linalg.norm(shifts.mean(axis=0)))
    assert one(found, "relative_norm") == pytest.approx(np.linalg.norm(shifts, axis=1).mean() / 2)
    assert one(found, "recovered") == pytest.approx(0.75)
    assert one(found, "accuracy") == pytest.approx(5.5 / 8)  # a tie counts one half
    assert one(found, "margin") == pytest.approx(0.75)
    assert one(found, "recovered", "n") == 12


@pytest.mark.parametrize("width", [D, 40], ids=["more rows", "more dimensions"])
def test_spectra_of_resamples_are_those_of_repeated_rows(width: int) -> None:
    from dsteer_tl.stress.shift_samples import _spectral_samples

    prompts = np.repeat(np.arange(5), 4)
    shifts = np.random.default_rng(2).standard_normal((20, width)) + 0.5
    weights = resample_weights(5, 3, seed=0)
    found = _spectral_samples(shifts, prompts, weights)
    for drawn, values in zip(weights, found.T, strict=True):
        repeated = np.repeat(shifts, drawn[prompts].astype(int), axis=0)
        whole, centred = spectrum(repeated), spectrum(repeated, centred=True)
        expected = [whole.sigma_ratio, whole.effective_rank]
        expected += [centred.effective_rank, centred.share[0]]
        assert values == pytest.approx(expected, rel=1e-7)


def test_differences_are_paired() -> None:
    shifts, prompts = rows(0)
    same, longer = place(shifts, prompts), place(2 * shifts, prompts)
    conditions = [condition(name, p) for name, p in (("first", same), ("twice", longer))]
    found = summary_table(
        "t", conditions, reference="first", draws=40, seed=0, ratios=("effective_rank",)
    )
    for name in ("cos_loo_mean", "sigma_ratio", "effective_rank", "kl", "margin", "recovered"):
        for column in ("value", "low", "high"):
            assert one(found, f"difference:{name}", column, "twice") == pytest.approx(0, abs=1e-9)
    for column in ("value", "low", "high"):
        assert one(found, "cos_to_reference", column, "twice") == pytest.approx(1)
        assert one(found, "ratio:effective_rank", column, "twice") == pytest.approx(1)
    assert one(found, "recovered_of_reference", condition="twice") == pytest.approx(0.5)
    norm = one(found, "v_norm")
    assert one(found, "difference:v_norm", condition="twice") == pytest.approx(norm)
    assert not found[found["condition"] == "first"]["statistic"].str.contains(":|_of_|_to_").any()


def test_what_means_nothing_is_left_out() -> None:
    shifts, prompts = rows(0)
    vector = condition(
        "vector",
        place(shifts, prompts),
        statistics=("cos_to_reference",),
        margins=np.full(8, np.nan),
    )
    found = summary_table(
        "t",
        [condition("first", place(shifts, prompts)), vector],
        reference="first",
        draws=5,
        seed=0,
    )
    assert set(found[found["condition"] == "vector"]["statistic"]) == {"cos_to_reference"}


def test_no_divergence_has_no_share() -> None:
    shifts, prompts = rows(0)
    zero = np.zeros(len(shifts))
    same = place(0 * shifts, prompts, kl=zero, kl_whole=zero, kl_steered=zero)
    found = summary_table("t", [condition("first", same)], reference="first", draws=5, seed=0)
    for name in ("recovered", "readout_shift", "sigma_ratio", "effective_rank"):
        assert np.isnan(one(found, name)), name
    assert one(found, "v_norm") == 0


def test_other_prompts_cannot_be_compared() -> None:
    shifts, prompts = rows(0)
    first, other = (condition(name, place(shifts, prompts)) for name in ("first", "other"))
    with pytest.raises(ShapeError, match="different prompts"):
        summary_table(
            "t",
            [first, replace(other, prompts=np.arange(8) + 1)],
            reference="first",
            draws=5,
            seed=0,
        )
    with pytest.raises(ShapeError, match="expected 'absent' among them"):
        summary_table("t", [first], reference="absent", draws=5, seed=0)


def captured() -> Captured:
    from dsteer_tl.capture import CaptureConfiguration, capture_shifts

    pair = tiny_pair()
    shift_set = capture_shifts(pair, probes(), configuration=CaptureConfiguration(progress=False))
    return Captured("policy", "measured", pair, shift_set)


@pytest.mark.parametrize("site", ["resid_post.1", "h"])
def test_recovered_is_that_of_the_recovery(site: str) -> None:
    found = captured()
    rows = place_rows(found, site, "response", seed=0)
    shift_set, pair = found.shift_set, found.pair
    estimating, _ = shift_set.halves("response", 0)
    estimate = np.isin(rows.prompts, list(estimating))
    assert (rows.judged == ~estimate).all()
    half = torch.from_numpy(rows.judged)
    base, policy = (
        torch.from_numpy(shift_set.residuals(name, site, "response"))[half]
        for name in ("base", "policy")
    )
    expected = vector_recovery(
        PairedRows(
            base=base,
            policy=policy,
            base_readout=pair.base.readout_at(site),
            policy_readout=pair.policy.readout_at(site),
            groups=rows.prompts[rows.judged],
        ),
        rows.shifts[estimate].mean(axis=0),
        [1.0],
        seed=0,
        draws=5,
    )
    ours = 1 - rows.kl_steered.sum() / rows.kl[rows.judged].sum()
    assert ours == pytest.approx(expected.recovered[0].value, abs=1e-6)
    assert rows.kl_carried == pytest.approx(rows.kl_steered, rel=1e-4, abs=1e-9)
    assert rows.kl_readout == pytest.approx(0, abs=1e-9)  # the policy has the base's readout


def test_a_changed_readout_is_no_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """With W_U of the policy changed, divergences at h stay and the readout has its own part."""
    found = captured()
    before = place_rows(found, "h", "last_prompt", seed=0)
    own: Callable[[LensModel, str], Any] = type(found.pair.policy).readout_at

    def readout_at(model: LensModel, site: str) -> Any:
        plain = own(model, site)
        return (lambda rows: 2 * plain(rows)) if model is found.pair.policy else plain

    monkeypatch.setattr(type(found.pair.policy), "readout_at", readout_at)
    after = place_rows(found, "h", "last_prompt", seed=0)
    assert after.kl == pytest.approx(before.kl, rel=1e-6)
    assert after.kl_steered == pytest.approx(before.kl_steered, rel=1e-6)
    logits = found.pair.base.readout(
        torch.from_numpy(found.shift_set.residuals("policy", "h", "last_prompt"))
    ).double()
    log_p, log_q = (2 * logits).log_softmax(-1), logits.log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).detach().numpy()
    assert after.kl_readout == pytest.approx(expected, rel=1e-4)
    assert before.kl_readout == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "pairs", "expected"),
    [
        ({"batch_size": 8, "epochs": 1.0}, 384, 48),
        ({"batch_size": 8, "epochs": 2.0}, 9, 4),
        ({"batch_size": 2, "epochs": 1.5, "gradient_accumulation_steps": 3}, 14, 5),
        ({"max_steps": 7}, 1000, 7),
    ],
)
def test_updates_are_counted_as_by_transformers(
    changes: dict[str, Any], pairs: int, expected: int
) -> None:
    assert update_count(TrainingConfiguration(**changes), pairs) == expected


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what would be trained; nothing is."""
    names: list[str] = []

    def train(base: str, preferences: Any, policy: Path, *args: Any, **kwargs: Any) -> None:
        policy.mkdir(parents=True, exist_ok=True)
        names.append(policy.parent.name)

    monkeypatch.setattr(variant_training, "train_dpo", train)
    return names


def test_a_variant_is_trained_once(
    tmp_path: Path, tiny_folders: tuple[Path, Path], counted: list[str]
) -> None:
    inputs = make_inputs(tiny_folders, tmp_path)
    bench = VariantBench(inputs, "losses")
    variant = bench.variant("loss_ipo", loss_type="ipo")
    folder = bench.policy_folder(variant)
    assert folder == tmp_path / "loss_ipo" / "policy"
    assert bench.policy_folder(variant) == folder
    assert VariantBench(inputs, "causes").policy_folder(variant) == folder
    assert counted == ["loss_ipo"]
    bench.policy_folder(bench.variant("loss_ipo", loss_type="ipo", beta=3.0))
    assert counted == ["loss_ipo", "loss_ipo"]


def test_the_runs_own_policy_is_never_trained_again(
    tmp_path: Path, tiny_folders: tuple[Path, Path], counted: list[str]
) -> None:
    bench = VariantBench(make_inputs(tiny_folders, tmp_path), "causes")
    assert bench.updates == 4
    same = bench.variant("beta_1", beta=bench.recipe().beta)
    assert bench.policy_folder(same) == tiny_folders[1]
    assert counted == []


def test_a_cap_trains_the_runs_recipe_anew(
    tmp_path: Path, tiny_folders: tuple[Path, Path], counted: list[str]
) -> None:
    bench = VariantBench(make_inputs(tiny_folders, tmp_path, max_steps=2), "causes")
    assert bench.updates == 2
    assert bench.policy_folder(bench.variant("frozen")) == tmp_path / "as_run" / "policy"
    # A cap above what the run does is none.
    loose = VariantBench(make_inputs(tiny_folders, tmp_path, max_steps=9), "causes")
    assert (loose.updates, loose.policy_folder(loose.variant("as_run"))) == (4, tiny_folders[1])
    assert counted == ["as_run"]


def test_what_is_missing_is_said(tmp_path: Path, tiny_folders: tuple[Path, Path]) -> None:
    inputs: StressInputs = make_inputs(tiny_folders, tmp_path)
    with pytest.raises(ConfigurationError, match=r"'losses' trains variants .* no recipe"):
        VariantBench(replace(inputs, training=None), "losses")
    with pytest.raises(ConfigurationError, match="prompts only"):
        VariantBench(replace(inputs, preferences=None, measured=None), "losses")
    with pytest.raises(DataError, match="on 3 prompts; expected at least 4"):
        VariantBench(make_inputs(tiny_folders, tmp_path, prompts=3), "losses")
    with pytest.raises(RunError, match="measure that first"):
        VariantBench(inputs, "losses").random_vector()
