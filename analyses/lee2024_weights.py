# %% [markdown]
# # How little do the weights move?
#
# **Shown.** 1 − cosine of every tensor before and after, and the relative difference of its norms,
# against the relative size of its change.
#
# **Claim.** Row 24 (cosines above .99, norms that differ by less than 1e-5 on average).
#
# **Null.** A random change of equal norm. In high dimension a cosine near 1 is cheap: it is 1 −
# r²/2 for any change of relative size r that knows nothing of the weights. What such a change does
# to behaviour is on the figure of the interventions.
#
# `python analyses/lee2024_weights.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_weights
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_weights")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
weights = run.table("toxicity_weights")
show(toxicity_weights(weights), "toxicity_weights", run / "figures")

# %% [markdown]
# By kind of tensor: the largest 1 − cosine beside that of a random change, the mean and the largest
# difference of norms, and the largest relative change.

# %%
turned = weights.assign(turned=1 - weights["cosine"], turned_random=1 - weights["cosine_random"])
numbers = turned.groupby("kind").agg(
    tensors=("size", "size"),
    values=("size", "sum"),
    trained=("trained", "sum"),
    turned=("turned", "max"),
    turned_random=("turned_random", "max"),
    mean_norm_difference=("norm_difference", "mean"),
    norm_difference=("norm_difference", "max"),
    relative_change=("relative_change", "max"),
)
logger.info("%s", numbers.to_string(float_format="%.3g"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[24]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
