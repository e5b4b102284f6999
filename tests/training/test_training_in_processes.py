"""One training in one process and in two: the same losses, shifts and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsteer_tl.lens_model import LoadOptions, load_model
from dsteer_tl.training import TrainingResult, train_dpo
from tests.models import random_model, save_checkpoint
from tests.training.launches import launch_environment
from tests.training.one_of_several import UPDATES, configuration
from tests.training.pairs import many_pairs

#: Sums of floats in another order, which Adam divides by small numbers. Seen: 2e-6 of a loss, 1e-7
#: of a weight, 2e-6 of a number of the formation.
LOSS = {"rtol": 1e-4, "atol": 1e-6}
WEIGHTS = {"rtol": 0.0, "atol": 5e-6}
FORMATION = {"rtol": 1e-4, "atol": 1e-6}
TRAININGS = ["whole", "resumed", "sharded"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(random_model(), tmp_path_factory.mktemp("several") / "base")


@pytest.fixture(scope="module")
def one(base: Path) -> TrainingResult:
    """The reference: one process, updates of eight pairs."""
    return train_dpo(
        base, many_pairs(), base.with_name("one") / "policy", configuration(8), progress=False
    )


@pytest.fixture(scope="module")
def two(base: Path, repository: Path) -> Path:
    """The folder of what two processes did, four pairs an update each."""
    folder = base.with_name("two")
    folder.mkdir()
    sharding = {
        name: value
        for name, value in launch_environment("fsdp-8").items()
        if name.startswith("FSDP_") or name == "ACCELERATE_USE_FSDP"
    }
    script = Path(__file__).with_name("one_of_several.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(script), str(base), str(folder), json.dumps(sharding)]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def table(folder: Path, process: int, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"process-{process}" / f"{name}.parquet")


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_model(folder, LoadOptions()).named_parameters())


def losses(history: pd.DataFrame) -> pd.Series:
    return history[history["name"] == "loss"].set_index("step")["value"]


@pytest.mark.parametrize("training", TRAININGS)
def test_the_loss_curve_is_that_of_one_process(
    one: TrainingResult, two: Path, training: str
) -> None:
    found, expected = losses(table(two / training, 0, "training")), losses(one.training)
    assert expected.index.tolist() == list(range(1, UPDATES + 1))
    # Reference log-probabilities that were wrong in one process would move the first one.
    assert found[1] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)
    assert expected[UPDATES] < 0.9 * expected[1]
    pd.testing.assert_series_equal(found, expected, **LOSS)


@pytest.mark.parametrize("training", TRAININGS)
def test_the_vector_forms_alike(one: TrainingResult, two: Path, training: str) -> None:
    found = table(two / training, 0, "formation")
    assert found["step"].tolist() == [0, 2, 4, 6]
    pd.testing.assert_frame_equal(found, one.formation, **FORMATION)


@pytest.mark.parametrize("training", TRAININGS)
def test_the_policy_is_whole_and_the_same(
    base: Path, one: TrainingResult, two: Path, training: str
) -> None:
    policy = two / training / "policy"
    # One file, of full shapes and the base's dtype, and a plain configuration.
    stored = load_file(policy / "model.safetensors")
    expected = load_file(one.policy / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in stored.items()} == {
        name: (t.shape, t.dtype) for name, t in expected.items()
    }
    assert (policy / "config.json").read_text() == (one.policy / "config.json").read_text()
    before, after, reference = weights(base), weights(policy), weights(one.policy)
    for name, parameter in after.items():
        torch.testing.assert_close(parameter, reference[name], **WEIGHTS)
        assert torch.equal(parameter, before[name]) == (name in one.frozen), name


@pytest.mark.parametrize("training", TRAININGS)
def test_every_process_gets_the_same_result(one: TrainingResult, two: Path, training: str) -> None:
    for name in ("training", "formation"):
        pd.testing.assert_frame_equal(
            table(two / training, 0, name), table(two / training, 1, name), check_exact=True
        )
    for process in range(2):
        found = json.loads((two / training / f"process-{process}" / "frozen.json").read_text())
        assert tuple(found) == one.frozen


@pytest.mark.parametrize("training", TRAININGS)
def test_only_the_policy_is_left(two: Path, training: str) -> None:
    folder = two / training
    assert {path.name for path in folder.iterdir()} == {"policy", "process-0", "process-1"}


@pytest.mark.parametrize(
    ("training", "parameters"), [("resumed", ["Parameter"]), ("sharded", ["DTensor"])]
)
def test_an_interrupted_training_continues(two: Path, training: str, parameters: list[str]) -> None:
    """From the checkpoint after the fourth update; sharded, every parameter is in two parts."""
    for process in range(2):
        seen = json.loads((two / training / f"process-{process}" / "seen.json").read_text())
        assert seen == {"steps": [5, 6], "parameters": parameters}


def test_a_resumed_policy_is_the_undisturbed_one_to_the_bit(two: Path) -> None:
    first, second = weights(two / "resumed" / "policy"), weights(two / "whole" / "policy")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_error_of_the_main_process_is_raised_in_all(two: Path) -> None:
    folder = two / "refused"
    said = {(folder / f"process-{process}.txt").read_text() for process in range(2)}
    assert len(said) == 1 and "exists and holds no checkpoint" in said.pop()
    assert [path.name for path in (folder / "policy").iterdir()] == ["thesis.tex"]


def test_settings_that_contradict_the_launch(two: Path) -> None:
    for process in range(2):
        said = json.loads((two / f"refusals-{process}.json").read_text())
        assert "device_map 'auto' spreads a model" in said[0]
        assert "mixed_precision 'bf16'" in said[1] and "training.precision=bfloat16" in said[1]
        assert "fsdp_state_dict_type: FULL_STATE_DICT" in said[2]
        assert "set model.dtype=bfloat16" in said[3]
    assert not (two / "none").exists()
