# %% [markdown]
# # The family of preference losses
#
# **Shown.** Direction, rank and recovery for DPO's sigmoid loss and its relatives on the same pairs, with
# the same β, learning rate and number of updates.
#
# **Question.** Is one shared direction a property of DPO, or of preference training?
#
# **Nulls.** Random weight changes as large as the run's.
#
# `python analyses/stress_losses.py RUN` (the table comes from `dsteer stress RUN`, test `losses`)

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
logger = logging.getLogger("stress_losses")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("stress_losses")
show(stress_variants(table), "stress_losses", run / "figures")

# %% [markdown]
# Every statistic at h and the last prompt token. β of one loss is not β of another: compare `kl`
# and `v_norm`, too.

# %%
rows = table.query("site == 'h' and position_kind == 'last_prompt'")
rows = rows[~rows["statistic"].str.contains(":")]
numbers = rows.pivot_table(
    index=["data", "condition"], columns="statistic", values="value", sort=False
)
logger.info("%s", numbers.to_string())
numbers
