# %% [markdown]
# # Who writes v*
#
# **Shown.** The last residual stream before the final norm is a sum of what the embedding, every
# attention and every MLP add to it. So the shift along v* splits without remainder into what each
# of them writes differently in base and policy, and an attention further into its heads.
#
# **Not shown.** What made a component write differently. A change in the first layer that later
# layers pass on counts where it is written last; `component_patching.py` asks for causes.
#
# **Nulls.** What the same components write along 20 random directions, as a share of the same
# shift. v* is estimated on the other half of the prompts.
#
# `python analyses/contributions.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.contributions import contributions
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("contributions")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("contributions")
show(contributions(table), "contributions", run / "figures")

# %% [markdown]
# Shares summed over layers: embedding, attention and MLPs add up to 1 at every position kind.

# %%
blocks = table[table["kind"].isin(["embed", "attention", "mlp"])]
numbers = blocks.pivot_table(
    index="position_kind", columns="kind", values="share", aggfunc="sum", sort=False
)
logger.info("%s", numbers.round(3).to_string())
numbers

# %% [markdown]
# The heads that write most, with the range of random directions.

# %%
columns = ["component", "position_kind", "share", "low", "high", "null_low", "null_high"]
heads = table[table["kind"] == "head"][columns]
most = heads.reindex(heads["share"].abs().sort_values(ascending=False).index).head(9)
logger.info("%s", most.round(3).to_string(index=False))
most
