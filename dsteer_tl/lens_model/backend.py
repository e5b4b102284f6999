"""What a class of hooked models must provide; `LensModel` builds everything else on it."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsteer_tl.lens_model.components import AttentionOutput, MlpWeights
from dsteer_tl.lens_model.readout import Readout
from dsteer_tl.lens_model.types import ChooseTokens, Edit, Prefill


class ModelBackend(abc.ABC):
    """Reading, writing and running one model, without checks; attributes as in `LensModel`."""

    backend: ClassVar[str]
    name: str
    n_layers: int
    d_model: int
    d_vocab: int
    n_ctx: int
    readout: Readout
    weights_hash: str
    end_token_ids: tuple[int, ...]

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where inputs go."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""

    @property
    @abc.abstractmethod
    def norm_parameters(self) -> dict[str, Tensor]:
        """Gain and, where there is one, bias of the final norm."""

    @abc.abstractmethod
    def final_norm(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Apply the final norm with its gain, which turns the last ``resid_post`` into ``h``."""

    @abc.abstractmethod
    def hook_name(self, site: str) -> str:
        """The TransformerLens name of the hook at which a site or place is read and written."""

    @abc.abstractmethod
    def hook_names(self) -> frozenset[str]:
        """Every hook name that this model has."""

    @abc.abstractmethod
    def mlp_weights(self, layer: int) -> MlpWeights:
        """The weights of a block's MLP; its value vectors are the rows of ``W_out``.

        Raises:
            HookError: There is no such layer, or the block has no single MLP.
        """

    @abc.abstractmethod
    def attention_output(self, layer: int) -> AttentionOutput:
        """The output projection of a block's attention, one matrix a head.

        Raises:
            HookError: There is no such layer, or the block has no single attention.
        """

    @abc.abstractmethod
    def _forward(
        self, ids: Tensor, mask: Tensor, *, last_only: bool
    ) -> Float[Tensor, "batch position d_vocab"]:
        """Logits, of the last position alone where ``last_only`` can save the unembedding."""

    @abc.abstractmethod
    def _read(
        self, site: str, function: Callable[[Tensor], None]
    ) -> contextlib.AbstractContextManager[None]:
        """Call ``function`` with the tensor at ``site`` whenever the forward pass meets it."""

    @abc.abstractmethod
    def _write(self, edit: Edit) -> contextlib.AbstractContextManager[None]:
        """Replace the tensor at a site by what the edit returns."""

    @abc.abstractmethod
    def _generate(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        choose: ChooseTokens | None,
        prefill: Prefill | None,
    ) -> Int[Tensor, "batch total"]:
        """Continue left-padded prompts; greedy at temperature 0, or by ``choose``."""

    @abc.abstractmethod
    def _prefill(self, ids: Tensor, mask: Tensor) -> Any:
        """Keys and values of every position but the last, or None where nothing is cached."""

    @property
    @abc.abstractmethod
    def _stages(self) -> Sequence[torch.nn.Module]:
        """The modules that run the blocks, in order, then the final norm."""
