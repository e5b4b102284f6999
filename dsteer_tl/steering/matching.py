"""Coefficients of a control that move the model as far as v* does, measured by KL.

Vectors of one norm need not move a model by one amount: a random direction may hardly touch the
logits. Matching by KL asks what a control does to behaviour once it moves the model as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dsteer_tl.pair import ModelPair
from dsteer_tl.steering.interventions import Direction, Intervention
from dsteer_tl.steering.scored import TokenSequence
from dsteer_tl.steering.teacher_forced import HOSTS, Setting, score_sequences

#: Multiples of ‖v*‖ at which a control's KL is measured, between which it is interpolated.
_GRID = tuple(float(value) for value in np.geomspace(0.125, 64.0, 19))


def match_by_kl(
    pair: ModelPair,
    target: Intervention,
    controls: Sequence[Intervention],
    coefficients: Sequence[float],
    sequences: Sequence[TokenSequence],
    direction: Direction,
    *,
    progress: bool = True,
) -> list[Setting]:
    """For each control and λ the scale s with KL(host‖host + s·u) = KL(host‖host + λv).

    The mean KL a token over the sequences is measured on a geometric grid of s and interpolated
    linearly in (log s, log KL). s has the sign of λ. Where the control never reaches the KL of v*,
    the largest s of the grid is used; its KL is in the table ``sweep`` as measured.

    Args:
        pair: Base and policy.
        target: The intervention whose KL is matched (v*).
        controls: What is re-scaled.
        coefficients: λ of the target.
        sequences: Where KL is measured.
        direction: Which model is steered.
        progress: Show a progress bar.

    Returns:
        One `Setting` a control, with ``matching="kl"``.
    """
    if not controls:
        return []
    host, senses = HOSTS[direction], (1.0, -1.0)
    settings = [Setting.by_norm(target, coefficients)] + [
        Setting.by_norm(control, [sense * value for value in _GRID])
        for control in controls
        for sense in senses
        if any(value * sense > 0 for value in coefficients)
    ]
    # The other model says nothing of how far this one moves.
    scored = score_sequences(
        pair, settings, sequences, direction, references=(host,), progress=progress
    )
    aims, *curves = (getattr(own, f"kl_{host}").sum(axis=1) / own.tokens.sum() for own in scored)
    remaining = iter(curves)
    found = []
    for control in controls:
        scales = np.zeros(len(coefficients))
        for sense in senses:
            asked = [index for index, value in enumerate(coefficients) if value * sense > 0]
            if not asked:
                continue
            curve = next(remaining)
            for index in asked:
                scales[index] = sense * scale_for(aims[index], _GRID, curve)
        found.append(
            Setting(
                intervention=control,
                coefficients=tuple(coefficients),
                scales=tuple(float(value) for value in scales),
                matching="kl",
            )
        )
    return found


def scale_for(aim: float, scales: Sequence[float], curve: Float[np.ndarray, " scale"]) -> float:
    """The smallest scale at which a curve of KL reaches `aim`, interpolated in logarithms."""
    if aim <= 0:
        return 0.0
    log_scale = np.log(np.asarray(scales, dtype=np.float64))
    log_kl = np.log(np.maximum(curve, np.finfo(np.float64).tiny))
    # KL grows with the scale but for rounding; a running maximum makes it monotone.
    rising = np.maximum.accumulate(log_kl)
    if np.log(aim) <= rising[0]:
        # Below the grid KL is quadratic in the scale.
        return float(np.exp(log_scale[0] + 0.5 * (np.log(aim) - rising[0])))
    return float(np.exp(np.interp(np.log(aim), rising, log_scale)))
