# %% [markdown]
# # Is the picture the same across models?
#
# **Shown.** This run beside others (`stress.runs`): cosine to v*, σ₂/σ₁ and the share of the KL
# that v* recovers, each with its control, and every verdict of every ledger.
#
# **Claim.** Row 33 (the verdicts are the same across sizes and architectures).
#
# **Null.** The agreement of verdicts that are permuted between rows.
#
# `python analyses/stress_models.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.plots.stress_models import stress_models

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("stress_models")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table, verdicts = run.table("stress_models"), run.table("stress_model_verdicts")
show(stress_models(table, verdicts), "stress_models", run / "figures")

# %% [markdown]
# Verdict of each row in each run.

# %%
numbers = verdicts.pivot(index="id", columns="run", values="verdict")
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's row on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id")
ledger = ledger.loc[ledger.index.isin([33]), ["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
