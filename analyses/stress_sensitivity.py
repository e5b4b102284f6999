# %% [markdown]
# # Sensitivity to β and to the number of pairs
#
# **Shown.** Direction, rank and recovery under other values of β and on nested shares of the training
# pairs, with the number of updates unchanged.
#
# **Question.** How far do the run's numbers depend on its settings?
#
# **Nulls.** Random weight changes as large as the run's.
#
# `python analyses/stress_sensitivity.py RUN` (the table comes from `dsteer stress RUN`, test `sensitivity`)

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.plots.stress_variants import stress_variants

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("stress_sensitivity")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("stress_sensitivity")
show(stress_variants(table), "stress_sensitivity", run / "figures")

# %% [markdown]
# Every statistic at h and the last prompt token.

# %%
rows = table.query("site == 'h' and position_kind == 'last_prompt'")
rows = rows[~rows["statistic"].str.contains(":")]
numbers = rows.pivot_table(
    index=["data", "condition"], columns="statistic", values="value", sort=False
)
logger.info("%s", numbers.to_string())
numbers
