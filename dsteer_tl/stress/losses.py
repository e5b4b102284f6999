"""The family of preference losses on the same pairs."""

from __future__ import annotations

import pandas as pd

from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.variants import VariantBench


def losses_table(inputs: StressInputs) -> pd.DataFrame:
    """The table ``stress_losses``: one policy a loss, all else as in the run.

    β, learning rate, pairs and updates are the run's, and nothing is tuned to a loss: β of one loss
    is not β of another, as in IPO, where 1/(2β) is the margin per token that is aimed at. The
    conditions therefore differ in how far they move, too, which ``kl`` and ``v_norm`` say. The
    control is a random change of the weights as large as the run's.

    Raises:
        ConfigurationError: The policy was given, so that there is no recipe; there are no pairs; or
            TRL does not know a loss.
    """
    bench = VariantBench(inputs, "losses")
    reference = bench.measure_reference()
    own = bench.recipe().loss_type
    names = [name for name in dict.fromkeys(inputs.settings.losses) if name != own]
    others = [bench.variant(f"loss_{name}", loss_type=name) for name in names]
    return bench.summary([reference, *bench.measure(*others), *bench.measure_random_weights()])
