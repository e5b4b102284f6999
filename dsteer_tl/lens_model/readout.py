"""The affine readout and output transform that turn final hidden states into logits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Readout:
    """Logits from the final hidden state: ``z = transform(h W_U + b_U)``.

    The tensors must not change once the readout is made: `content_hash` reads them once. A model
    that is trained further needs a new readout.

    Attributes:
        W_U: Unembedding, shape ``[d_model, d_vocab]``.
        b_U: Its bias (zeros for most models; Phi and GPT-J have one).
        softcap: Gemma's ``c`` in ``c · tanh(z / c)``, or None.
        scale: A factor on the logits (Cohere multiplies, Granite divides).
    """

    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, " d_vocab"]
    softcap: float | None = None
    scale: float = 1.0
    _hash: str = field(default="", init=False, repr=False, compare=False)

    def __call__(self, h: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """Logits of final hidden states, in the dtype and on the device of ``h``.

        They are computed where the unembedding lies: a device map may have put it elsewhere.
        """
        here = h.to(self.W_U.device)
        logits = (here @ self.W_U.to(h.dtype) + self.b_U.to(h.dtype)) * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits.to(h.device)

    def invert_transform(self, logits: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Undo scale and soft-capping, so that differences are linear in ``h`` again."""
        if self.softcap is not None:
            logits = self.softcap * torch.atanh((logits / self.softcap).clamp(-1 + 1e-7, 1 - 1e-7))
        return logits / self.scale

    def to(self, *, dtype: torch.dtype) -> Readout:
        """The same readout with its tensors in another dtype."""
        return Readout(self.W_U.to(dtype), self.b_U.to(dtype), self.softcap, self.scale)

    def content_hash(self) -> str:
        """SHA-256 over W_U, b_U and the transform, computed at the first call."""
        if not self._hash:
            found = hash_tensors({"W_U": self.W_U, "b_U": self.b_U}, f"{self.softcap} {self.scale}")
            object.__setattr__(self, "_hash", found)
        return self._hash


def output_transform(configuration: Any) -> tuple[float | None, float]:
    """Soft-cap and scale of the logits as a HuggingFace configuration states them."""
    text = (
        configuration.get_text_config()
        if hasattr(configuration, "get_text_config")
        else configuration
    )
    softcap = getattr(text, "final_logit_softcapping", None)
    scale = 1.0
    if getattr(text, "logit_scale", None):
        scale *= float(text.logit_scale)
    if getattr(text, "logits_scaling", None):
        scale /= float(text.logits_scaling)
    return (None if softcap is None else float(softcap)), scale


def end_token_ids(model: Any) -> tuple[int, ...]:
    """The end-of-sequence ids that the checkpoint's configuration names."""
    end = getattr(model.config, "eos_token_id", None)
    if end is None:
        return ()
    return tuple(end) if isinstance(end, (list, tuple)) else (int(end),)


def first_parameter(model: torch.nn.Module) -> Tensor:
    """A parameter that tells the device of the inputs and the dtype of the weights."""
    return next(model.parameters())


def hash_tensors(tensors: dict[str, Tensor], extra: str = "") -> str:
    """SHA-256 over names, shapes and bytes in the order of the names."""
    digest = hashlib.sha256(extra.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
