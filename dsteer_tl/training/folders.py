"""Folders of a training: its work folder with checkpoints, and the policy that takes its place."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsteer_tl.errors import RunError
from dsteer_tl.files import hash_content, read_json, write_json
from dsteer_tl.lens_model.checkpoint import hash_weights
from dsteer_tl.preferences import PreferenceSet
from dsteer_tl.processes import processes
from dsteer_tl.training.configuration import TrainingConfiguration
from dsteer_tl.training.distribution import setup_key
from dsteer_tl.training.trainers import quiet_training

_KEY = "training_key.json"


def refuse_foreign_folder(policy: Path) -> None:
    """The result takes the place of an older policy, but of nothing else.

    Raises:
        RunError: The folder holds something that is no checkpoint.
    """
    names = {path.name for path in policy.iterdir()} if policy.is_dir() else set()
    if policy.is_file() or (names and not names & {"config.json", "adapter_config.json"}):
        raise RunError(
            f"{policy} exists and holds no checkpoint: the policy would replace it, so name a new "
            "or an empty folder"
        )


def prepare_work_folder(
    work: Path,
    configuration: TrainingConfiguration,
    preferences: PreferenceSet,
    model: PreTrainedModel,
) -> None:
    """Keep the checkpoints of the same training; clear those of another one.

    The number of processes belongs to the training: it decides how many pairs make an update.
    """
    key = hash_content(
        [asdict(configuration), preferences.content_hash(), hash_weights(model), *setup_key()]
    )
    marker = work / _KEY
    if marker.is_file() and read_json(marker) == key:
        return
    if work.exists():
        shutil.rmtree(work)
    write_json(marker, key)


def require_shared_folder(work: Path) -> None:
    """Make sure that this process sees what the main one wrote.

    Raises:
        RunError: It does not: the machines of the launch have folders of their own.
    """
    if not (work / _KEY).is_file():
        raise RunError(
            f"process {processes().index} does not see {work}, which the main process wrote: put "
            "the run on a file system that all machines of the launch share"
        )


def last_whole_checkpoint(work: Path) -> str | None:
    """Name of the newest checkpoint that was written to its end; half-written ones are removed."""
    found = {
        int(match.group(1)): path
        for path in work.iterdir()
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for _, path in sorted(found.items(), reverse=True):
        # The main process writes its state last, not atomically, and no other waits for it.
        with contextlib.suppress(RunError):
            read_json(path / "trainer_state.json")
            if all((path / name).is_file() for name in _random_states()):
                return path.name
        shutil.rmtree(path)
    return None


def _random_states() -> list[str]:
    count = processes().count
    if count == 1:
        return ["rng_state.pth"]
    return [f"rng_state_{index}.pth" for index in range(count)]


def _each_once(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gathered from parts, tied weights are two equal tensors, of which one is saved."""
    copies: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return {
        name: tensor
        for name, tensor in state.items()
        if not (
            name in copies and copies[name] in state and torch.equal(tensor, state[copies[name]])
        )
    }


def save_policy(
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    policy: Path,
) -> None:
    """Write the weights and the tokenizer, and put them in the place of an older policy.

    Raises:
        RunError: The folder cannot be written.
    """
    temporary = policy.with_name(f".{policy.name}.partial")
    try:
        with quiet_training():
            shutil.rmtree(temporary, ignore_errors=True)
            model.save_pretrained(temporary, state_dict=_each_once(model, state))
            tokenizer.save_pretrained(temporary)
        shutil.rmtree(policy, ignore_errors=True)
        temporary.rename(policy)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"cannot save the policy to {policy}: {error.strerror or error}; the checkpoints are "
            "kept, so free the space and run the same command again"
        ) from error
