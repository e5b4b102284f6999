# %% [markdown]
# # Are benign prompts left alone and harmful ones deflected?
#
# **Shown.** Relative length ‖δ‖/‖h‖ of the shifts on benign and on harmful prompts, its ratio,
# the share of ‖δ‖² outside the subspace of benign activations, and how far the leading
# components of both sets of shifts overlap.
#
# **Claim.** Row 36 (benign inputs unchanged, unsafe ones deflected into a null space; after Jain
# et al. 2024).
#
# **Nulls.** Random tokens as many as the harmful prompts have, random weight changes as large as
# the policy's, two halves of the benign prompts, random subspaces.
#
# `python analyses/stress_prompts.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.plots.stress_prompts import stress_prompts

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("stress_prompts")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("stress_prompts")
show(stress_prompts(table), "stress_prompts", run / "figures")

# %% [markdown]
# Every contrast between sets of prompts at h.

# %%
numbers = table.query("site == 'h' and condition.str.contains('_to_|halves')")
numbers = numbers.set_index(["statistic", "condition"]).sort_index()[["value", "low", "high", "n"]]
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's row on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id")
ledger = ledger.loc[ledger.index.isin([36]), ["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
