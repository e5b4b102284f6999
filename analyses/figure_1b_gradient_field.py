# %% [markdown]
# # Figure 1b: the direction in which DPO pushes h
#
# **Shown.** Exact negative gradients of the DPO loss on a lattice of states around h, in the first
# three principal components of the base's states, with the −v axis. Left the divergence position,
# where every arrow is parallel by algebra whatever was learnt; right the first position after it.
#
# **Claim.** Row 2 (∇_h L ∝ −v for any prompt).
#
# **Null.** The cosine with another pair's −v.
#
# `python analyses/figure_1b_gradient_field.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import gradient_field, show
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("figure_1b_gradient_field")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
field, gradients = run.table("gradient_field"), run.table("gradients")
show(gradient_field(field, gradients), "figure_1b_gradient_field", run / "figures")

# %% [markdown]
# Cosine of the gradient with −v, of the pair itself and of another pair. Before the final norm
# (`resid_post`) its Jacobian enters, so that even the divergence position is no identity.

# %%
columns = ["cos", "cos_shuffled"]
numbers = gradients.groupby(["site", "position_kind"], sort=False)[columns].agg(["mean", "std"])
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[2]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
