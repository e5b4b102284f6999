# %% [markdown]
# # Where in depth the change sits
#
# **Shown.** The relative length ‖δ‖/‖h‖ of the shifts by layer, and beside it what matters: the
# share of KL(policy‖base) recovered when the policy's residual stream is patched into the base at
# one layer and the base's own layers run on from there.
#
# **Claim.** Row 10 (the change sits in the last layers, 22–30 of 32).
#
# **Nulls.** A random shift of the policy's length at the same layer; every layer writing an equal
# part of the effect.
#
# `python analyses/localisation.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import localisation, show
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("localisation")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
shifts, patching = run.table("shifts"), run.table("patching")
show(localisation(shifts, patching), "localisation", run / "figures")

# %% [markdown]
# Recovered share by patched layer at the last prompt token, and the length of the shift there.

# %%
rows = patching.query("position_kind == 'last_prompt'")
numbers = rows.pivot_table(index="site", columns="source", values="recovered", sort=False)
norms = shifts.query("position_kind == 'last_prompt'").set_index("site")["relative_norm"]
numbers = numbers.join(norms)
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[10]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
