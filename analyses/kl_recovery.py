# %% [markdown]
# # How much of the policy does one vector carry?
#
# **Shown.** The share of KL(policy‖base) that base + λv removes, and of KL(base‖policy) that
# policy − λv removes, over λ; and what the best k directions remove when each prompt keeps its own
# shift. Vectors are estimated on one half of the prompts and judged on the other.
#
# **Claim.** Row 13 (subtracting v* at λ = 1 restores more than 90 %).
#
# **Nulls.** Random and permuted vectors of equal norm. At h any vector is a constant bias on the
# logits, so there the control is the best such bias; before the last block it is informative.
#
# `python analyses/kl_recovery.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import kl_recovery, rank_recovery, show
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("kl_recovery")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
recovery = run.table("kl_recovery")
show(kl_recovery(recovery), "kl_recovery", run / "figures")

# %%
show(rank_recovery(run.table("rank_recovery")), "rank_recovery", run / "figures")

# %% [markdown]
# Recovered share at λ = 1.

# %%
at_one = recovery.query("coefficient == 1")
numbers = at_one.pivot_table(
    index=["direction", "site", "vector"], columns="position_kind", values="recovered", sort=False
)
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[13]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
