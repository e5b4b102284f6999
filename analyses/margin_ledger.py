# %% [markdown]
# # What is the change of the margin made of?
#
# **Shown.** Δmargin, the policy's log-probability of the chosen response less that of the rejected
# one, less the same of the base, split exactly into four terms: movement of the last `resid_post`
# along v*, movement off it, the scale of the final norm, and the readout. The split is the Shapley
# value over the 16 combinations of the four changes, so the terms sum to the change and depend on no
# order. v* is estimated on the other half of the prompts. Below, the terms along the response.
#
# **Question.** If alignment were a steering vector, all of the margin would be along it.
#
# **Nulls.** A random direction in place of v* in the split, and a movement of equal length along a
# random direction.
#
# `python analyses/margin_ledger.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.margin_ledger import margin_ledger
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("margin_ledger")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
terms, tokens = run.table("margin_terms"), run.table("margin_ledger")
show(margin_ledger(terms, tokens), "margin_ledger", run / "figures")

# %% [markdown]
# Means over pairs in nats, with the share of the whole and what a random direction has.

# %%
numbers = terms.set_index(["scope", "term"])
numbers = numbers[["value", "low", "high", "share", "null", "null_equal", "n"]]
logger.info("%s", numbers.to_string(float_format="%.3f"))
numbers

# %% [markdown]
# How exact the tokens is: the largest difference of a token's terms from the change that the models
# themselves report, in nats, beside the largest change.

# %%
exactness = tokens[["error", "total"]].abs().max()
logger.info("%s", exactness.to_string(float_format="%.3g"))
exactness

# %% [markdown]
# Which side the margin comes from: mean Δ ln p of a response.

# %%
sides = tokens.groupby(["side", "pair"])[["along", "off", "scale", "readout", "total"]].sum()
sides = sides.groupby("side").mean()
logger.info("%s", sides.to_string(float_format="%.3f"))
sides
