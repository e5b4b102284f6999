# %% [markdown]
# # Frozen against trainable embeddings
#
# **Shown.** Mean cosine with v*, σ2/σ1, effective rank, the share of KL(policy‖base) that v* recovers,
# the cosine between the vectors and the accuracy on held-out pairs, for the run's recipe with both
# embeddings frozen and with both trained, all else equal.
#
# **Question.** Row 31. D-STEER assumes frozen embeddings, as base and policy then share one W_U.
#
# **Nulls.** Random weight changes, each tensor's as large as the policy's; the frozen recipe with another
# seed says how much two trainings of one recipe differ.
#
# `python analyses/stress_embeddings.py RUN` (the table comes from `dsteer stress RUN`, test `embeddings`)

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.plots.stress_variants import stress_variants

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("stress_embeddings")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("stress_embeddings")
show(stress_variants(table), "stress_embeddings", run / "figures")

# %% [markdown]
# Differences from the frozen recipe at h and the last prompt token, with paired intervals, and
# what the change of the readout alone makes of the KL.

# %%
rows = table.query("site == 'h' and position_kind == 'last_prompt'")
kept = rows["statistic"].str.startswith("difference:") | (rows["statistic"] == "readout_shift")
numbers = rows[kept].set_index(["condition", "statistic"])[["value", "low", "high"]]
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's row on this question.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[31]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
