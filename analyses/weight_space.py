# %% [markdown]
# # Weight space against activation space
#
# **Shown.** How many directions the weight change ΔW of each matrix has, beside the shifts ΔH of the
# residual stream at the same layer: effective rank over that of a Gaussian matrix of the same shape,
# σ2/σ1, and the cosine of the first singular vector with v*, for matrices that write into the stream.
#
# **Question.** D-STEER says that alignment acts as if it were a vector of activations. Few directions
# in activations need not mean few in weights.
#
# **Nulls.** A Gaussian matrix of the same shape; the mean |cosine| of a random direction.
#
# `python analyses/weight_space.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.plots.weight_spectra import weight_spectra

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("weight_space")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
spectra = run.table("weight_spectra")
show(weight_spectra(spectra), "weight_spectra", run / "figures")

# %% [markdown]
# Means over layers. The kind `shift` is ΔH; in it the first direction is v* wherever the mean
# dominates, and says nothing new.

# %%
first = spectra.query("index == 1")
columns = ["effective_rank", "null_effective_rank", "stable_rank", "share", "null_share"]
numbers = first.groupby("kind")[[*columns, "v_star_cos", "null_v_star_cos"]].mean()
numbers.insert(0, "matrices", first.groupby("kind").size())
logger.info("%s", numbers.to_string(float_format="%.3f"))
numbers
