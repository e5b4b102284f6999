"""Every backend that is installed, on every architecture that it supports."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from transformers import PreTrainedModel

from dsteer_tl.lens_model import LensModel
from tests.models import ARCHITECTURES

HAS_HOOKED = metadata.version("transformer-lens").startswith("3.")
#: HookedTransformer 3.9 knows these by model name alone, or reads settings that are gone.
UNSUPPORTED_BY_HOOKED = {"gemma2", "olmo2", "phi"}
CASES = [("bridge", name) for name in ARCHITECTURES] + (
    [("hooked", name) for name in ARCHITECTURES if name not in UNSUPPORTED_BY_HOOKED]
    if HAS_HOOKED
    else []
)


@dataclass(frozen=True)
class Case:
    """A hooked model and the plain transformers model that it was made from."""

    backend: str
    architecture: str
    plain: PreTrainedModel
    lens: LensModel
