# %% [markdown]
# # Figure 4b: the rank of the update
#
# **Shown.** The five largest singular values of H_base, H_policy and ΔH by layer; σ2/σ1 by layer;
# and the share of each shift's squared length on every u_j.
#
# **Claims.** Row 7 (σ2/σ1 < 0.1), row 8 (u1 ≈ v*), row 18 (mass on u1, none on u_j for j ≥ 3).
#
# **Nulls.** Gaussian rows with the same mean and total variance: where the mean dominates, it has a
# small σ2/σ1 and u1 ≈ v* too. The centred spectrum shows what is left without the mean.
#
# `python analyses/figure_4b_singular_values.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import mass, show, sigma_ratio, singular_values
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("figure_4b_singular_values")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
show(singular_values(run.table("spectra")), "figure_4b_singular_values", run / "figures")

# %%
shifts, nulls = run.table("shifts"), run.table("nulls")
show(sigma_ratio(shifts, nulls), "sigma_ratio", run / "figures")

# %%
show(mass(run.table("mass")), "mass", run / "figures")

# %% [markdown]
# Rank statistics at h, and σ2/σ1 of the nulls.

# %%
columns = ["n", "sigma_ratio", "sigma_ratio_centred", "u1_v_cos", "effective_rank"]
numbers = shifts.query("site == 'h'").set_index("position_kind")[columns]
null_ratios = nulls.query("site == 'h' and statistic == 'sigma_ratio'")
numbers = numbers.join(null_ratios.pivot(index="position_kind", columns="null", values="value"))
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[7, 8, 18]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
