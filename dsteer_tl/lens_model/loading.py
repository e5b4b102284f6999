"""One door to every hooked model: load, hook, self-check."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from dsteer_tl.errors import ConfigurationError, SelfCheckError
from dsteer_tl.lens_model.base import LensModel
from dsteer_tl.lens_model.bridge import BridgeLens
from dsteer_tl.lens_model.checkpoint import LoadOptions, check_finite, hash_weights, load_model
from dsteer_tl.lens_model.hooked import HookedLens
from dsteer_tl.lens_model.self_check import SelfCheck, reference_logits, run_self_check

Backend = Literal["bridge", "hooked"]
_BACKENDS: dict[str, type[LensModel]] = {"bridge": BridgeLens, "hooked": HookedLens}


def load_lens_model(
    source: str | Path | PreTrainedModel,
    *,
    backend: Backend = "bridge",
    options: LoadOptions | None = None,
    name: str | None = None,
    self_check: bool = True,
) -> LensModel:
    """Load and hook a model, and refuse it unless its numbers can be trusted.

    Args:
        source: Directory, hub id, ``"tales"``, or a transformers model in memory. A model in
            memory is consumed: hooking replaces its submodules, so save or copy it first.
        backend: ``"bridge"`` (any architecture of TransformerBridge) or ``"hooked"`` (a real
            HookedTransformer; needs TransformerLens 3.9).
        options: Device, dtype and hub settings.
        name: What to call the model in messages and manifests.
        self_check: Compare with plain transformers before first use, see `run_self_check`.

    Raises:
        CheckpointError: The weights cannot be loaded or hooked.
        SelfCheckError: The hooked model disagrees with plain transformers.
    """
    if backend not in _BACKENDS:
        raise ConfigurationError(f"unknown backend {backend!r}: expected one of {list(_BACKENDS)}")
    if isinstance(source, (str, Path)):
        model, label = load_model(source, options or LoadOptions()), name or str(source)
    else:
        model, label = source, name or f"{type(source).__name__} in memory"
        check_finite(model.named_parameters(), label)
    # TRL hands models back in training mode, where dropout would make every capture random.
    model.eval()
    reference = reference_logits(model) if self_check else None
    with torch.no_grad():
        lens: LensModel = _BACKENDS[backend](  # type: ignore[call-arg]
            model, name=label, weights_hash=hash_weights(model)
        )
    if reference is not None:
        try:
            report = run_self_check(lens, reference)
        except RuntimeError as error:
            first_line = (str(error).splitlines() or ["no message"])[0]
            raise SelfCheckError(
                f"{label} ({lens.backend}, {lens.dtype}) cannot run: {first_line}; try another "
                "dtype or backend"
            ) from error
        report.require()
    return lens


__all__ = ["Backend", "SelfCheck", "load_lens_model"]
