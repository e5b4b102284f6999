# %% [markdown]
# # Which tokens the steering vector promotes
#
# **Shown.** The tokens whose logits rise and fall most when v* is added at h, in logits.
#
# **Claim.** Row 5 (v* is the preference direction e_w − e_l): then these tokens would be those that
# preferred responses have and rejected ones lack.
#
# **Null.** A random vector of equal norm promotes and suppresses tokens just as surely; what counts
# is by how much, and whether they mean anything. For the cosine of row 5: re-paired tokens.
#
# `python analyses/tokens.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, tokens
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("tokens")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("tokens")
show(tokens(table), "tokens", run / "figures")

# %% [markdown]
# The six strongest tokens of each kind.

# %%
numbers = table.query("rank <= 6").pivot(
    index="rank", columns=["vector", "effect"], values=["token", "value"]
)
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[5]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
