# %% [markdown]
# # Figure 1a: the preference logit is linear in h
#
# **Shown.** One held-out pair in three dimensions: the final hidden state h of base and policy, the
# token vectors e_w and e_l, the preference direction v = e_w − e_l, and the projection of h on it.
# Beside it ⟨h, v⟩ over all held-out pairs, and then layer by layer through the final norm.
#
# **Claims.** Row 1 (z_w − z_l = ⟨h, v⟩ exactly), row 3 (one v for all prompts), row 4 (⟨h, v⟩ rises
# on every input).
#
# **Nulls.** A random v of equal norm; the same identity at later positions, where the two contexts
# differ; v of random token pairs.
#
# `python analyses/figure_1a_logit_geometry.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import logit_geometry, logit_lens_by_layer, show
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("figure_1a_logit_geometry")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
geometry, projections = run.table("geometry"), run.table("projections")
show(logit_geometry(geometry, projections), "figure_1a_logit_geometry", run / "figures")

# %%
show(logit_lens_by_layer(run.table("logit_lens")), "figure_1a_logit_lens", run / "figures")

# %% [markdown]
# ⟨h, v⟩ in logits: mean over pairs, and the share of pairs on which it rises.

# %%
change = projections.assign(rises=projections["policy"] > projections["base"])
numbers = change.groupby("vector")[["base", "policy", "rises"]].mean()
logger.info("%s", numbers.to_string())
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[1, 3, 4]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
