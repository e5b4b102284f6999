"""Unsteered base and policy at the scored tokens, and how far a steered model is from them.

Everything over the vocabulary goes in blocks of rows that a processor's cache can hold: its float64
temporaries are many, and in main memory they would cost as much as the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsteer_tl.distributions import as_double
from dsteer_tl.steering.scored import Batch

Role = Literal["base", "policy"]
ROLES: tuple[Role, ...] = ("base", "policy")

#: Values in one block of rows: 1 MiB of float64, of which a few are alive at a time. Other devices
#: want more work at once.
_CACHED = 2**17
_LAUNCHED = 2**22


class Unsteered:
    """One model at the scored tokens: p = exp(z − m) / Z, and what follows from it.

    Attributes:
        logits: z, in float32 where the model computes in less.
        weights: exp(z − m) in float64.
        highest: m, the largest logit of each token.
        top: Where that is.
        total: Z = Σ exp(z − m).
        normaliser: log Σ exp z = m + log Z.
        mean_logit: Σ p z, so that Σ p log p is this less `normaliser`.
    """

    __slots__ = ("highest", "logits", "mean_logit", "normaliser", "top", "total", "weights")

    def __init__(self, logits: Float[Tensor, "token d_vocab"]) -> None:
        self.logits = wide_enough(logits)
        wide_type = as_double(self.logits[:0]).dtype
        self.weights = torch.empty_like(self.logits, dtype=wide_type)
        self.highest, self.total, self.mean_logit = self.weights.new_empty(3, len(logits))
        self.top = torch.empty_like(self.highest, dtype=torch.long)
        for rows in row_blocks(self.logits):
            wide = as_double(self.logits[rows])
            own = self.weights[rows]
            self.highest[rows], self.top[rows], self.total[rows] = softmax_parts(wide, own)
            self.mean_logit[rows] = torch.linalg.vecdot(own, wide) / self.total[rows]
        self.normaliser = self.highest + self.total.log()

    def mean_of(self, values: Float[Tensor, "token d_vocab"]) -> Float[Tensor, " token"]:
        """Σ p x of each token."""
        sums = [
            torch.linalg.vecdot(self.weights[rows], as_double(values[rows]))
            for rows in row_blocks(values)
        ]
        mean: Tensor = torch.cat(sums) / self.total
        return mean

    def log_probability(self, targets: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
        """Log p of one token each, in nats."""
        chosen = self.logits.gather(1, targets.to(self.logits.device)[:, None])[:, 0]
        log_p: Tensor = as_double(chosen) - self.normaliser
        return log_p


class Reference:
    """The unsteered models at the scored tokens of a batch.

    Args:
        logits: Of each model that was run.
        asked: The models that steered ones are held against; all of them by default. A host that
            is steered by the algebra of its logits is here whether asked for or not.
    """

    def __init__(
        self,
        logits: Mapping[Role, Float[Tensor, "token d_vocab"]],
        asked: Sequence[Role] | None = None,
    ) -> None:
        self.models = {role: Unsteered(values) for role, values in logits.items()}
        self.asked: tuple[Role, ...] = tuple(logits if asked is None else asked)
        self._means: dict[tuple[Role, Role], Tensor] = {}

    def mean_logit(self, of: Role, under: Role) -> Float[Tensor, " token"]:
        """Σ p z of each token, with the z of one model and the p of another."""
        if (of, under) not in self._means:
            model = self.models[under]
            own = model.mean_logit if of == under else model.mean_of(self.models[of].logits)
            self._means[of, under] = own
        return self._means[of, under]


def compare(
    logits: Float[Tensor, "token d_vocab"], batch: Batch, reference: Reference
) -> dict[str, Float[Tensor, " token"]]:
    """`scored.STATISTICS` of one set of steered logits, per token, in float64."""
    logits = wide_enough(logits)
    targets = batch.targets.to(logits.device)[:, None]
    parts = [_compare(logits, targets, rows, reference) for rows in row_blocks(logits)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _compare(
    logits: Tensor, targets: Tensor, rows: slice, reference: Reference
) -> dict[str, Tensor]:
    wide = as_double(logits[rows])
    highest, top, total = softmax_parts(wide, torch.empty_like(wide))
    normaliser = highest + total.log()
    found = {"log_probability": wide.gather(1, targets[rows])[:, 0] - normaliser}
    for name in reference.asked:
        model = reference.models[name]
        # −Σ p log q needs no array of log q: log q = z − log Σ exp z, and p sums to 1.
        mean = torch.linalg.vecdot(model.weights[rows], wide) / model.total[rows]
        own = model.mean_logit[rows] - model.normaliser[rows]
        found[f"kl_{name}"] = (own - (mean - normaliser)).clamp_min(0)
        found[f"top1_{name}"] = (top == model.top[rows]).to(wide.dtype)
    return found


def softmax_parts(
    wide: Float[Tensor, "row d_vocab"], weights: Float[Tensor, "row d_vocab"]
) -> tuple[Float[Tensor, " row"], Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Writes exp(z − m) into `weights` and gives m, where that is, and Σ exp(z − m)."""
    highest, top = wide.max(dim=-1)
    # Not in place: in a float64 model these are the logits themselves.
    torch.sub(wide, highest[:, None], out=weights).exp_()
    return highest, top, weights.sum(dim=-1)


def wide_enough(logits: Tensor) -> Tensor:
    """Logits in float32 where they are in less, so that what is added to them is not rounded."""
    return logits.float() if logits.element_size() < 4 else logits


def row_blocks(values: Float[Tensor, "row d_vocab"]) -> Iterator[slice]:
    """Slices that cover the rows, each small enough for a processor's cache."""
    budget = _CACHED if values.device.type == "cpu" else _LAUNCHED
    step = max(1, budget // values.shape[-1])
    for start in range(0, len(values), step):
        yield slice(start, start + step)
