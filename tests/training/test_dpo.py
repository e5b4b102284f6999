"""`train_dpo` on a tiny random Llama."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsteer_tl.errors import ConfigurationError, RunError, TrainingError
from dsteer_tl.lens_model import LoadOptions, load_model
from dsteer_tl.lens_model.checkpoint import hash_weights
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences import PreferenceSet, encode_pair
from dsteer_tl.training import TrainingConfiguration, TrainingResult, train_dpo
from dsteer_tl.training.folders import save_policy
from dsteer_tl.training.formation import FormationCallback
from tests.models import random_model, save_checkpoint, tiny_tokenizer
from tests.training.conftest import make_preferences, settings

FORMATION = ["step", "site", "cos_to_final", "cos_sd", "sigma_ratio", "v_norm"]
FORMATION += ["chosen_logp", "rejected_logp", "margin"]


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_model(folder, LoadOptions()).named_parameters())


def train(base: Path, preferences: PreferenceSet, policy: Path, **changes: Any) -> TrainingResult:
    return train_dpo(base, preferences, policy, settings(**changes), progress=False)


def value(result: TrainingResult, name: str, step: int) -> float:
    table = result.training
    return float(table.loc[(table["name"] == name) & (table["step"] == step), "value"].iloc[0])


@pytest.fixture(scope="module")
def trained(
    base: Path, preferences: PreferenceSet, tmp_path_factory: pytest.TempPathFactory
) -> TrainingResult:
    return train(base, preferences, tmp_path_factory.mktemp("policy") / "policy")


def test_embeddings_are_frozen_bitwise_and_the_rest_moves(
    base: Path, trained: TrainingResult
) -> None:
    before, after = weights(base), weights(trained.policy)
    assert set(trained.frozen) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert before.keys() == after.keys()
    for name, parameter in after.items():
        assert torch.equal(parameter, before[name]) == (name in trained.frozen), name
    assert trained.pairs == 6


def test_the_policy_loads_with_its_tokenizer(base: Path, trained: TrainingResult) -> None:
    pair = ModelPair.load(base, trained.policy)
    # The final norm is trained: D-STEER freezes the embeddings alone.
    assert {item.name for item in pair.preflight.differences} == {"final norm"}
    assert sorted(path.name for path in trained.policy.parent.iterdir()) == ["policy"]


def test_the_loss_starts_at_log_two_and_falls(trained: TrainingResult) -> None:
    assert list(trained.training.columns) == ["step", "epoch", "name", "value"]
    assert value(trained, "loss", 1) == pytest.approx(np.log(2), abs=1e-5)
    assert value(trained, "loss", 4) < 0.6
    assert value(trained, "rewards/margins", 4) > 0
    names = set(trained.training["name"])
    assert not [name for name in names if "runtime" in name or "per_second" in name]


def test_the_first_loss_is_the_formula(
    base: Path, preferences: PreferenceSet, tmp_path: Path
) -> None:
    """IPO at the start: (0 − 1/(2β))²; another β and loss reach TRL."""
    result = train(base, preferences, tmp_path / "p", loss_type="ipo", beta=0.25, max_steps=1)
    assert result.training.query("name == 'train_loss'")["value"].iloc[0] == pytest.approx(4.0)


def test_formation(base: Path, preferences: PreferenceSet, trained: TrainingResult) -> None:
    table = trained.formation
    assert set(FORMATION) <= set(table.columns)
    assert table["step"].tolist() == [0, 2, 4] and set(table["site"]) == {"h"}
    first, last = table.iloc[0], table.iloc[-1]
    assert first["v_norm"] == 0 and np.isnan(first["cos_to_final"])
    assert last["v_norm"] > table.iloc[1]["v_norm"] > 0
    assert last["margin"] > first["margin"]

    # The last row, recomputed from the two checkpoints and plain transformers.
    models = [load_model(folder, LoadOptions()) for folder in (base, trained.policy)]
    tokenizer = ModelPair.load(base, trained.policy, self_check=False).tokenizer
    shifts, chosen = [], []
    for pair in preferences.held_out:
        encoded = encode_pair(tokenizer, pair)
        ids = torch.tensor([encoded.prompt_ids + encoded.chosen_ids])
        start = len(encoded.prompt_ids) - 1
        with torch.no_grad():
            states = [
                model(ids, output_hidden_states=True).hidden_states[-1][0, start].double().numpy()
                for model in models
            ]
            steps = models[1](ids).logits[0, start:-1].log_softmax(-1)
        shifts.append(states[1] - states[0])
        chosen.append(float(steps.gather(-1, ids[0, start + 1 :, None]).sum()))
    mean = np.mean(shifts, axis=0)
    cosines = [x @ mean / np.linalg.norm(x) / np.linalg.norm(mean) for x in shifts]
    assert last["v_norm"] == pytest.approx(np.linalg.norm(mean), rel=1e-4)
    assert last["cos_to_final"] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert last["chosen_logp"] == pytest.approx(np.mean(chosen), rel=1e-5)


def test_two_runs_are_bitwise_equal(
    base: Path, preferences: PreferenceSet, trained: TrainingResult, tmp_path: Path
) -> None:
    again = train(base, preferences, tmp_path / "policy")
    first, second = weights(trained.policy), weights(again.policy)
    assert all(torch.equal(first[name], second[name]) for name in first)
    pd.testing.assert_frame_equal(trained.training, again.training)
    pd.testing.assert_frame_equal(trained.formation, again.formation)


def test_another_seed_is_another_order(
    base: Path, preferences: PreferenceSet, trained: TrainingResult, tmp_path: Path
) -> None:
    other = train(base, preferences, tmp_path / "policy", seed=1)
    first, second = weights(trained.policy), weights(other.policy)
    assert any(not torch.equal(first[name], second[name]) for name in first)


# Interruption


@pytest.fixture(scope="module")
def uninterrupted(
    base: Path, preferences: PreferenceSet, tmp_path_factory: pytest.TempPathFactory
) -> TrainingResult:
    return train(
        base, preferences, tmp_path_factory.mktemp("whole") / "policy", save_steps=2, max_steps=6
    )


def interrupt(
    monkeypatch: pytest.MonkeyPatch, base: Path, preferences: PreferenceSet, policy: Path, step: int
) -> None:
    original = FormationCallback.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FormationCallback, "on_step_end", stop)
        train(base, preferences, policy, save_steps=2, max_steps=6)


def watch_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []
    original = FormationCallback.on_step_end

    def watch(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps.append(state.global_step)
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(FormationCallback, "on_step_end", watch)
    return steps


def assert_equal_policies(one: TrainingResult, other: TrainingResult) -> None:
    first, second = weights(one.policy), weights(other.policy)
    for name, parameter in first.items():
        torch.testing.assert_close(second[name], parameter, rtol=0, atol=1e-5, msg=name)
    pd.testing.assert_frame_equal(one.formation, other.formation, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stop_at", "continues_at"), [(5, 5), (1, 1)])
def test_an_interrupted_training_continues(
    base: Path,
    preferences: PreferenceSet,
    uninterrupted: TrainingResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
    continues_at: int,
) -> None:
    policy = tmp_path / "policy"
    interrupt(monkeypatch, base, preferences, policy, stop_at)
    assert not policy.exists()
    steps = watch_steps(monkeypatch)
    resumed = train(base, preferences, policy, save_steps=2, max_steps=6)
    assert steps == list(range(continues_at, 7))
    assert_equal_policies(uninterrupted, resumed)
    assert not policy.with_name("policy.work").exists()


def test_a_half_written_checkpoint_is_not_trusted(
    base: Path,
    preferences: PreferenceSet,
    uninterrupted: TrainingResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = tmp_path / "policy"
    interrupt(monkeypatch, base, preferences, policy, 5)
    (policy.with_name("policy.work") / "checkpoint-4" / "trainer_state.json").unlink()
    steps = watch_steps(monkeypatch)
    resumed = train(base, preferences, policy, save_steps=2, max_steps=6)
    assert steps == [3, 4, 5, 6]
    assert_equal_policies(uninterrupted, resumed)


def test_another_configuration_starts_anew(
    base: Path, preferences: PreferenceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy"
    interrupt(monkeypatch, base, preferences, policy, 5)
    steps = watch_steps(monkeypatch)
    train(base, preferences, policy, save_steps=2, max_steps=3, beta=0.5)
    assert steps == [1, 2, 3]


# LoRA and other settings


def test_lora_writes_an_adapter(base: Path, preferences: PreferenceSet, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    result = train(base, preferences, tmp_path / "policy", lora_rank=2)
    assert (result.policy / "adapter_config.json").is_file()
    assert not (result.policy / "model.safetensors").exists()
    assert set(result.frozen) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert result.formation["v_norm"].iloc[0] == 0 and result.formation["v_norm"].iloc[-1] > 0
    pair = ModelPair.load(base, result.policy)
    assert pair.preflight.differences == ()
    assert pair.base.W_U.data_ptr() == pair.policy.W_U.data_ptr()


def test_early_stopping_evaluates_the_held_out_pairs(
    base: Path, preferences: PreferenceSet, tmp_path: Path
) -> None:
    result = train(base, preferences, tmp_path / "policy", early_stopping_patience=1, save_steps=1)
    assert "eval_loss" in set(result.training["name"])


def test_tied_embeddings_stay_tied(preferences: PreferenceSet, tmp_path: Path) -> None:
    base = save_checkpoint(random_model(tie_word_embeddings=True), tmp_path / "base")
    result = train(base, preferences, tmp_path / "policy", max_steps=2)
    assert result.frozen == ("model.embed_tokens.weight",)
    pair = ModelPair.load(base, result.policy)
    assert torch.equal(pair.base.W_U, pair.policy.W_U)


def test_tied_weights_that_were_gathered_are_saved_once(tmp_path: Path) -> None:
    """Gathered from parts they are two tensors; differing ones are both kept."""
    model = random_model(tie_word_embeddings=True)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    save_policy(model, state, tiny_tokenizer(), tmp_path / "policy")
    stored = load_file(tmp_path / "policy" / "model.safetensors")
    assert stored.keys() == dict(model.named_parameters()).keys()
    state["lm_head.weight"] += 1
    save_policy(model, state, tiny_tokenizer(), tmp_path / "policy")
    assert "lm_head.weight" in load_file(tmp_path / "policy" / "model.safetensors")


def test_nothing_frozen(base: Path, preferences: PreferenceSet, tmp_path: Path) -> None:
    result = train(
        base, preferences, tmp_path / "policy", freeze_embeddings=False, freeze_unembedding=False
    )
    assert result.frozen == ()
    assert not torch.equal(
        weights(base)["lm_head.weight"], weights(result.policy)["lm_head.weight"]
    )


def test_one_probe_pair(base: Path, tmp_path: Path) -> None:
    result = train(base, make_preferences(2, 1), tmp_path / "policy", max_steps=2)
    assert result.formation["v_norm"].iloc[-1] > 0
    assert result.formation["sigma_ratio"].isna().all()


def test_a_training_shorter_than_the_logging_interval(
    base: Path, preferences: PreferenceSet, tmp_path: Path
) -> None:
    result = train(base, preferences, tmp_path / "policy", max_steps=1, evaluate_every=10)
    assert result.formation["step"].tolist() == [0, 1]


def test_a_pretrained_model(stories260k: Path, preferences: PreferenceSet, tmp_path: Path) -> None:
    result = train(stories260k, preferences, tmp_path / "policy", max_steps=2)
    assert result.formation["margin"].iloc[-1] != result.formation["margin"].iloc[0]
    assert ModelPair.load(stories260k, result.policy).preflight.differences


# What is printed


def test_logs_do_not_reach_stdout(
    base: Path, preferences: PreferenceSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(base, preferences, tmp_path / "quiet", max_steps=2)
    assert capfd.readouterr() == ("", "")
    train_dpo(base, preferences, tmp_path / "loud", settings(max_steps=2))
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "train: 100%" in printed.err and "2/2" in printed.err and "loss=" in printed.err
    assert "TQDM_DISABLE" not in os.environ


# Refusals


def test_no_training_pairs(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="there are no training pairs"):
        train(base, make_preferences(0, 4), tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_weight_that_moves(
    base: Path, preferences: PreferenceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FormationCallback.on_step_end

    def nudge(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        with torch.no_grad():
            kwargs["model"].get_input_embeddings().weight[3, 4] += 1e-6

    monkeypatch.setattr(FormationCallback, "on_step_end", nudge)
    with pytest.raises(TrainingError, match=r"model\.embed_tokens\.weight was frozen but changed"):
        train(base, preferences, tmp_path / "policy", max_steps=1)
    assert not (tmp_path / "policy").exists()


def test_a_loss_that_is_not_finite(base: Path, preferences: PreferenceSet, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the training loss is not finite"):
        train(base, preferences, tmp_path / "policy", learning_rate=1e12, max_steps=8)
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize(
    "changes", [{"loss_type": "nonsense"}, {"optimizer": "nonsense"}, {"scheduler": "nonsense"}]
)
def test_settings_that_trl_does_not_know(
    base: Path, preferences: PreferenceSet, tmp_path: Path, changes: dict[str, str]
) -> None:
    with pytest.raises(ConfigurationError, match="nonsense") as caught:
        train(base, preferences, tmp_path / "policy", **changes)
    assert "\n" not in str(caught.value)


def test_a_folder_of_other_things_is_never_replaced(
    base: Path, preferences: PreferenceSet, tmp_path: Path
) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="exists and holds no checkpoint"):
        train(base, preferences, policy)
    assert (policy / "thesis.tex").read_text() == "mine"
    # An older policy is what a new one replaces.
    shutil.rmtree(policy)
    shutil.copytree(base, policy)
    train(base, preferences, policy, max_steps=2)
    assert hash_weights(load_model(policy, LoadOptions())) != hash_weights(
        load_model(base, LoadOptions())
    )


def test_defaults_follow_the_paper() -> None:
    assert TrainingConfiguration().beta == 1.0
    assert TrainingConfiguration().freeze_embeddings and TrainingConfiguration().freeze_unembedding
