# %% [markdown]
# # Does tuning part chosen from rejected responses?
#
# **Shown.** The Calinski–Harabasz index (CHI) of two classes, the mean states of chosen and of
# rejected responses of held-out pairs: in the base, in the policy, and the ratio of the two. Beside
# it the same without the linear effect of the responses' length.
#
# **Claim.** Row 19 (AQI: the policy separates safe from unsafe better). Here "safe" is what the
# preferences prefer.
#
# **Nulls.** Chosen and rejected exchanged at random within prompts; the base with random weight
# changes as large as the policy's. AQI is published as two indices; with classes of equal size the
# Xie–Beni index is (n − 2)/4 over CHI, so that there is one.
#
# `python analyses/separation.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.separation import separation
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("separation")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("separation")
show(separation(table), "separation", run / "figures")

# %% [markdown]
# The change by site, with what exchanged labels give.

# %%
numbers = table[table["model"].str.endswith("change")].set_index(["site", "model", "index"])
numbers = numbers[["value", "low", "high", "null_mean", "null_high", "p"]]
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# Two indices or one: the largest relative error of CHI · XB = (n − 2)/4.

# %%
logger.info("CHI · XB = (n − 2)/4 to %.1e", table["identity_error"].max())

# %% [markdown]
# The ledger's row on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[19]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
