# %% [markdown]
# # Planted, partly conflicting preferences
#
# **Shown.** The effective rank of the shifts against the number of planted preference axes, and what
# each policy learnt of each axis. Texts, prompts and the number of pairs are the same throughout;
# prompts are dealt to the axes at random.
#
# **Question.** Row 32: does the rank follow the number of preferences?
#
# **Nulls.** The most axes with half of the pairs exchanged at random: the rank that noise in the labels
# gives.
#
# `python analyses/stress_heterogeneous.py RUN` (the table comes from `dsteer stress RUN`, test `heterogeneous`)

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.plots.stress_axes import stress_axes

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("stress_heterogeneous")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("stress_heterogeneous")
show(stress_axes(table), "stress_heterogeneous", run / "figures")

# %% [markdown]
# How much the axes agree, and ranks at h.

# %%
kept = table["statistic"].str.contains("agreement|effective_rank|axis_cosine")
rows = table[kept & table["site"].isin(["h", "output"])]
numbers = rows.set_index(["condition", "position_kind", "statistic"])[["value", "low", "high"]]
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's row on this question.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[32]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
