"""`train_dpo`: a policy from a base and preference pairs, with TRL."""

from __future__ import annotations

import gc
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dsteer_tl.errors import TrainingError
from dsteer_tl.lens_model import LoadOptions, load_model, load_tokenizer
from dsteer_tl.lens_model.checkpoint import check_finite
from dsteer_tl.preferences import PreferenceSet, encode_pair
from dsteer_tl.processes import processes
from dsteer_tl.training.configuration import TrainingConfiguration
from dsteer_tl.training.distribution import (
    check_launch,
    is_sharded,
    options_here,
    whole_state,
)
from dsteer_tl.training.folders import (
    last_whole_checkpoint,
    prepare_work_folder,
    refuse_foreign_folder,
    require_shared_folder,
    save_policy,
)
from dsteer_tl.training.formation import FormationCallback, formation_table
from dsteer_tl.training.freezing import FrozenParameters, freeze, id_free_name
from dsteer_tl.training.trainers import build_trainer, known_settings, quiet_training

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """A trained policy and its history.

    Attributes:
        policy: Directory of the policy (a full checkpoint, or a LoRA adapter).
        training: Table ``training``: the trainer's log in long form.
        formation: Table ``formation``: how the steering vector forms.
        frozen: Parameters that are bitwise as they were in the base.
        pairs: Number of training pairs.
    """

    policy: Path
    training: pd.DataFrame
    formation: pd.DataFrame
    frozen: tuple[str, ...]
    pairs: int


def train_dpo(
    base: str | Path,
    preferences: PreferenceSet,
    policy: Path,
    configuration: TrainingConfiguration | None = None,
    *,
    probe_pairs: int = 64,
    options: LoadOptions | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train the policy and save it beside its checkpoints.

    The loss is L = −log σ(β[(log π(y_w|x) − log π_ref(y_w|x)) − (log π(y_l|x) − log π_ref(y_l|x))])
    for the default ``loss_type`` (Rafailov et al. 2023, eq. 7). An end-of-sequence token closes
    both responses; the loss ``kto`` goes through TRL's `KTOTrainer`, any other through its
    `DPOTrainer`. An interrupted training continues from its last checkpoint.

    Under ``accelerate launch`` or ``torchrun`` every process calls this with the same arguments and
    gets the same result; the files are written once, by the main process, on a file system that all
    machines share. FSDP and DeepSpeed come from accelerate's configuration. The policy is saved
    whole, in the dtype in which the base was loaded.

    Args:
        base: Directory, hub id or ``"tales"``.
        preferences: Pairs; those marked held-out are used for the probe set and the held-out loss.
        policy: Directory for the result; ``<policy>.work`` holds checkpoints until it is done.
        configuration: Hyperparameters.
        probe_pairs: Held-out pairs on which the formation of the steering vector is recorded.
        options: How the base is loaded. In several processes, ``cuda`` is the GPU of each.
        progress: Show the trainer's progress bar.

    Raises:
        CheckpointError: The base cannot be loaded.
        ConfigurationError: TRL does not know the loss or another setting, or the launch says
            something else.
        RunError: The folder of the policy holds something else, or cannot be written or seen.
        TrainingError: There are no training pairs, the loss is not finite, or frozen weights moved.
    """
    configuration = configuration or TrainingConfiguration()
    options = options or LoadOptions()
    if not len(preferences.train):
        raise TrainingError("there are no training pairs: split the preferences first")
    check_launch(configuration, options)
    processes().done_by_main(lambda: refuse_foreign_folder(policy))
    work = policy.with_name(f"{policy.name}.work")
    result = _train(
        base,
        preferences,
        policy,
        work,
        configuration,
        probe_pairs,
        options_here(options),
        progress,
    )
    gc.collect()  # what the trainer had open in the work folder
    processes().wait()
    processes().done_by_main(lambda: shutil.rmtree(work))
    return result


def _train(
    base: str | Path,
    preferences: PreferenceSet,
    policy: Path,
    work: Path,
    configuration: TrainingConfiguration,
    probe_pairs: int,
    options: LoadOptions,
    progress: bool,
) -> TrainingResult:
    training_pairs, held_out = preferences.train, preferences.held_out
    model, tokenizer = load_model(base, options), load_tokenizer(base, options)
    processes().done_by_main(lambda: prepare_work_folder(work, configuration, preferences, model))
    require_shared_folder(work)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    frozen = freeze(
        model,
        embeddings=configuration.freeze_embeddings,
        unembedding=configuration.freeze_unembedding,
    )
    probe = [
        encode_pair(tokenizer, pair) for pair in (held_out if len(held_out) else training_pairs)
    ]
    callback = FormationCallback(
        probe[:probe_pairs], work / "formation", configuration.evaluate_every, sharded=is_sharded()
    )
    trainer = build_trainer(
        model,
        tokenizer,
        training_pairs,
        held_out,
        configuration,
        work,
        callback,
        progress,
        reference=lambda: load_model(base, options),
    )
    checkpoint = processes().agreed(last_whole_checkpoint(work) if processes().is_main else None)
    if checkpoint is not None:
        logger.info("continuing training from %s", checkpoint)
    with quiet_training(), known_settings():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(work / checkpoint))
    history = _training_table(trainer.state.log_history)
    # A training shorter than the logging interval has its mean loss alone.
    losses = history.loc[history["name"].isin(["loss", "train_loss"]), "value"]
    if not len(losses) or not losses.map(float).map(_finite).all():
        raise TrainingError(
            f"the training loss is not finite (last values {list(losses[-3:])}): lower the "
            "learning rate or train in float32"
        )
    state = whole_state(trainer)
    processes().done_by_main(
        lambda: _check_and_save(trainer.model, state, dtypes, frozen, tokenizer, policy)
    )
    formed = formation_table(work / "formation") if processes().is_main else pd.DataFrame()
    history, formed = processes().agreed((history, formed))
    return TrainingResult(policy, history, formed, frozen.names, len(training_pairs))


def _check_and_save(
    model: Any,
    state: dict[str, Tensor],
    dtypes: dict[str, torch.dtype],
    frozen: FrozenParameters,
    tokenizer: PreTrainedTokenizerBase,
    policy: Path,
) -> None:
    frozen.require_unchanged(state)
    check_finite(state.items(), "the trained policy")
    # Sharded weights are trained in float32 whatever the base came in.
    kept = {
        name: tensor.to(dtypes.get(id_free_name(name), tensor.dtype))
        for name, tensor in state.items()
    }
    save_policy(model, kept, tokenizer, policy)


def _finite(value: float) -> bool:
    return bool(torch.isfinite(torch.tensor(value)))


def _training_table(history: list[dict[str, Any]]) -> pd.DataFrame:
    rows = [
        {
            "step": int(entry["step"]),
            "epoch": float(entry.get("epoch", float("nan"))),
            "name": name,
            "value": float(value),
        }
        for entry in history
        for name, value in entry.items()
        # Run time depends on the machine; two runs of one configuration give the same table.
        if name not in {"step", "epoch", "total_flos"}
        and not name.endswith(("runtime", "per_second"))
        and isinstance(value, (int, float))
    ]
    return pd.DataFrame(rows, columns=["step", "epoch", "name", "value"])
