# %% [markdown]
# # Where the direction comes from
#
# **Shown.** The run's recipe beside supervised training on the chosen texts, another seed and, where
# the run names other data (`stress.transfer`), a policy of those.
#
# **Question.** Is the direction one of preferences, of their texts, of the seed or of the data?
#
# **Nulls.** Pairs exchanged at random, a random vector of the length of v*, random weight changes.
#
# `python analyses/stress_causes.py RUN` (the table comes from `dsteer stress RUN`, test `causes`)

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
logger = logging.getLogger("stress_causes")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("stress_causes")
show(stress_variants(table), "stress_causes", run / "figures")

# %% [markdown]
# Every statistic at h and the last prompt token. `recovered_of_reference` is the share of the
# first condition's KL that the vector of another one recovers at the same length.

# %%
rows = table.query("site == 'h' and position_kind == 'last_prompt'")
rows = rows[~rows["statistic"].str.contains(":")]
numbers = rows.pivot_table(
    index=["data", "condition"], columns="statistic", values="value", sort=False
)
logger.info("%s", numbers.to_string())
numbers
