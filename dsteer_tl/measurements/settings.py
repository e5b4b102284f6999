"""Settings shared by all measurements."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementConfiguration:
    """What is measured on a pair, and how finely.

    Attributes:
        position_kinds: Where residuals are read; empty for all that the data allow.
        response_limit: Response positions kept a pair, evenly spread.
        pairs: At most so many held-out pairs or prompts; 0 for all.
        token_budget: Padded tokens a forward pass.
        coefficients: The grid of λ for KL recovery.
        ranks: Ranks k of the subspace recovery.
        draws: Bootstrap draws.
        null_draws: Draws from each null distribution of a spectrum.
        gradient_pairs: Pairs whose gradients are computed.
        patching_pairs: Pairs whose layers are patched.
        random_weights: Capture also a base with random weight changes as large as the policy's.
        components: Components of the mass table.
        seed: Seed of every control and bootstrap.
    """

    position_kinds: tuple[str, ...] = ()
    response_limit: int = 16
    pairs: int = 0
    token_budget: int = 4096
    coefficients: tuple[float, ...] = (
        -1.0,
        -0.5,
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
        1.25,
        1.5,
        2.0,
    )
    ranks: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    draws: int = 400
    null_draws: int = 10
    gradient_pairs: int = 48
    patching_pairs: int = 64
    random_weights: bool = True
    components: int = 8
    seed: int = 0
