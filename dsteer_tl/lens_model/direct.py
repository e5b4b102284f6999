"""Blocks that run as transformers wrote them, while only the residual stream is looked at.

A `TransformerBridge` puts a wrapper around every part of a block, so that each can be hooked: it
computes attention scores and norms step by step in Python, and calls a hook point around every
projection. Where nothing inside the blocks is hooked that is work for nobody, and it hides the
fused attention of transformers. Inside `direct_blocks` each wrapper below a block hands its
arguments to the module it wraps. The block's own hooks, ``hook_resid_pre`` and
``hook_resid_post``, stay: the residual stream is read and written as ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from transformer_lens.hook_points import HookPoint

#: The hook points of a block that stay: what enters it and what leaves it.
_STREAM_HOOKS = ("hook_in", "hook_out")


class DirectBlocks:
    """The wrappers inside the blocks of one bridged model.

    Args:
        blocks: The bridged blocks.
    """

    def __init__(self, blocks: Sequence[torch.nn.Module]) -> None:
        wrapped = [
            (part, part.original_component)
            for block in blocks
            for part in block.modules()
            if part is not block and hasattr(part, "original_component")
        ]
        self._wrapped = [(part, original) for part, original in wrapped if original is not None]
        own = {id(getattr(block, name, None)) for block in blocks for name in _STREAM_HOOKS}
        self._points = [
            point
            for block in blocks
            for point in block.modules()
            if isinstance(point, HookPoint) and id(point) not in own
        ]

    @property
    def hooked(self) -> bool:
        """Whether anyone looks inside a block, by this library or past it."""
        return any(point.fwd_hooks or point.bwd_hooks for point in self._points)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside the block, wrappers are passed by unless something in the blocks is hooked."""
        if self.hooked:
            yield
            return
        try:
            for part, original in self._wrapped:
                # Past the bridge's own __setattr__, which would write into the wrapped module.
                part.__dict__["forward"] = original
            yield
        finally:
            for part, _ in self._wrapped:
                part.__dict__.pop("forward", None)
