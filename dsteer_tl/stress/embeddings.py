"""Frozen against trainable embeddings (row 31 of the ledger)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dsteer_tl.stress.columns import CONTROL, MEASURED
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.shift_summary import added_rows
from dsteer_tl.stress.variants import OTHER_SEED, VariantBench

FROZEN, TRAINABLE = "frozen", "trainable"
#: How far training moved W_U: ‖ΔW_U‖ / ‖W_U‖ (Frobenius).
UNEMBEDDING_CHANGE = "unembedding_change"


def embeddings_table(inputs: StressInputs) -> pd.DataFrame:
    """The table ``stress_embeddings``: one recipe with both embeddings frozen, and with both free.

    At h, shifts and divergences of both are in the base's W_U; ``readout_shift`` is the share of
    KL(policy‖base) that stays when the policy's own state is put in the base's place, as it belongs
    to what reads the state (at the last ``resid_post`` that is the final norm, too, which both
    train), and ``unembedding_change`` is ‖ΔW_U‖/‖W_U‖. Controls: the frozen recipe with another
    seed, which says how much two trainings of one recipe differ, and random weight changes, each
    tensor's as large as the frozen policy's.

    Raises:
        ConfigurationError: The policy was given, so that there is no recipe, or there are no pairs.
    """
    bench = VariantBench(inputs, "embeddings")
    both: dict[str, Any] = {"freeze_embeddings": True, "freeze_unembedding": True}
    neither: dict[str, Any] = {"freeze_embeddings": False, "freeze_unembedding": False}
    frozen = bench.variant(FROZEN, **both)
    other_seed = bench.variant(OTHER_SEED, **both, seed=bench.other_seed().training.seed)
    reference = bench.measure_reference(frozen)
    captured = bench.capture(bench.variant(TRAINABLE, **neither))
    trainable = bench.rows(captured)
    before, after = (m.W_U.cpu().double() for m in (captured.pair.base, captured.pair.policy))
    moved = float((after - before).norm() / before.norm())
    del captured, before, after
    table = bench.summary(
        [
            reference,
            trainable,
            *bench.measure(other_seed, role=CONTROL),
            *bench.measure_random_weights(frozen),
        ]
    )
    facts = {UNEMBEDDING_CHANGE: (moved, len(bench.measured))}
    return pd.concat([table, added_rows(bench.test, TRAINABLE, MEASURED, facts)], ignore_index=True)
