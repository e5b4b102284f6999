"""`train_dpo`: a policy from a base and preference pairs, with TRL."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsteer_tl.errors import RunError, TrainingError
from dsteer_tl.files import hash_content, read_json, write_json
from dsteer_tl.lens_model import LoadOptions, load_model, load_tokenizer
from dsteer_tl.lens_model.checkpoint import check_finite, hash_weights
from dsteer_tl.preferences import PreferenceSet, encode_pair
from dsteer_tl.training.configuration import TrainingConfiguration
from dsteer_tl.training.formation import FormationCallback, formation_table
from dsteer_tl.training.freezing import freeze
from dsteer_tl.training.trainers import build_trainer, known_settings, quiet_training

logger = logging.getLogger(__name__)

_KEY = "training_key.json"


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

    Args:
        base: Directory, hub id or ``"tales"``.
        preferences: Pairs; those marked held-out are used for the probe set and the held-out loss.
        policy: Directory for the result; ``<policy>.work`` holds checkpoints until it is done.
        configuration: Hyperparameters.
        probe_pairs: Held-out pairs on which the formation of the steering vector is recorded.
        options: How the base is loaded.
        progress: Show the trainer's progress bar.

    Raises:
        CheckpointError: The base cannot be loaded.
        ConfigurationError: TRL does not know the loss or another setting.
        RunError: The folder of the policy holds something else, or cannot be written.
        TrainingError: There are no training pairs, the loss is not finite, or frozen weights moved.
    """
    configuration = configuration or TrainingConfiguration()
    training_pairs, held_out = preferences.train, preferences.held_out
    if not len(training_pairs):
        raise TrainingError("there are no training pairs: split the preferences first")
    _refuse_foreign_folder(policy)
    options = options or LoadOptions()
    model, tokenizer = load_model(base, options), load_tokenizer(base, options)
    work = policy.with_name(f"{policy.name}.work")
    _prepare_work_folder(work, configuration, preferences, model)
    frozen = freeze(
        model,
        embeddings=configuration.freeze_embeddings,
        unembedding=configuration.freeze_unembedding,
    )
    probe = [
        encode_pair(tokenizer, pair) for pair in (held_out if len(held_out) else training_pairs)
    ]
    callback = FormationCallback(
        probe[:probe_pairs], work / "formation", configuration.evaluate_every
    )
    trainer = build_trainer(
        model, tokenizer, training_pairs, held_out, configuration, work, callback, progress
    )
    checkpoint = _last_whole_checkpoint(work)
    if checkpoint is not None:
        logger.info("continuing training from %s", checkpoint.name)
    with quiet_training(), known_settings():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    history = _training_table(trainer.state.log_history)
    # A training shorter than the logging interval has its mean loss alone.
    losses = history.loc[history["name"].isin(["loss", "train_loss"]), "value"]
    if not len(losses) or not losses.map(float).map(_finite).all():
        raise TrainingError(
            f"the training loss is not finite (last values {list(losses[-3:])}): lower the "
            "learning rate or train in float32"
        )
    frozen.require_unchanged(trainer.model)
    check_finite(trainer.model.named_parameters(), "the trained policy")
    _save_policy(trainer.model, tokenizer, policy)
    table = formation_table(work / "formation")
    shutil.rmtree(work)
    return TrainingResult(policy, history, table, frozen.names, len(training_pairs))


def _finite(value: float) -> bool:
    return bool(torch.isfinite(torch.tensor(value)))


def _refuse_foreign_folder(policy: Path) -> None:
    """The result takes the place of an older policy, but of nothing else."""
    names = {path.name for path in policy.iterdir()} if policy.is_dir() else set()
    if policy.is_file() or (names and not names & {"config.json", "adapter_config.json"}):
        raise RunError(
            f"{policy} exists and holds no checkpoint: the policy would replace it, so name a new "
            "or an empty folder"
        )


def _last_whole_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; half-written ones are removed."""
    found = {
        int(match.group(1)): path
        for path in work.iterdir()
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for _, path in sorted(found.items(), reverse=True):
        # Trainer writes its state last, not atomically.
        with contextlib.suppress(RunError):
            read_json(path / "trainer_state.json")
            return path
        shutil.rmtree(path)
    return None


def _prepare_work_folder(
    work: Path,
    configuration: TrainingConfiguration,
    preferences: PreferenceSet,
    model: PreTrainedModel,
) -> None:
    """Keep the checkpoints of the same training; clear those of another one."""
    key = hash_content([asdict(configuration), preferences.content_hash(), hash_weights(model)])
    marker = work / _KEY
    if marker.is_file() and read_json(marker) == key:
        return
    if work.exists():
        shutil.rmtree(work)
    write_json(marker, key)


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


def _save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, policy: Path) -> None:
    temporary = policy.with_name(f".{policy.name}.partial")
    try:
        with quiet_training():
            shutil.rmtree(temporary, ignore_errors=True)
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        shutil.rmtree(policy, ignore_errors=True)
        temporary.rename(policy)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"cannot save the policy to {policy}: {error.strerror or error}; the checkpoints are "
            "kept, so free the space and run the same command again"
        ) from error
