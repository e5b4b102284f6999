# %% [markdown]
# # Does a linear probe tell texts with the attribute from others?
#
# **Shown.** Decision values of held-out texts of both labels, and beside them balanced accuracy and
# AUROC of the probe: logistic regression on the residual stream of the last layer, averaged over a
# text's tokens.
#
# **Claim.** Row 20 (94 % of held-out comments).
#
# **Nulls.** The same probe of shuffled labels; a bag of words, which is what a probe could read off
# single words; the majority class, which on unbalanced labels has a high plain accuracy and a
# balanced one of 0.5.
#
# `python analyses/lee2024_probe.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_probe
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_probe")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
probe, scores = run.table("toxicity_probe"), run.table("toxicity_probe_scores")
show(toxicity_probe(probe, scores), "toxicity_probe", run / "figures")

# %% [markdown]
# Accuracies and AUROC with their 95 % intervals, and how many texts there are.

# %%
columns = ["balanced_accuracy", "low", "high", "auroc", "auroc_low", "auroc_high", "accuracy"]
numbers = probe.set_index("control")[[*columns, "n_train", "n_held_out", "positive_share"]]
logger.info("%s", numbers.to_string(float_format="%.3f"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[20]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
