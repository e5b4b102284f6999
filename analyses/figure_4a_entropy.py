# %% [markdown]
# # Figure 4a: spectral entropy by layer
#
# **Shown.** Entropy in nats of the normalised squared singular values of the states of base and
# policy at every layer, with 95 % intervals over prompts, and of ΔH itself.
#
# **Claim.** Row 9 (entropy falls in the upper layers). The paper does not say whether it means H or
# ΔH, σ or σ²; here it is H, σ², and the change is bootstrapped over the same prompts in both.
#
# **Null.** A base with random weight changes of equal size.
#
# `python analyses/figure_4a_entropy.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import entropy, show
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("figure_4a_entropy")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
entropies = run.table("entropy")
show(entropy(entropies), "figure_4a_entropy", run / "figures")

# %% [markdown]
# Change of entropy by layer at the last prompt token, and the same for random weight changes where
# the run has them.

# %%
rows = entropies.query("position_kind == 'last_prompt' and matrix.str.endswith('_minus_base')")
numbers = rows.drop(columns="position_kind").set_index(["matrix", "site"])
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[9]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
