"""`train_dpo`: a policy from a base and preference pairs, with TRL's `DPOTrainer`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsteer_tl.errors import ConfigurationError, DependencyError, RunError, TrainingError
from dsteer_tl.files import hash_content, read_json, write_json
from dsteer_tl.lens_model import LoadOptions, load_model, load_tokenizer
from dsteer_tl.lens_model.checkpoint import check_finite, hash_weights, quiet_transformers
from dsteer_tl.preferences import PreferenceSet, encode_pair
from dsteer_tl.training.configuration import TrainingConfiguration
from dsteer_tl.training.formation import FormationCallback, formation_table
from dsteer_tl.training.freezing import freeze
from dsteer_tl.training.progress import ProgressBar

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
    both responses. An interrupted training continues from its last checkpoint.

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
    trainer = _build_trainer(
        model, tokenizer, training_pairs, held_out, configuration, work, callback, progress
    )
    checkpoint = _last_whole_checkpoint(work)
    if checkpoint is not None:
        logger.info("continuing training from %s", checkpoint.name)
    with quiet_training(), _known_settings():
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


def _build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training_pairs: PreferenceSet,
    held_out: PreferenceSet,
    configuration: TrainingConfiguration,
    work: Path,
    callback: FormationCallback,
    progress: bool,
) -> Any:
    with quiet_training(), _known_settings(), _reference_bar(progress):
        from transformers import EarlyStoppingCallback, PrinterCallback
        from trl import DPOConfig, DPOTrainer

        stopping = configuration.early_stopping_patience > 0 and len(held_out) > 0
        arguments = DPOConfig(
            output_dir=str(work),
            beta=configuration.beta,
            loss_type=[configuration.loss_type],
            learning_rate=configuration.learning_rate,
            num_train_epochs=configuration.epochs,
            max_steps=configuration.max_steps,
            per_device_train_batch_size=configuration.batch_size,
            per_device_eval_batch_size=configuration.batch_size,
            gradient_accumulation_steps=configuration.gradient_accumulation_steps,
            optim=configuration.optimizer,
            lr_scheduler_type=configuration.scheduler,
            warmup_steps=configuration.warmup_steps,
            max_length=int(getattr(model.config, "max_position_embeddings", 1024)),
            precompute_ref_log_probs=configuration.lora_rank == 0,
            gradient_checkpointing=configuration.gradient_checkpointing,
            bf16=configuration.precision == "bfloat16",
            save_steps=configuration.save_steps,
            save_total_limit=2,
            eval_strategy="steps" if stopping else "no",
            eval_steps=configuration.save_steps if stopping else None,
            load_best_model_at_end=stopping,
            metric_for_best_model="loss" if stopping else None,
            logging_steps=max(1, configuration.evaluate_every // 2),
            report_to=[],
            logging_nan_inf_filter=False,
            disable_tqdm=True,  # `ProgressBar` shows the progress
            seed=configuration.seed,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=model.device.type == "cuda",
        )
        callbacks: list[Any] = [callback, ProgressBar(enabled=progress)]
        if stopping:
            callbacks.append(EarlyStoppingCallback(configuration.early_stopping_patience))
        trainer = DPOTrainer(
            model=model,
            args=arguments,
            train_dataset=_dataset(training_pairs),
            eval_dataset=_dataset(held_out) if stopping else None,
            processing_class=tokenizer,
            peft_config=_lora(configuration),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


@contextlib.contextmanager
def _known_settings() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        lines = str(error).splitlines() or ["no message"]
        raise ConfigurationError(f"TRL refuses the training settings: {lines[0]}") from error


@contextlib.contextmanager
def _reference_bar(enabled: bool) -> Iterator[None]:
    """TRL shows a bar over the reference log-probabilities unless this variable is set."""
    before = os.environ.get("TQDM_DISABLE")
    if not enabled:
        os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TQDM_DISABLE", None)
        else:
            os.environ["TQDM_DISABLE"] = before


def _dataset(pairs: PreferenceSet) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    )


def _lora(configuration: TrainingConfiguration) -> Any:
    if configuration.lora_rank == 0:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise DependencyError(
            "training with lora_rank > 0 needs PEFT: install 'dsteer-tl[peft]'"
        ) from error
    return LoraConfig(
        r=configuration.lora_rank,
        lora_alpha=2 * configuration.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


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


@contextlib.contextmanager
def quiet_training() -> Iterator[None]:
    """Without the notices of TRL, datasets and transformers that no user can act on."""
    from datasets.utils import logging as datasets_logging

    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        datasets_logging.disable_progress_bar()
        try:
            yield
        finally:
            datasets_logging.enable_progress_bar()
