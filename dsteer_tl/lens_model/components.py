"""Places inside a block: what attention and the MLP write, its heads, and the MLP's neurons.

Beside the sites of the residual stream (`dsteer_tl.sites`), a model can be read at

``resid_pre.<l>``, ``resid_mid.<l>``
    the stream that enters block l, and the stream that its MLP reads. Where attention and MLP run
    in parallel (Pythia) these are one;
``attn_z.<l>``
    z, what the heads read, side by side: n_heads·d_head wide, what multiplies W_O;

and read or written at

``attn_out.<l>``, ``mlp_out.<l>``
    what attention and MLP add: ``resid_post = resid_pre + attn_out + mlp_out``, after the norm
    that follows them in some models (Gemma 2, OLMo 2);
``mlp_pre.<l>``, ``mlp_gate.<l>``
    x·W_in + b_in and, in gated MLPs alone, x·W_gate + b_gate;
``mlp_post.<l>``
    the post-activation values m, what multiplies the rows of W_out: the value vectors.

``resid_mid`` cannot be written: on a `TransformerBridge` that edits the MLP's branch alone. To
steer inside a block, write at ``attn_out``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dsteer_tl.errors import HookError
from dsteer_tl.sites import check_site

#: Places as wide as the residual stream.
STREAMS = ("resid_pre", "resid_mid", "attn_out", "mlp_out")
#: Places as wide as all heads together.
HEADS = ("attn_z",)
#: Places as wide as the MLP.
NEURONS = ("mlp_pre", "mlp_gate", "mlp_post")

_READ_ALONE = ("resid_pre", "resid_mid", "attn_z")

_PLACE = re.compile(rf"({'|'.join((*STREAMS, *HEADS, *NEURONS))})\.(0|[1-9][0-9]*)")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MlpWeights:
    """The weights of one block's MLP, in the orientation of TransformerLens.

    Attributes:
        W_in: Key vectors, one a column.
        W_gate: Key vectors of the gate, or None where the MLP is not gated.
        W_out: Value vectors, one a row.
        b_in, b_out: Biases, zeros where the model has none.
        b_gate: The same of the gate, or None.
    """

    W_in: Float[Tensor, "d_model d_mlp"]
    W_gate: Float[Tensor, "d_model d_mlp"] | None
    W_out: Float[Tensor, "d_mlp d_model"]
    b_in: Float[Tensor, " d_mlp"]
    b_gate: Float[Tensor, " d_mlp"] | None
    b_out: Float[Tensor, " d_model"]

    @property
    def gated(self) -> bool:
        """Whether the activation is act(x·W_gate + b_gate) ⊙ (x·W_in + b_in)."""
        return self.W_gate is not None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionOutput:
    """The output projection of one block's attention: attn_out = Σ_heads z_h·W_O[h] + b_O.

    Attributes:
        W_O: One matrix a head, from z to the stream.
        b_O: Bias, zeros where the model has none.
    """

    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, " d_model"]


def component_of(place: str) -> tuple[str, int] | None:
    """Kind and layer of a place inside a block, or None for a site of the residual stream."""
    match = _PLACE.fullmatch(place)
    return None if match is None else (match.group(1), int(match.group(2)))


def check_place(place: str, n_layers: int, gated: bool, model: str, *, write: bool = False) -> str:
    """Return ``place`` if a model has it, as a site or inside a block.

    Args:
        place: The name.
        n_layers: Of the model.
        gated: Whether its MLPs are gated.
        model: Its name, for the message.
        write: Whether the place is to be written.

    Raises:
        HookError: The name is unknown, or the model has no such place, or it cannot be written.
    """
    found = component_of(place)
    if found is None:
        return check_site(place, n_layers, model)
    kind, layer = found
    if layer >= n_layers:
        raise HookError(
            f"place {place!r} does not exist in {model}: it has {n_layers} layers, so the last is "
            f"'{kind}.{n_layers - 1}'"
        )
    if kind == "mlp_gate" and not gated:
        raise HookError(f"place {place!r} does not exist in {model}: its MLPs have no gate")
    if write and kind in _READ_ALONE:
        raise HookError(
            f"place {place!r} of {model} can be read alone: write at 'resid_post.{layer}', at what "
            f"attention and MLP add, 'attn_out.{layer}' and 'mlp_out.{layer}', or at the neurons, "
            f"'mlp_post.{layer}'"
        )
    return place


def hook_name_of(kind: str, layer: int, *, gated: bool, parallel: bool) -> str:
    """The TransformerLens hook of a place inside a block, on either backend."""
    if kind == "resid_mid" and parallel:
        kind = "resid_pre"
    if kind in STREAMS:
        return f"blocks.{layer}.hook_{kind}"
    if kind in HEADS:
        return f"blocks.{layer}.attn.hook_z"
    # In a gated MLP `hook_pre` is what the activation function reads: the gate.
    names = {
        "mlp_pre": "hook_pre_linear" if gated else "hook_pre",
        "mlp_gate": "hook_pre",
        "mlp_post": "hook_post",
    }
    return f"blocks.{layer}.mlp.{names[kind]}"
