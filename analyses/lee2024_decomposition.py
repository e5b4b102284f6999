# %% [markdown]
# # What is the shift made of?
#
# **Shown.** Shares of δ along its own direction at each place in depth: changed value vectors at
# the base's activations (Σ m Δv), changed activations of the base's value vectors (Σ Δm v), both,
# attention, biases and embeddings. They sum to 1.
#
# **Claim.** Row 27 (many small changes of value vectors add up to δ).
#
# **Null.** The same changes of value vectors dealt to other neurons of their layer, which keeps how
# much they changed and breaks which. Attention and biases are terms of their own, as a shift that
# is not the value vectors' is theirs.
#
# `python analyses/lee2024_decomposition.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_decomposition
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_decomposition")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("toxicity_decomposition")
show(toxicity_decomposition(table), "toxicity_decomposition", run / "figures")

# %% [markdown]
# Shares at the last layer, and the largest relative error of the sum.

# %%
last = table[table["layer"] == table["layer"].max()]
numbers = last.pivot(index=["place", "position_kind"], columns=["term", "control"], values="share")
numbers[("error", "")] = last.groupby(["place", "position_kind"])["error"].max()
logger.info("%s", numbers.to_string(float_format="%.3g"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[27]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
