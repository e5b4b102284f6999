"""Freezing the embeddings, and proof afterwards that they did not move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsteer_tl.errors import TrainingError
from dsteer_tl.processes import processes


@dataclass(frozen=True, slots=True)
class FrozenParameters:
    """The parameters that training must leave bitwise as they were.

    Attributes:
        names: Their names.
        before: Copies of them, in the main process.
    """

    names: tuple[str, ...]
    before: dict[str, Tensor]

    def require_unchanged(self, state: Mapping[str, Tensor]) -> None:
        """Compare every bit with the trained weights; for the main process, which has them whole.

        Raises:
            TrainingError: Names the first parameter that moved.
        """
        after = {id_free_name(name): tensor for name, tensor in state.items()}
        for name, expected in self.before.items():
            if not torch.equal(after[name].detach().cpu(), expected):
                raise TrainingError(
                    f"{name} was frozen but changed during training: the readout of base and "
                    "policy would differ; report this with the versions of trl and transformers"
                )


def id_free_name(name: str) -> str:
    """A parameter's name without the wrappers of PEFT."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def freeze(model: nn.Module, *, embeddings: bool, unembedding: bool) -> FrozenParameters:
    """Stop gradients into the chosen parameters.

    Token and positional embeddings are every ``nn.Embedding`` of the model; the unembedding is its
    output layer with its bias. Where the two are tied, freezing either freezes both.
    """
    frozen: list[nn.Parameter] = []
    if embeddings:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                frozen += list(module.parameters(recurse=False))
    if unembedding:
        output = model.get_output_embeddings()  # type: ignore[operator]
        frozen += list(output.parameters(recurse=False))
    ids = {id(parameter) for parameter in frozen}
    for parameter in frozen:
        parameter.requires_grad_(False)
    chosen = {
        id_free_name(name): parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in ids
    }
    # Only the main process has all weights where accelerate loads them in one process alone.
    copied = chosen if processes().is_main else {}
    return FrozenParameters(
        tuple(chosen),
        {name: parameter.detach().cpu().clone() for name, parameter in copied.items()},
    )
