# %% [markdown]
# # Do the value vectors closest to the probe promote its words?
#
# **Shown.** Cosines of the N closest value vectors with the probe, the layers they lie in, how many
# listed words are among the ten tokens that each promotes, and the singular values of the group;
# then the tokens themselves, of the probe, the closest vectors and the first singular vectors.
#
# **Claim.** Row 21 (they promote toxic tokens; N = 128).
#
# **Nulls.** The value vectors closest to a probe of shuffled labels, as the best of thousands are
# close to any direction; random value vectors; a random direction. The sign of a singular vector is
# a choice: listed words are counted among what it suppresses, too.
#
# `python analyses/lee2024_value_vectors.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show, toxicity_tokens, toxicity_value_vectors
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("lee2024_value_vectors")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
vectors, svd = run.table("toxicity_value_vectors"), run.table("toxicity_svd")
tokens = run.table("toxicity_tokens")
show(toxicity_value_vectors(vectors, svd), "toxicity_value_vectors", run / "figures")
show(toxicity_tokens(tokens), "toxicity_tokens", run / "figures")

# %% [markdown]
# The first ten of each group: mean cosine, share of listed words, and the share of the first
# singular vector.

# %%
first = vectors[vectors["rank"] <= 10].groupby("group")[["cosine", "norm", "listed_share"]]
numbers = first.mean().join(svd[svd["component"] == 0].set_index("group")[["share"]])
logger.info("%s", numbers.to_string(float_format="%.3f"))
numbers

# %% [markdown]
# The ledger's rows on this figure.

# %%
ledger = pd.read_json(run / "claims.json").set_index("id").loc[[21]]
ledger = ledger[["measured", "unit", "null", "null_name", "verdict"]]
logger.info("%s", ledger.to_string())
ledger
