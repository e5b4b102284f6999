"""Which parameters are frozen, and the proof that they stayed."""

from __future__ import annotations

import pytest
import torch

from dsteer_tl.errors import TrainingError
from dsteer_tl.training.freezing import freeze, id_free_name
from tests.models import random_model


@pytest.mark.parametrize(
    ("architecture", "embeddings", "unembedding", "expected"),
    [
        ("llama", True, True, {"model.embed_tokens.weight", "lm_head.weight"}),
        ("llama", True, False, {"model.embed_tokens.weight"}),
        ("llama", False, True, {"lm_head.weight"}),
        ("llama", False, False, set()),
        ("gpt2", True, False, {"transformer.wte.weight", "transformer.wpe.weight"}),
        ("gpt2", False, True, {"transformer.wte.weight"}),  # tied
        ("phi", False, True, {"lm_head.weight", "lm_head.bias"}),
    ],
)
def test_what_is_frozen(
    architecture: str, embeddings: bool, unembedding: bool, expected: set[str]
) -> None:
    model = random_model(architecture)
    frozen = freeze(model, embeddings=embeddings, unembedding=unembedding)
    assert set(frozen.names) == expected
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert still == expected
    frozen.require_unchanged(model.state_dict())


def test_one_bit_is_noticed() -> None:
    model = random_model("phi")
    frozen = freeze(model, embeddings=True, unembedding=True)
    with torch.no_grad():
        bias = model.lm_head.bias
        bias[7] = torch.nextafter(bias[7], torch.tensor(9.0))
    with pytest.raises(TrainingError, match=r"lm_head\.bias was frozen but changed"):
        frozen.require_unchanged(model.state_dict())


def test_names_without_the_wrappers_of_peft() -> None:
    assert id_free_name("base_model.model.lm_head.base_layer.weight") == "lm_head.weight"
    assert id_free_name("model.embed_tokens.weight") == "model.embed_tokens.weight"
