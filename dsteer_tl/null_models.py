"""Null models: what a weight change does that is as large as the policy's but learnt nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from dsteer_tl.lens_model import Backend, LensModel, LoadOptions, load_lens_model, load_model


@torch.no_grad()
def random_weights_model(
    base: str | Path,
    policy: str | Path,
    *,
    seed: int,
    backend: Backend = "bridge",
    options: LoadOptions | None = None,
) -> LensModel:
    """The base plus random weight changes, each tensor's as large as the policy's.

    Each ΔW is replaced by Gaussian noise of the same Frobenius norm; frozen tensors stay as they
    are. It keeps how much each tensor moved and breaks which way: shifts that are just as parallel
    or low-rank here are a property of the network, not of preferences.

    Raises:
        CheckpointError: A checkpoint cannot be loaded.
    """
    options = options or LoadOptions()
    model, tuned = load_model(base, options), load_model(policy, options)
    changed = dict(tuned.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        change = changed[name].float().to(parameter.device) - parameter.float()
        if not bool(change.any()):
            continue
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        parameter.add_((noise * (change.norm() / noise.norm())).to(parameter.dtype))
    del tuned, changed
    return load_lens_model(model, backend=backend, name="random weights")
