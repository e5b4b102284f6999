# %% [markdown]
# # Which verdicts hang on a choice of the analysis
#
# **Shown.** The verdict of every claim by every choice that the papers leave open: the site, the
# mean taken away or not, the position, the precision of the weights, the prompts, and for claims on
# text and on toxicity the choices that their tables have. On the right, the share of all
# combinations with each verdict.
#
# **Claims.** All rows of the ledger; all combinations for rows 6, 7, 8, 13 and 18.
#
# **Nulls.** Each verdict compares with the control of its own row, by the same choice.
#
# `python analyses/multiverse.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.claims.multiverse import flipping_choices, multiverse, verdict_shares
from dsteer_tl.claims.views import stored_views
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.multiverse import multiverse as draw
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("multiverse")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %% [markdown]
# The table of the run; where it has none, what its other tables alone can tell, without another
# precision and without other prompts.

# %%
tables = run.tables()
table = tables["multiverse"] if "multiverse" in tables else multiverse(stored_views(tables))
show(draw(table), "multiverse", run / "figures")

# %% [markdown]
# Which choices change a verdict, one at a time.

# %%
flips = flipping_choices(table).query("alternatives > 0").set_index("id")
with pd.option_context("display.max_colwidth", None):
    logger.info("%s", flips.to_string(float_format="{:.2f}".format))
flips

# %% [markdown]
# The share of all combinations of choices with each verdict.

# %%
numbers = verdict_shares(table).pivot_table(index="id", columns="verdict", values="share")
logger.info("%s", numbers.fillna(0.0).to_string(float_format="{:.2f}".format))
numbers
