# %% [markdown]
# # How the steering vector forms during training
#
# **Shown.** On a fixed set of held-out probes, read every few optimiser steps: the cosine of the
# shifts so far with the final v*, σ2/σ1, the length of the mean shift, and the log-probabilities of
# chosen and rejected responses; and the trainer's own curves. Only runs that trained their policy
# have these tables.
#
# **Claims.** None is published about formation; rows 6 and 7 are where it ends.
#
# **Nulls.** `cos_to_own_mean` beside `cos_to_final`: shifts that are parallel to each other, but not
# yet to the final v*, differ in these two. The nulls of rows 6 and 7 hold at the last step.
#
# `python analyses/formation.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import formation, show, training_curve
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("formation")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
steps = run.table("formation")
show(formation(steps), "formation", run / "figures")

# %%
show(training_curve(run.table("training")), "training_curve", run / "figures")

# %% [markdown]
# First and last records.

# %%
columns = ["step", "cos_to_final", "cos_to_own_mean", "sigma_ratio", "v_norm", "margin"]
numbers = pd.concat([steps.head(3), steps.tail(1)]).drop_duplicates("step")[columns]
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[6, 7]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
