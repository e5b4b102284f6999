"""Names of the places in a model where a residual stream can be read or steered.

A site is a string: ``"resid_post.<layer>"`` for the residual stream after a block, or ``"h"`` for
the final hidden state, the vector that ``W_U`` multiplies: after the final norm *and* its gain.
HuggingFace's ``hidden_states[-1]`` is already ``h``; it is not the last block's output.
"""

from __future__ import annotations

import re

from dsteer_tl.errors import HookError

FINAL = "h"
_RESID_POST = re.compile(r"resid_post\.(0|[1-9][0-9]*)")


def resid_post(layer: int) -> str:
    """The site after block ``layer`` (counted from 0)."""
    return f"resid_post.{layer}"


def all_sites(n_layers: int) -> tuple[str, ...]:
    """Every ``resid_post`` in order of depth, then ``h``."""
    return (*(resid_post(layer) for layer in range(n_layers)), FINAL)


def layer_of(site: str) -> int | None:
    """The layer of a ``resid_post`` site, or None for ``h``.

    Raises:
        HookError: The string is no site.
    """
    if site == FINAL:
        return None
    match = _RESID_POST.fullmatch(site)
    if match is None:
        raise HookError(
            f"unknown site {site!r}: expected 'h' or 'resid_post.<layer>', as in 'resid_post.3'"
        )
    return int(match.group(1))


def check_site(site: str, n_layers: int, model: str) -> str:
    """Return ``site`` if a model of ``n_layers`` has it.

    Raises:
        HookError: The site is malformed or its layer does not exist.
    """
    layer = layer_of(site)
    if layer is not None and layer >= n_layers:
        raise HookError(
            f"site {site!r} does not exist in {model}: it has {n_layers} layers, "
            f"so the last is 'resid_post.{n_layers - 1}'"
        )
    return site


def depth_order(site: str) -> int:
    """A sort key that puts sites in the order in which the forward pass meets them."""
    layer = layer_of(site)
    return 10**9 if layer is None else layer
