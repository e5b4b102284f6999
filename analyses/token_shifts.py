# %% [markdown]
# # Where in a response does the shift lie along v*?
#
# **Shown.** At h, for each token of the chosen responses, the state that predicts it: its shift along
# v*, the length of the rest, and their cosine, by the offset of the token. v* is estimated on the
# other half of the prompts. The page colours the tokens of the first responses.
#
# **Question.** Is the shift one vector at every token, or at some?
#
# **Null.** The mean size of the same along random directions.
#
# `python analyses/token_shifts.py RUN`

# %%
from __future__ import annotations

import logging
import sys
from pathlib import Path

from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.plots import show
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.plots.token_shift_page import token_shift_page
from dsteer_tl.plots.token_shifts import token_shifts

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("token_shifts")

run = RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))

# %%
shifts = run.table("token_shifts")
show(token_shifts(shifts), "token_shifts", run / "figures")

# %%
page = token_shift_page(shifts)
page.write(run / "figures" / "token_shifts_by_response.html")
page

# %% [markdown]
# The mean over tokens, and how each part goes with what happens to the token: the correlation of its
# size with the size of the change of ln p.

# %%
parts = ["along", "off", "cos", "cos_random"]
numbers = shifts[parts].describe().loc[["mean", "std", "min", "max"]].T
change = shifts["log_probability_change"].abs()
numbers["with_change"] = [shifts[part].abs().corr(change, method="spearman") for part in parts]
logger.info("%s", numbers.to_string(float_format="%.3f"))
numbers

# %% [markdown]
# Tokens whose states are moved farthest along v* and least, of those seen at least eight times.

# %%
by_token = shifts.groupby("token").agg(
    along=("along", "mean"),
    cos=("cos", "mean"),
    change=("log_probability_change", "mean"),
    seen=("along", "size"),
)
by_token = by_token.query("seen >= 8").sort_values("along", ascending=False)
extremes = by_token.iloc[[*range(min(8, len(by_token))), *range(-min(8, len(by_token)), 0)]]
logger.info("%s", extremes.to_string(float_format="%.3f"))
extremes
