"""How the models of a run are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dsteer_tl.lens_model import LoadOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfiguration:
    """How checkpoints are loaded and hooked.

    Attributes:
        backend: ``bridge`` (TransformerBridge) or ``hooked`` (HookedTransformer 3.9).
        device: Torch device.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device_map: ``auto`` to spread a large model over devices, or empty.
        quantization: ``8bit`` or ``4bit`` to keep the blocks' matrices so, or empty. Embeddings,
            norms and the unembedding stay in ``dtype``. Needs bitsandbytes and a GPU.
        revision: Branch, tag or commit of the base, or empty.
        policy_revision: The same for the policy.
        trust_remote_code: Run Python code from a hub repository. Off unless asked.
    """

    backend: Literal["bridge", "hooked"] = "bridge"
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device_map: str = ""
    quantization: Literal["", "8bit", "4bit"] = ""
    revision: str = ""
    policy_revision: str = ""
    trust_remote_code: bool = False

    def load_options(self, revision: str) -> LoadOptions:
        """How a checkpoint is loaded; both models of a pair alike but for their revision."""
        from dsteer_tl.lens_model import LoadOptions

        return LoadOptions(
            device=self.device,
            dtype=self.dtype,
            revision=revision or None,
            trust_remote_code=self.trust_remote_code,
            device_map=self.device_map or None,
            quantization=self.quantization or None,
        )
