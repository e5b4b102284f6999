# %% [markdown]
# # Do activations of the attribute's value vectors drop?
#
# **Shown.** For each of the closest value vectors the change of its mean activation from base to
# policy against its mean in the base, and the paired mean changes with intervals, on the same texts
# for both models and on the texts that each wrote.
#
# **Claim.** Row 25 (they drop; no number).
#
# **Null.** Random neurons of the same layers with about the same mean activation: an active neuron
# has more to lose. On texts of their own a drop may be the texts', so the same texts come first.
#
# `python analyses/lee2024_activations.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_activations
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_activations")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
neurons, changes = run.table("toxicity_activations"), run.table("toxicity_activation_changes")
show(toxicity_activations(neurons, changes), "toxicity_activations", run / "figures")

# %% [markdown]
# Mean changes over all neurons of a group, oriented so that a positive activation writes the
# attribute.

# %%
numbers = changes.set_index(["texts", "group"])
logger.info("%s", numbers.to_string(float_format="%.4g"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[25]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
