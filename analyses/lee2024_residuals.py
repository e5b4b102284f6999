# %% [markdown]
# # Do residual streams shift along one axis?
#
# **Shown.** Residuals of base and policy at the last prompt token along the mean difference and the
# first principal component, both fitted on the other half of the prompts; thin lines join the two
# models' points of a prompt.
#
# **Claim.** Row 26 (a consistent linear offset; Fig. 4).
#
# **Null.** The same with base and policy swapped for random prompts before anything is fitted. On
# the prompts it is fitted on, the mean difference parts any two clouds: that picture shows nothing.
#
# `python analyses/lee2024_residuals.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_residuals
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_residuals")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
residuals = run.table("toxicity_residuals")
show(toxicity_residuals(residuals), "toxicity_residuals", run / "figures")

# %% [markdown]
# Held-out mean of the policy minus that of the base along the axis, beside the length of the fitted
# difference, and the share of prompts that move along it.

# %%
sides = residuals.pivot_table(
    index=["place", "layer", "control", "axis_size", "prompt"], columns="model", values="axis"
)
moved = sides["policy"] - sides["base"]
groups = moved.groupby(level=["place", "layer", "control", "axis_size"])
numbers = pd.DataFrame(
    {"held_out": groups.mean(), "moving_along": (moved > 0).groupby(level=[0, 1, 2, 3]).mean()}
)
numbers = numbers.reset_index("axis_size")
logger.info("%s", numbers.to_string(float_format="%.3f"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[26]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
