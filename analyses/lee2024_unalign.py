# %% [markdown]
# # Do longer key vectors undo the tuning?
#
# **Shown.** Attribute score and perplexity while the key vectors of a few of the attribute's
# neurons are scaled, in the policy and, dashed, in the base. In gated MLPs there are two sets of
# keys.
#
# **Claim.** Row 28 (seven key vectors × 10 undo DPO: .458 at perplexity 23.30; a later study finds
# a perplexity of 37.33).
#
# **Nulls.** As many random neurons and as many of the most active ones; the same neurons in the
# base: a score that rises there as well is no alignment undone.
#
# `python analyses/lee2024_unalign.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_unalign
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_unalign")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("toxicity_unalign")
show(toxicity_unalign(table), "toxicity_unalign", run / "figures")

# %% [markdown]
# At the largest scale, beside the unscaled models.

# %%
ends = table[table["scale"].isin([1.0, table["scale"].max()])]
numbers = ends.pivot(
    index=["host", "group", "keys"], columns="scale", values=["attribute_score", "perplexity"]
)
logger.info("%s", numbers.to_string(float_format="%.3f"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[28]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
