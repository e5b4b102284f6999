"""What the benchmarks of sweeps run, and the same as one writes it with transformers alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dsteer_tl.directions import SteeringVector
from dsteer_tl.lens_model import LensModel, LoadOptions, load_model, load_tokenizer
from dsteer_tl.pair import ModelPair
from dsteer_tl.steering.reference import Role
from dsteer_tl.steering.scored import STATISTICS, Batch, TokenSequence, batches
from tests.models import policy_of


def default_pair() -> ModelPair:
    """The embedded model and a perturbed copy."""
    base = load_model("tales", LoadOptions())
    tokenizer = load_tokenizer("tales", LoadOptions())
    return ModelPair.load(base, policy_of(base), tokenizer=tokenizer)


def vector(lens: LensModel, site: str, share: float = 0.5) -> SteeringVector:
    """A random direction, of a share of the norm of the residual at a site."""
    ids = torch.arange(2, 34)[None]
    with torch.inference_mode(), lens.reading([site]) as kept:
        lens.forward(ids, torch.ones_like(ids))
    size = share * float(kept[site].norm(dim=-1).mean())
    values = np.random.default_rng(0).normal(size=lens.d_model)
    return SteeringVector(values * size / np.linalg.norm(values), site, "random", "none", 1)


def sequences(lens: LensModel, count: int) -> list[TokenSequence]:
    """Random completions of 24 tokens after prompts of 8 to 24."""
    generator = np.random.default_rng(1)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(int(token) for token in generator.integers(2, lens.d_vocab, length))

    return [TokenSequence(tokens(int(n)), tokens(24)) for n in generator.integers(8, 25, count)]


def plain_models() -> dict[Role, PreTrainedModel]:
    """The models of `default_pair`, unhooked."""
    base = load_model("tales", LoadOptions())
    return {"base": base, "policy": policy_of(base)}


@torch.inference_mode()
def plain_scores(
    models: dict[Role, PreTrainedModel],
    values: np.ndarray,
    rows: list[TokenSequence],
    scales: tuple[float, ...],
    references: tuple[Role, ...],
) -> dict[str, np.ndarray]:
    """A sweep at h as a loop over coefficients: whole passes, all logits, float32 statistics."""
    found = {name: np.zeros((len(scales), len(rows))) for name in STATISTICS}
    added = torch.from_numpy(values).float()
    norm = models["base"].base_model.norm
    for batch in batches(rows, 4096):

        def log_p(model: PreTrainedModel, batch: Batch = batch) -> Tensor:
            inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
            logits = model(**inputs, use_cache=False).logits
            return torch.log_softmax(logits[batch.rows, batch.positions], dim=-1)

        known = {role: log_p(models[role]) for role in references}
        for index, scale in enumerate(scales):
            handle = norm.register_forward_hook(lambda _m, _i, h, s=scale: h + s * added)
            steered = log_p(models["base"])
            handle.remove()
            statistics = {"log_probability": steered.gather(1, batch.targets[:, None])[:, 0]}
            for role, own in known.items():
                statistics[f"kl_{role}"] = (own.exp() * (own - steered)).sum(dim=-1)
                statistics[f"top1_{role}"] = steered.argmax(dim=-1) == own.argmax(dim=-1)
            for name, numbers in statistics.items():
                np.add.at(found[name][index], batch.owner, numbers.double().numpy())
    return found
