# %% [markdown]
# # Do value vectors change along the shift?
#
# **Shown.** For every neuron the cosine of its value vector's change Δv with the mean shift δ at
# the last layer's resid_mid, against its mean activation in the base.
#
# **Claim.** Row 27 (many small changes of value vectors add up to δ; those of negative activation
# point against it).
#
# **Null.** The same changes dealt to other neurons of their layer. Signs agree in half of the
# neurons by chance; what the changes write together is on the figure of the decomposition.
#
# `python analyses/lee2024_value_changes.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_value_changes
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_value_changes")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("toxicity_value_changes")
show(toxicity_value_changes(table), "toxicity_value_changes", run / "figures")

# %% [markdown]
# By layer and sign of the mean activation: mean cosine with its null, and what changed value
# vectors and changed activations write along δ.

# %%
sign = (
    (table["mean_activation"] < 0).map({True: "negative", False: "positive"}).rename("activation")
)
numbers = table.groupby([sign, "layer"]).agg(
    neurons=("neuron", "size"),
    cosine=("cosine", "mean"),
    cosine_permuted=("cosine_permuted", "mean"),
    write_change=("write_change", "sum"),
    activation_change=("activation_change", "sum"),
)
logger.info("%s", numbers.to_string(float_format="%.4g"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[27]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
