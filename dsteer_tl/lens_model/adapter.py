"""A LoRA adapter switched on and off: two `LensModel` views of one copy of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsteer_tl.lens_model.base import LensModel
from dsteer_tl.lens_model.bridge import BridgeLens
from dsteer_tl.lens_model.checkpoint import resolve_source
from dsteer_tl.lens_model.components import AttentionOutput, MlpWeights
from dsteer_tl.lens_model.types import Edit


class AdapterLens(LensModel):
    """A view of one hooked model with its adapter on or off."""

    backend = "TransformerBridge + adapter"

    def __init__(
        self,
        inner: BridgeLens,
        context: Callable[[], contextlib.AbstractContextManager[Any]],
        name: str,
        weights_hash: str,
    ) -> None:
        self._inner, self._context = inner, context
        self.name, self.weights_hash = name, weights_hash
        self.n_layers, self.d_model = inner.n_layers, inner.d_model
        self.d_vocab, self.n_ctx = inner.d_vocab, inner.n_ctx
        self.readout, self.end_token_ids = inner.readout, inner.end_token_ids

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self._inner.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self._inner.dtype

    @property
    def norm_parameters(self) -> dict[str, Tensor]:
        """Gain and, where there is one, bias of the final norm."""
        return self._inner.norm_parameters

    def final_norm(self, x: Tensor) -> Tensor:
        """The model's own final norm, gain included."""
        with self._context():
            return self._inner.final_norm(x)

    def hook_name(self, site: str) -> str:
        """The TransformerLens hook of a site."""
        return self._inner.hook_name(site)

    def hook_names(self) -> frozenset[str]:
        """Every hook name."""
        return self._inner.hook_names()

    def mlp_weights(self, layer: int) -> MlpWeights:
        """The weights of a block's MLP, without what an adapter adds to them."""
        return self._inner.mlp_weights(layer)

    def attention_output(self, layer: int) -> AttentionOutput:
        """The output projection of a block's attention, without what an adapter adds to it."""
        return self._inner.attention_output(layer)

    def _forward(self, ids: Tensor, mask: Tensor, *, last_only: bool) -> Tensor:
        with self._context():
            return self._inner._forward(ids, mask, last_only=last_only)

    @contextlib.contextmanager
    def _read(self, site: str, function: Callable[[Tensor], None]) -> Iterator[None]:
        with self._inner._read(site, function):
            yield

    @contextlib.contextmanager
    def _write(self, edit: Edit) -> Iterator[None]:
        with self._inner._write(edit):
            yield

    @property
    def _stages(self) -> Sequence[torch.nn.Module]:
        return self._inner._stages

    def _prefill(self, ids: Tensor, mask: Tensor) -> Any:
        with self._context():
            return self._inner._prefill(ids, mask)

    def _generate(self, ids: Tensor, mask: Tensor, **settings: Any) -> Tensor:
        with self._context():
            return self._inner._generate(ids, mask, **settings)


def is_adapter(source: str | Path) -> bool:
    """Whether a directory holds a PEFT adapter instead of a full checkpoint."""
    return (Path(resolve_source(source)) / "adapter_config.json").is_file()
