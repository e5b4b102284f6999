# %% [markdown]
# # How much of the change do the attribute's neurons carry?
#
# **Shown.** The share of the policy's effect that is recovered when only some neurons of the base
# get the policy's activations, by two statistics: the move along the probe and KL(policy‖base). The
# total effect runs on through later layers, the direct one does not.
#
# **Claim.** Row 30 (toxic neurons explain only 2.5–24 % of what DPO does; Yang et al. 2024).
#
# **Null.** Random groups of equal size, and all neurons at once, which are the most that neurons
# can carry.
#
# `python analyses/lee2024_patching.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_patching
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_patching")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("toxicity_patching")
show(toxicity_patching(table), "toxicity_patching", run / "figures")

# %% [markdown]
# Recovered shares with their 95 % intervals.

# %%
numbers = table.set_index(["statistic", "effect", "group", "neurons"])[["share", "low", "high"]]
logger.info("%s", numbers.to_string(float_format="%.3f"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[30]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
