# %% [markdown]
# # Figure 1c: states before and after, with the mean shift added and taken away
#
# **Shown.** h at the last prompt token: base, policy, base + v* (interpolated) and policy − v*
# (inverted), in one basis of principal components fitted on the base alone.
#
# **Claim.** Row 13 in pictures: subtracting v* brings the policy back to the base. A cloud moved by
# its own mean always lands on the other cloud's mean; whether *behaviour* is restored is what
# `kl_recovery.py` measures, and its row is shown below.
#
# **Null.** A constant bias on the logits, estimated on other prompts.
#
# `python analyses/figure_1c_clouds.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import clouds, show
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("figure_1c_clouds")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
states = run.table("clouds")
show(clouds(states), "figure_1c_clouds", run / "figures")

# %% [markdown]
# Centre of each cloud in the units of the residual stream.

# %%
axes = ["pc1", "pc2", "pc3"]
numbers = states.groupby("state", sort=False)[axes].mean()
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[13]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
