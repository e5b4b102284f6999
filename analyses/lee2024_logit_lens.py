# %% [markdown]
# # Where in depth are the attribute's tokens put down?
#
# **Shown.** Summed probability of the attribute's tokens, read from each place in depth through the
# final norm and unembedding, and the paired change of its logarithm.
#
# **Claim.** Row 29 (the peak at the last layers is suppressed after DPO).
#
# **Null.** 20 groups of neutral tokens that the base finds as likely, drawn on one half of the prompts
# and read on the other: what was chosen for being likely regresses to the mean whatever is done to
# the model.
#
# `python analyses/lee2024_logit_lens.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_lens
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_logit_lens")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
lens = run.table("toxicity_lens")
show(toxicity_lens(lens), "toxicity_lens", run / "figures")

# %% [markdown]
# Probabilities and the change of their logarithm at the resid_post of each layer.

# %%
rows = lens[lens["place"] == "resid_post"]
numbers = rows.pivot(index="layer", columns="group", values=["base", "policy", "log_ratio"])
logger.info("%s", numbers.to_string(float_format="%.3g"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[29]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
