"""What each process of `test_training_in_processes` does; started by torch's launcher.

Arguments: the base, a folder for the results, the environment of a sharded training as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from dsteer_tl.errors import ConfigurationError, RunError
from dsteer_tl.lens_model import LoadOptions
from dsteer_tl.processes import processes
from dsteer_tl.training import TrainingConfiguration, TrainingResult, train_dpo
from dsteer_tl.training.formation import FormationCallback
from tests.training.conftest import settings
from tests.training.pairs import many_pairs

UPDATES = 6


def configuration(batch_size: int, **changes: Any) -> TrainingConfiguration:
    """Six updates of eight pairs, whichever way they are divided; two epochs."""
    several = {"batch_size": batch_size, "max_steps": UPDATES, "save_steps": 2}
    return settings(**several | changes)


def note(folder: Path, result: TrainingResult) -> None:
    """Write what this process got."""
    target = folder / f"process-{processes().index}"
    target.mkdir(parents=True)
    result.training.to_parquet(target / "training.parquet")
    result.formation.to_parquet(target / "formation.parquet")
    (target / "frozen.json").write_text(json.dumps(result.frozen))


def train(base: Path, folder: Path, **changes: Any) -> None:
    found = train_dpo(
        base, many_pairs(), folder / "policy", configuration(4, **changes), progress=False
    )
    note(folder, found)


def interrupted(base: Path, folder: Path, step: int, **changes: Any) -> None:
    """Stop in the middle of a step, then run the same command again."""
    original = FormationCallback.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    FormationCallback.on_step_end = stop  # type: ignore[method-assign]
    try:
        train(base, folder, **changes)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the training was not interrupted")
    finally:
        FormationCallback.on_step_end = original  # type: ignore[method-assign]
    steps: list[int] = []
    parameters: set[str] = set()

    def watch(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps.append(state.global_step)
        parameters.update(type(parameter).__name__ for parameter in kwargs["model"].parameters())
        original(self, args, state, control, **kwargs)

    FormationCallback.on_step_end = watch  # type: ignore[method-assign]
    train(base, folder, **changes)
    FormationCallback.on_step_end = original  # type: ignore[method-assign]
    seen = {"steps": steps, "parameters": sorted(parameters)}
    (folder / f"process-{processes().index}" / "seen.json").write_text(json.dumps(seen))


def refused(base: Path, folder: Path) -> None:
    """Only the main process looks into the folder; both must hear of what it found."""
    policy = folder / "policy"
    if processes().is_main:
        policy.mkdir(parents=True)
        (policy / "thesis.tex").write_text("mine")
    processes().wait()
    with pytest.raises(RunError) as caught:
        train_dpo(base, many_pairs(), policy, configuration(4), progress=False)
    (folder / f"process-{processes().index}.txt").write_text(str(caught.value))


def contradictions(base: Path, folder: Path) -> None:
    """Settings that do not go with several processes, refused before anything is loaded."""
    found = []
    sharded = {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
    deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true"}
    for options, environment, changes in (
        (LoadOptions(device_map="auto"), {}, {}),
        (LoadOptions(), {"ACCELERATE_MIXED_PRECISION": "bf16"}, {}),
        (LoadOptions(), sharded, {"early_stopping_patience": 2}),
        (LoadOptions(), deepspeed, {"precision": "bfloat16"}),
    ):
        settings_here = configuration(4, **changes)
        with mock.patch.dict(os.environ, environment), pytest.raises(ConfigurationError) as caught:
            train_dpo(base, many_pairs(), folder / "none", settings_here, options=options)
        found.append(str(caught.value))
    processes().wait()
    (folder / f"refusals-{processes().index}.json").write_text(json.dumps(found))


def shard_on_cpu(environment: dict[str, str]) -> None:
    """Let accelerate shard over gloo, which it does itself on accelerators only."""
    os.environ.update(environment, ACCELERATE_TORCH_DEVICE="cpu")
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


def main() -> None:
    base, folder, environment = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    train(base, folder / "whole")
    interrupted(base, folder / "resumed", 5)
    refused(base, folder / "refused")
    contradictions(base, folder)
    shard_on_cpu(environment)
    interrupted(base, folder / "sharded", 5, gradient_checkpointing=True)


if __name__ == "__main__":
    main()
