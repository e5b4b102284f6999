"""Training in several processes: who does what, where the model lies, and what must agree.

Everything goes through accelerate, as ``accelerate launch`` or ``torchrun`` set it up. Replicated
models (DDP) lie whole on the device of each process; sharded ones (FSDP, DeepSpeed) are loaded on
the CPU and divided by accelerate.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.lens_model import LoadOptions
from dsteer_tl.processes import processes
from dsteer_tl.training.configuration import TrainingConfiguration

#: Names that accelerate and this library give to the precisions of training.
_PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "float8"}


def is_sharded() -> bool:
    """Whether accelerate's configuration divides the model among the processes."""
    return shards_by("FSDP") or shards_by("DEEPSPEED")


def shards_by(engine: str) -> bool:
    """Whether accelerate was launched with this engine, ``FSDP`` or ``DEEPSPEED``."""
    from accelerate.utils import parse_flag_from_env

    return bool(parse_flag_from_env(f"ACCELERATE_USE_{engine}"))


def setup_key() -> list[object]:
    """What the result and the form of the checkpoints owe to the launch."""
    engines = [shards_by("FSDP"), shards_by("DEEPSPEED"), os.environ.get("FSDP_VERSION", "")]
    return [processes().count, *engines, os.environ.get("FSDP_STATE_DICT_TYPE", "")]


def options_here(options: LoadOptions) -> LoadOptions:
    """How this process loads the base: on its own GPU, or on the CPU if accelerate divides it."""
    if processes().count == 1 or torch.device(options.device).type == "cpu":
        return options
    if is_sharded() and options.quantization is None:
        return replace(options, device="cpu")
    if torch.device(options.device).index is not None:
        return options
    return replace(options, device=f"{options.device}:{processes().local_index}")


def recomputes_activations(configuration: TrainingConfiguration) -> bool:
    """Whether the model itself does it, and not FSDP, where its configuration says so."""
    from accelerate.utils import parse_flag_from_env

    by_fsdp = shards_by("FSDP") and parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING")
    return configuration.gradient_checkpointing and not by_fsdp


def trains_on_cpu(model: PreTrainedModel) -> bool:
    """Whether the device of training is the CPU; a sharded model is only loaded there."""
    return model.device.type == "cpu" and not (is_sharded() and torch.cuda.is_available())


def check_launch(configuration: TrainingConfiguration, options: LoadOptions) -> None:
    """Refuse settings that contradict accelerate's configuration.

    Raises:
        ConfigurationError: Another precision, or a model spread over devices by one process.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    precision = _PRECISIONS.get(asked, asked)
    if precision not in ("float32", configuration.precision):
        raise ConfigurationError(
            f"the launch asks for mixed_precision {asked!r} and the training for precision "
            f"{configuration.precision!r}: set training.precision={precision}, or "
            "--mixed_precision no for accelerate launch"
        )
    if (
        shards_by("DEEPSPEED")
        and configuration.precision == "bfloat16"
        and options.dtype != "bfloat16"
    ):
        raise ConfigurationError(
            f"DeepSpeed in bfloat16 keeps the weights themselves in it, and the base is loaded in "
            f"{options.dtype}, so frozen weights would be rounded: set model.dtype=bfloat16"
        )
    if (
        shards_by("FSDP")
        and configuration.early_stopping_patience
        and os.environ.get("FSDP_STATE_DICT_TYPE") != "FULL_STATE_DICT"
    ):
        raise ConfigurationError(
            "early stopping goes back to the best checkpoint, which transformers does not find "
            "among sharded ones: launch with fsdp_state_dict_type: FULL_STATE_DICT, or set "
            "training.early_stopping_patience=0"
        )
    if processes().count == 1:
        return
    if options.device_map is not None:
        raise ConfigurationError(
            f"device_map {options.device_map!r} spreads a model over the devices of one process, "
            f"and there are {processes().count}: leave it empty, and shard with FSDP"
        )
    if torch.device(options.device).type == "cpu" and torch.cuda.is_available():
        raise ConfigurationError(
            f"the device is 'cpu' and the {processes().count} processes of this launch have GPUs: "
            "set model.device=cuda, or hide them with CUDA_VISIBLE_DEVICES="
        )


def whole_state(trainer: Any) -> dict[str, Tensor]:
    """Every weight of the trained model, gathered in the main process; empty in others if sharded.

    To be called in all processes.
    """
    state: dict[str, Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return state


@contextlib.contextmanager
def reference_sharded_by_layers() -> Iterator[None]:
    """Let accelerate shard TRL's reference model as it shards the policy.

    Under FSDP 2, TRL 1.16 shards its reference as one unit, so that each forward pass would gather
    the whole model on every device.
    """
    from trl.trainer import dpo_trainer, kto_trainer

    modules: list[Any] = [m for m in (dpo_trainer, kto_trainer) if hasattr(m, "prepare_fsdp")]
    before = [module.prepare_fsdp for module in modules]

    def prepare(model: Any, accelerator: Any) -> Any:
        if accelerator.state.fsdp_plugin.fsdp_version != 2:
            return before[0](model, accelerator)
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        return fsdp2_prepare_model(accelerator, model.requires_grad_(False)).eval()

    try:
        for module in modules:
            module.prepare_fsdp = prepare
        yield
    finally:
        for module, original in zip(modules, before, strict=True):
            module.prepare_fsdp = original
