"""Null models: what a weight change does that is as large as the policy's but learnt nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dsteer_tl.errors import PairError
from dsteer_tl.lens_model import Backend, LensModel, LoadOptions, load_lens_model, load_model


@torch.no_grad()
def random_weights_model(
    base: str | Path,
    policy: str | Path,
    *,
    seed: int,
    backend: Backend = "bridge",
    options: LoadOptions | None = None,
    policy_options: LoadOptions | None = None,
) -> LensModel:
    """The base plus random weight changes, each tensor's as large as the policy's.

    Each ΔW is replaced by Gaussian noise of the same Frobenius norm; frozen tensors stay as they
    are. It keeps how much each tensor moved and breaks which way: shifts that are just as parallel
    or low-rank here are a property of the network, not of preferences.

    Raises:
        CheckpointError: A checkpoint cannot be loaded.
        PairError: The policy's tensors have other names or shapes than the base's.
    """
    options = options or LoadOptions()
    model = load_model(base, options)
    # Beside the pair, a second copy on the device would be one too many: its tensors go one by one.
    on_host = replace(policy_options or options, device="cpu", device_map=None)
    tuned = load_model(policy, on_host)
    changed = dict(tuned.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name not in changed or changed[name].shape != parameter.shape:
            found = tuple(changed[name].shape) if name in changed else "none"
            raise PairError(
                f"{name} has shape {tuple(parameter.shape)} in {base} and {found} in {policy}: "
                "a weight change is defined only between a model and its own fine-tune"
            )
        change = changed[name].to(parameter.device).float() - parameter.float()
        if not bool(change.any()):
            continue
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        parameter.add_((noise * (change.norm() / noise.norm())).to(parameter.dtype))
    del tuned, changed
    return load_lens_model(model, backend=backend, name="random weights")
