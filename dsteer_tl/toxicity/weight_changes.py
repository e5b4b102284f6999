"""How far preference tuning moved the weights, tensor by tensor (claim 24).

Lee et al. 2024, sec. 5.1, find cosines of more than 0.99 between the weights before and after DPO,
and norms that differ by less than 1e-5. A cosine near 1 is cheap: with ‖Δθ‖ = 0.1·‖θ‖ a random
change has one of 0.995 too. So each tensor's cosine stands beside that of a random change of the
same norm, and norms that differ little stand beside the norm of the change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from dsteer_tl.lens_model import LoadOptions, load_model
from dsteer_tl.lens_model.adapter import is_adapter
from dsteer_tl.weight_pairs import merged_adapter, paired_tensors, tensor_kind, tensor_layer

_BLOCK = 1 << 22  # values that are held in float64 at a time


def weight_change_table(
    base: str | Path,
    policy: str | Path,
    *,
    seed: int,
    options: LoadOptions | None = None,
    policy_options: LoadOptions | None = None,
) -> pd.DataFrame:
    """Cosines and norms of every tensor before and after preference tuning (claim 24).

    Both models are loaded; of their tensors only parts are turned to float64. Tied tensors count
    once. Of an adapter the merged weights are compared.

    Args:
        base: Directory or hub id.
        policy: Directory, hub id, or a directory with a LoRA adapter for the base.
        seed: Seed of the random changes.
        options: How the base is loaded.
        policy_options: How the policy is loaded, if otherwise.

    Returns:
        Table `toxicity_weights`, one row a tensor: ``tensor``, ``layer`` (−1 outside the blocks),
        ``kind`` (see `tensor_kind`), ``size`` in values, ``cosine`` of base and policy,
        ``cosine_random`` of the base and the base plus Gaussian noise as long as the change (a
        cosine with a zero tensor is 0, of two zero tensors 1), ``norm_base``, ``norm_policy``,
        ``norm_change`` = ‖θp − θb‖, ``norm_difference`` = |‖θp‖ − ‖θb‖|/‖θb‖, ``relative_change``
        = ‖θp − θb‖/‖θb‖ (both NaN where the tensor was zero and is no more), and ``trained``:
        whether any value differs.

    Raises:
        CheckpointError: A checkpoint or adapter cannot be loaded, or is quantized.
        DependencyError: The policy is an adapter and PEFT is not installed.
        PairError: The policy's tensors have other names or shapes than the base's.
    """
    options = options or LoadOptions()
    before = load_model(base, options)
    if is_adapter(policy):
        after = merged_adapter(load_model(base, options), policy, base)
    else:
        after = load_model(policy, policy_options or options)
    generator = np.random.default_rng(seed)
    rows = []
    for name, old, new in paired_tensors(before, after, str(base), str(policy)):
        kind, layer = tensor_kind(name), tensor_layer(name)
        rows.append(
            {"tensor": name, "layer": layer, "kind": kind, "size": old.numel()}
            | _change(old, new, generator)
        )
    return pd.DataFrame(rows)


def _blocks(tensor: Tensor) -> Iterator[np.ndarray]:
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _BLOCK):
        yield flat[start : start + _BLOCK].cpu().double().numpy()


def _change(old: Tensor, new: Tensor, generator: np.random.Generator) -> dict[str, float | bool]:
    """Cosines and norms of one tensor, from sums over its parts."""
    pairs = zip(_blocks(old), _blocks(new), strict=True)
    trained = any(bool((first != second).any()) for first, second in pairs)
    old_old = new_new = old_new = change_change = old_noise = noise_noise = 0.0
    for first, second in zip(_blocks(old), _blocks(new), strict=True):
        old_old += float(first @ first)
        new_new += float(second @ second)
        old_new += float(first @ second)
        change_change += float((second - first) @ (second - first))
        if trained:
            noise = generator.standard_normal(first.size)
            old_noise += float(first @ noise)
            noise_noise += float(noise @ noise)
    norm_base, norm_policy = math.sqrt(old_old), math.sqrt(new_new)
    norm_change = math.sqrt(change_change)
    # ⟨θ, θ + sε⟩ and ‖θ + sε‖² with s = ‖Δθ‖/‖ε‖: the noise need not be kept.
    scale = norm_change / math.sqrt(noise_noise) if trained else 0.0
    old_random = old_old + scale * old_noise
    random_random = old_old + 2 * scale * old_noise + change_change
    return {
        "cosine": _cosine(old_new, old_old, new_new) if trained else 1.0,
        "cosine_random": _cosine(old_random, old_old, random_random) if trained else 1.0,
        "norm_base": norm_base,
        "norm_policy": norm_policy,
        "norm_change": norm_change,
        "norm_difference": _ratio(abs(norm_policy - norm_base), norm_base),
        "relative_change": _ratio(norm_change, norm_base),
        "trained": trained,
    }


def _cosine(product: float, first: float, second: float) -> float:
    if first <= 0 or second <= 0:
        return 0.0
    return float(np.clip(product / math.sqrt(first) / math.sqrt(second), -1.0, 1.0))


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else math.nan
    return part / whole
