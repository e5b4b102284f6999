"""Checkpoints into HuggingFace models: safetensors only, every weight present and finite."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dsteer_tl.errors import CheckpointError, DependencyError
from dsteer_tl.lens_model.readout import hash_tensors

#: The embedded base model ships in the package and is asked for by this name.
EMBEDDED_MODEL = "tales"
_EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "tales-base"
Quantization = Literal["8bit", "4bit"]
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How checkpoints are loaded.

    Attributes:
        device: Torch device; ignored where ``device_map`` is given.
        dtype: Weights are cast to it: ``float32``, ``bfloat16`` or ``float16``.
        revision: Branch, tag or commit of a hub repository.
        trust_remote_code: Run Python code that comes with a hub repository. Off unless asked.
        device_map: Passed to transformers, for models larger than one device.
        quantization: Whether the blocks' matrices are kept in 8 or 4 bits (bitsandbytes).
            Embeddings, norms and the unembedding stay in ``dtype``, so that the readout is exact.
    """

    device: str = "cpu"
    dtype: str = "float32"
    revision: str | None = None
    trust_remote_code: bool = False
    device_map: str | dict[str, Any] | None = None
    quantization: Quantization | None = None


def resolve_source(source: str | Path) -> str:
    """A directory or hub id; ``"tales"`` is the base model inside the package."""
    return str(_EMBEDDED_FOLDER) if str(source) == EMBEDDED_MODEL else str(source)


def _is_local(source: str) -> bool:
    return Path(source).exists() or source.startswith((".", "/", "~"))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(
            f"no checkpoint at {folder}: expected a directory with config.json and *.safetensors"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json, so it is not a checkpoint directory")
    if not any(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.iterdir() if path.suffix in _PICKLE_SUFFIXES]
        found = (
            f"found only pickle weights ({', '.join(pickles)})" if pickles else "found no weights"
        )
        raise CheckpointError(
            f"{folder}: {found}, expected *.safetensors; pickles can run code when loaded, so "
            "convert them with save_pretrained(safe_serialization=True)"
        )
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({first_line(error)}): it is damaged or cut short, so "
                "copy or download it again"
            ) from error


def load_model(source: str | Path, options: LoadOptions) -> PreTrainedModel:
    """A causal language model in evaluation mode, from a directory or a hub id.

    Raises:
        CheckpointError: Missing, corrupt, incomplete, pickled or non-finite weights; weights that
            do not fit the devices; an unembedding that is quantized.
        DependencyError: Quantization was asked for and bitsandbytes is not installed.
    """
    extra = _placement(options)
    location = resolve_source(source)
    if _is_local(location):
        _check_folder(Path(location))
    loaded: Any
    try:
        with quiet_transformers():
            loaded = AutoModelForCausalLM.from_pretrained(
                location,
                dtype=getattr(torch, options.dtype),
                revision=options.revision,
                trust_remote_code=options.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **extra,
            )
    except Exception as error:  # transformers and safetensors raise many kinds
        raise CheckpointError(
            f"cannot load a causal language model from {source}: {first_line(error)}"
        ) from error
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1].get("missing_keys", ()))
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} weights, first {missing[0]!r}: the checkpoint is "
            "incomplete or of another architecture"
        )
    _check_placed(model, str(source))
    if not extra:
        torch.nn.Module.to(model, options.device)
    check_finite(model.named_parameters(), str(source))
    model.eval()
    return model


def _placement(options: LoadOptions) -> dict[str, Any]:
    """What transformers is told of devices and number formats; nothing for one plain device."""
    if options.device_map is None:
        check_device(options.device)
    if options.quantization is None:
        return {} if options.device_map is None else {"device_map": options.device_map}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DependencyError(
            f"weights in {options.quantization} need bitsandbytes: install "
            "'dsteer-tl[quantization]', or load without quantization"
        )
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, options.dtype)
    settings = {
        "8bit": {"load_in_8bit": True},
        "4bit": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
        },
    }
    return {
        # Quantized weights cannot be moved afterwards.
        "device_map": options.device_map or {"": options.device},
        "quantization_config": BitsAndBytesConfig(**settings[options.quantization]),
    }


def _check_placed(model: PreTrainedModel, source: str) -> None:
    outside = [name for name, found in model.named_parameters() if found.device.type == "meta"]
    if outside:
        raise CheckpointError(
            f"{source} does not fit: device_map left {len(outside)} weights outside the devices, "
            f"first {outside[0]!r}; they would be copied in for every pass. Give more devices, "
            "half precision or quantization"
        )
    unembedding = model.get_output_embeddings()
    if unembedding is not None and not unembedding.weight.is_floating_point():
        raise CheckpointError(
            f"the unembedding of {source} is quantized ({unembedding.weight.dtype}), and the "
            "readout would not be exact: use a checkpoint whose lm_head is kept as trained"
        )


def check_device(device: str) -> None:
    """Refuse a device that is not there, before anything is downloaded for it.

    Raises:
        CheckpointError: Torch does not know the device or cannot use it here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CheckpointError(
            f"device {device!r} cannot be used here ({first_line(error)}): set model.device to "
            "'cpu' or to a device that torch sees"
        ) from error


def load_tokenizer(source: str | Path, options: LoadOptions) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with a pad token if it has none.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    location = resolve_source(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location, revision=options.revision, trust_remote_code=options.trust_remote_code
        )
    except Exception as error:
        raise CheckpointError(
            f"cannot load a tokenizer from {source}: {first_line(error)}"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_finite(parameters: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Refuse NaN and infinite weights.

    Raises:
        CheckpointError: Names the first tensor and how many of its values are not finite.
    """
    for key, parameter in parameters:
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            count = int((~torch.isfinite(parameter)).sum())
            raise CheckpointError(
                f"{name}: {count} of {parameter.numel()} values of {key!r} are NaN or infinite"
            )


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over every parameter, as the identity of a model in manifests and vectors.

    Of quantized weights also over their scales: the same codes mean other weights with others.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter
        if isinstance(scales := getattr(parameter, "SCB", None), Tensor):  # 8 bits
            tensors[f"{name}.SCB"] = scales
        if (state := getattr(parameter, "quant_state", None)) is not None:  # 4 bits
            parts = state.as_dict(packed=True)
            tensors.update({f"{name}.{key}": value for key, value in parts.items()})
    return hash_tensors(tensors)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars and load reports: errors are raised instead."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """Kind and first line of an error from elsewhere, for a message of one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"[:300]
