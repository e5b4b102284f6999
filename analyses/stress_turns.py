# %% [markdown]
# # Does the projection on v* drift over the turns of a dialogue?
#
# **Shown.** The same multi-turn dialogues at the end of each human turn: projection on v* and
# cosine with it at h, KL(policy‖base), and the policy's gain in score.
#
# **Claim.** Row 35 (the projection on v* drifts over turns).
#
# **Nulls.** Later turns taken from other dialogues (later, but no conversation), and the first
# turn behind random tokens (longer, but not later).
#
# `python analyses/stress_turns.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.plots.stress_turns import stress_turns

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("stress_turns")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("stress_turns")
show(stress_turns(table), "stress_turns", run / "figures")

# %% [markdown]
# Change per turn at h, over the projection at the first turn.

# %%
numbers = table.query("site == 'h' and statistic.str.startswith('projection_slope')")
numbers = numbers.set_index(["condition", "statistic"])[["role", "value", "low", "high", "n"]]
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's row on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id")
ledger = ledger.loc[ledger.index.isin([35]), ["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
