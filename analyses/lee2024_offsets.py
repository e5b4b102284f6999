# %% [markdown]
# # Is the shift of the residual stream one offset for all prompts?
#
# **Shown.** At each place in depth the mean cosine of a token's shift δ with the mean shift of the
# other prompts, and the relative length of δ; ticks are resid_mid, half steps resid_post.
#
# **Claim.** Row 26 (a consistent linear offset).
#
# **Nulls.** A random change of the weights of equal norm, as any change shifts all prompts alike to
# some degree; flipped signs, where whole prompts have base and policy swapped, as if there were no
# offset.
#
# `python analyses/lee2024_offsets.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_offsets
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_offsets")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
offsets = run.table("toxicity_offsets")
show(toxicity_offsets(offsets), "toxicity_offsets", run / "figures")

# %% [markdown]
# Cosines at the resid_mid of each layer on response tokens.

# %%
rows = offsets.query("place == 'resid_mid' and position_kind == 'response'")
numbers = rows.pivot(index="layer", columns="control", values="cosine")
numbers["relative_norm"] = rows[rows["control"] == "policy"].set_index("layer")["relative_norm"]
logger.info("%s", numbers.to_string(float_format="%.3f"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[26]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
