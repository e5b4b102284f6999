# %% [markdown]
# # Does subtracting a vector reduce the attribute at equal perplexity?
#
# **Shown.** The attribute score of continuations against the perplexity of running text while a
# vector is subtracted at the last layer, and the points at the policy's perplexity with their
# intervals, with F1, beside base and policy.
#
# **Claim.** Row 22 (probe, one value vector and SVD.U[0] at perplexity 23.4: .453 → .245, .305,
# .268) and row 23 (DPO: .453 → .208, perplexity 21.7 → 23.34, F1 .193 → .195).
#
# **Nulls.** At the same perplexity: a random vector, a random value vector, and the constant change
# of the logits that the probe makes, which reads no context. For the policy: a random change of its
# weights of equal norm, and a policy trained on the same pairs with chosen and rejected swapped at
# random. Scores of another scorer compare by their ratios only.
#
# `python analyses/lee2024_interventions.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_interventions
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_interventions")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
table = run.table("toxicity_interventions")
show(toxicity_interventions(table), "toxicity_interventions", run / "figures")

# %% [markdown]
# Every model and vector, at the perplexity that is compared; the paired change from the base has
# its 95 % interval.

# %%
compared = table[table["matched"] | (table["role"] == "anchor")]
if not table["matched"].any():
    compared = table  # the policy's perplexity is not above the base's
measured = ["attribute_score", "change", "change_low", "change_high", "f1"]
numbers = compared.set_index("vector")[["role", "coefficient", "norm", "perplexity", *measured]]
logger.info("%s", numbers.to_string(float_format="%.3f"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[22, 23]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
