# %% [markdown]
# # What follows from what the policy's components write
#
# **Shown.** The base runs with what the policy's attention or MLP adds to the stream in some
# layers, and its own later layers respond. Recovered: the share of KL(policy‖base), and of the
# change of the margin of chosen over rejected. One component alone; all from the last layer
# downwards, which says how many top layers hold 90 % of the effect; all from the first upwards;
# and from the last downwards at some tokens only.
#
# **Claim.** Row 10 (the change sits in the last layers, 22–30 of 32).
#
# **Nulls.** A random change of the base's writes, as long as the policy's at every token.
#
# `python analyses/component_patching.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.attribution.holding import layers_holding
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.component_patching import component_patching
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("component_patching")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("component_patching")
show(component_patching(table), "component_patching", run / "figures")

# %% [markdown]
# One component alone: a change in the first layer is passed on by all later ones, so that the share
# it recovers can be far larger than the share of v* that it writes itself.

# %%
single = table[(table["group"] == "component") & (table["effect"] == "kl")]
numbers = single.pivot_table(
    index="layer", columns=["position_kind", "component"], values="recovered", sort=False
)
logger.info("%s", numbers.round(3).to_string())
numbers

# %% [markdown]
# The smallest number of top layers that recovers 90 %, and the smallest whose interval does.

# %%
rows = []
measured = table[["effect", "position_kind"]].drop_duplicates()
for effect, kind in measured.itertuples(index=False):
    top = layers_holding(table, position_kind=kind, effect=effect)
    certain = layers_holding(table, position_kind=kind, effect=effect, bound="low")
    rows.append({"effect": effect, "position_kind": kind, "layers": top, "certain": certain})
holding = pd.DataFrame(rows)
logger.info("%s", holding.to_string(index=False))
holding
