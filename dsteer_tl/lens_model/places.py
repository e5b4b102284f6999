"""What a model has inside its blocks, and tests that its places are what they are named."""

from __future__ import annotations

from dsteer_tl.lens_model.backend import ModelBackend
from dsteer_tl.lens_model.block_outputs import require_attention_outputs, require_block_outputs
from dsteer_tl.lens_model.components import check_place
from dsteer_tl.lens_model.value_vectors import require_value_vectors


class BlockPlaces(ModelBackend):
    """The part of `LensModel` about places inside a block."""

    @property
    def d_mlp(self) -> int:
        """Neurons of one MLP."""
        return int(self.mlp_weights(0).W_out.shape[0])

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLPs are gated: act(x·W_gate) ⊙ (x·W_in)."""
        return self.mlp_weights(0).gated

    @property
    def parallel_blocks(self) -> bool:
        """Whether attention and MLP of a block read the same stream, as in Pythia."""
        return "blocks.0.hook_resid_mid" not in self.hook_names()

    def check_place(self, place: str, *, write: bool = False) -> str:
        """Return the name of a site or of a place inside a block, if this model has it.

        Raises:
            HookError: It has not, or the place cannot be written.
        """
        gated = place.startswith("mlp_gate") and self.gated_mlp
        return check_place(place, self.n_layers, gated, self.name, write=write)

    def check_value_vectors(self) -> None:
        """Refuse a model whose MLPs write anything but m·W_out + b_out.

        Raises:
            HookError: A norm follows the MLP (Gemma 2, OLMo 2), or an adapter is not merged, so
                that the rows of ``W_out`` are not what a neuron adds to the stream.
        """
        require_value_vectors(self)

    def check_attention_outputs(self) -> None:
        """Refuse a model whose attention writes anything but Σ_heads z_h·W_O[h] + b_O.

        Raises:
            HookError: As in `check_value_vectors`, so that a head's z·W_O is not what it adds.
        """
        require_attention_outputs(self)

    def check_block_outputs(self) -> None:
        """Refuse a model where attn_out + mlp_out is not what a block adds to the stream.

        Raises:
            HookError: Something lies between these places and the stream, or a third part is added.
        """
        require_block_outputs(self)
