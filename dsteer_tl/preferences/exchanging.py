"""Pairs with chosen and rejected exchanged: what is left of a set when its preference is broken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dsteer_tl.preferences.preference_set import PreferencePair, PreferenceSet


def exchanged(pair: PreferencePair) -> PreferencePair:
    """The pair with its two sides exchanged."""
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def exchanged_at_random(preferences: PreferenceSet, seed: int) -> PreferenceSet:
    """The pairs in their order, half of them (drawn by the seed) with their sides exchanged."""
    count = len(preferences)
    exchange = np.random.default_rng(seed).permutation(count) < count / 2
    pairs = tuple(
        exchanged(pair) if swap else pair for pair, swap in zip(preferences, exchange, strict=True)
    )
    return replace(preferences, pairs=pairs, name=f"{preferences.name}, shuffled")
