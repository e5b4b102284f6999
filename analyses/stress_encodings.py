# %% [markdown]
# # Do encodings bypass the offset?
#
# **Shown.** Held-out prompts in ROT13, Base64, leetspeak, with spaced letters and under a letter
# cipher: how much of the projection on v* is left at h, and how much of the policy's gain in
# score.
#
# **Claim.** Row 34 (encoding the prompt bypasses the offset).
#
# **Nulls.** As many random tokens as the encoded prompt has; other plain prompts, judged by the
# vector of the measured ones.
#
# `python analyses/stress_encodings.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.plots.stress_encodings import stress_encodings

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("stress_encodings")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("stress_encodings")
show(stress_encodings(table), "stress_encodings", run / "figures")

# %% [markdown]
# What is left at h, with intervals over prompts.

# %%
numbers = table.query("site == 'h' and statistic == 'projection_ratio'")
numbers = numbers.set_index("condition")[["role", "value", "low", "high", "n"]]
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's row on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id")
ledger = ledger.loc[ledger.index.isin([34]), ["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
