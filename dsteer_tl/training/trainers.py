"""TRL's trainers of preferences, with one set of arguments: DPO and its relatives, and KTO."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsteer_tl.errors import ConfigurationError, DependencyError
from dsteer_tl.lens_model.checkpoint import quiet_transformers
from dsteer_tl.preferences import PreferenceSet
from dsteer_tl.processes import processes
from dsteer_tl.training.configuration import TrainingConfiguration
from dsteer_tl.training.distribution import (
    recomputes_activations,
    reference_sharded_by_layers,
    shards_by,
    trains_on_cpu,
)
from dsteer_tl.training.formation import FormationCallback
from dsteer_tl.training.progress import ProgressBar

#: The loss that TRL trains on single texts, with a trainer of its own.
KTO = "kto"


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training_pairs: PreferenceSet,
    held_out: PreferenceSet,
    configuration: TrainingConfiguration,
    work: Path,
    callback: FormationCallback,
    progress: bool,
    *,
    reference: Callable[[], PreTrainedModel],
) -> Any:
    """A `DPOTrainer`, or a `KTOTrainer` for the loss ``kto``, ready to train.

    KTO (Ethayarajh et al. 2024) judges each text alone: a pair gives two rows, so that
    ``batch_size`` pairs are twice as many rows, and as many updates see the same texts. Their order
    is drawn by the seed and kept in every epoch, as TRL pairs each row with a neighbour's
    completion to estimate the KL term.

    The log-probabilities of the reference are computed once, before the first update, and kept in
    the work folder; with LoRA the policy without its adapter is the reference. Under FSDP TRL needs
    a second copy of the base for that, which ``reference`` loads and which is dropped afterwards.

    Raises:
        ConfigurationError: TRL does not know the loss or another setting.
        DependencyError: LoRA is asked for and PEFT is missing.
    """
    unpaired = configuration.loss_type == KTO
    lora = _lora(configuration)
    with (
        quiet_training(),
        known_settings(),
        _reference_bar(progress and processes().is_main),
        reference_sharded_by_layers(),
    ):
        from transformers import EarlyStoppingCallback, PrinterCallback

        stopping = configuration.early_stopping_patience > 0 and len(held_out) > 0
        arguments = _arguments(model, configuration, work, stopping=stopping)
        callbacks: list[Any] = [callback, ProgressBar(enabled=progress)]
        if stopping:
            callbacks.append(EarlyStoppingCallback(configuration.early_stopping_patience))
        build = _unpaired_dataset if unpaired else _paired_dataset

        def stored(pairs: PreferenceSet, name: str) -> Any:
            return _stored(lambda: build(pairs, configuration.seed), work / "pairs" / name)

        trainer = _trainer_class(unpaired)(
            model=model,
            args=arguments,
            ref_model=reference() if lora is None and shards_by("FSDP") else None,
            train_dataset=stored(training_pairs, "training"),
            eval_dataset=stored(held_out, "held_out") if stopping else None,
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=callbacks,
        )
        trainer.ref_model = None
        trainer.remove_callback(PrinterCallback)
        return trainer


def _trainer_class(unpaired: bool) -> Any:
    from trl import DPOTrainer, KTOTrainer

    return KTOTrainer if unpaired else DPOTrainer


def _arguments(
    model: PreTrainedModel, configuration: TrainingConfiguration, work: Path, *, stopping: bool
) -> Any:
    from trl import DPOConfig, KTOConfig

    unpaired = configuration.loss_type == KTO
    rows = configuration.batch_size * (2 if unpaired else 1)
    loss = KTO if unpaired else [configuration.loss_type]
    arguments = (KTOConfig if unpaired else DPOConfig)(
        output_dir=str(work),
        beta=configuration.beta,
        loss_type=loss,
        learning_rate=configuration.learning_rate,
        num_train_epochs=configuration.epochs,
        max_steps=configuration.max_steps,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        gradient_accumulation_steps=configuration.gradient_accumulation_steps,
        optim=configuration.optimizer,
        lr_scheduler_type=configuration.scheduler,
        warmup_steps=configuration.warmup_steps,
        max_length=int(getattr(model.config, "max_position_embeddings", 1024)),
        precompute_ref_log_probs=configuration.lora_rank == 0,
        gradient_checkpointing=recomputes_activations(configuration),
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
        use_cpu=trains_on_cpu(model),
        dataloader_pin_memory=not trains_on_cpu(model) and torch.cuda.is_available(),
    )
    # One process trains on one device: transformers would replicate the model on all it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


@contextlib.contextmanager
def known_settings() -> Iterator[None]:
    """Tell in one line what TRL refuses.

    Raises:
        ConfigurationError: A setting that TRL does not know.
    """
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


def _stored(build: Callable[[], Any], folder: Path) -> Any:
    """The data on disk, where processes share what TRL computes from them."""
    from datasets import load_from_disk

    def write() -> None:
        if folder.is_dir():
            return
        temporary = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        build().save_to_disk(temporary)
        temporary.rename(folder)

    processes().done_by_main(write)
    return load_from_disk(folder)


def _paired_dataset(pairs: PreferenceSet, seed: int) -> Any:  # noqa: ARG001
    from datasets import Dataset

    return Dataset.from_list(
        [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    )


def _unpaired_dataset(pairs: PreferenceSet, seed: int) -> Any:
    from datasets import Dataset

    rows = [
        {"prompt": pair.prompt, "completion": completion, "label": label}
        for pair in pairs
        for completion, label in ((pair.chosen, True), (pair.rejected, False))
    ]
    order = np.random.default_rng(seed).permutation(len(rows))
    return Dataset.from_list([rows[index] for index in order])


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
