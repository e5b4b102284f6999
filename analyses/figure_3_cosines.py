# %% [markdown]
# # Figure 3: how parallel the shifts are
#
# **Shown.** Cosines of each prompt's shift with v*, over the published band [0.92, 0.96], with the
# nulls behind them. The cosine is leave-one-out: a shift inside its own mean would give about 1/√N
# from pure noise.
#
# **Claim.** Row 6 (cosines of 0.92 to 0.96).
#
# **Nulls.** Random signs; a base with random weight changes of equal size; pairs of shifts with
# their mean taken away, which shows what is left besides the common offset.
#
# `python analyses/figure_3_cosines.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import cosine_histogram, show
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("figure_3_cosines")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
cosines, nulls = run.table("cosines"), run.table("cosine_nulls")
show(cosine_histogram(cosines, nulls), "figure_3_cosines", run / "figures")

# %% [markdown]
# Mean and standard deviation at h, measured and under each null.

# %%
measured = cosines.assign(null="(measured)", cos=cosines["cos_loo"])
both = pd.concat([measured, nulls]).query("site == 'h'")
numbers = both.groupby(["position_kind", "null"], sort=False)["cos"].agg(["mean", "std"])
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[6]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
