"""Hooked models: one interface over TransformerBridge and HookedTransformer."""

from dsteer_tl.lens_model.base import LensModel
from dsteer_tl.lens_model.batching import PaddedBatch, length_sorted_batches, pad
from dsteer_tl.lens_model.checkpoint import LoadOptions, load_model, load_tokenizer
from dsteer_tl.lens_model.components import MlpWeights
from dsteer_tl.lens_model.loading import Backend, load_lens_model
from dsteer_tl.lens_model.readout import Readout
from dsteer_tl.lens_model.self_check import Check, SelfCheck
from dsteer_tl.lens_model.types import ChooseTokens, Edit, EditFunction, Gather, Prefill

__all__ = [
    "LensModel",
    "load_lens_model",
    "Backend",
    "LoadOptions",
    "load_model",
    "load_tokenizer",
    "ChooseTokens",
    "Edit",
    "EditFunction",
    "Gather",
    "Prefill",
    "MlpWeights",
    "Readout",
    "PaddedBatch",
    "pad",
    "length_sorted_batches",
    "Check",
    "SelfCheck",
]
