# %% [markdown]
# # Your own pair in ten lines
#
# You have two checkpoints: a *base*, and a *policy* that somebody tuned from it with preferences
# (DPO, PPO, …). This notebook asks one question of them, from loading to text: **if the policy were
# the base plus one constant vector, which vector would it be, and what does adding it do?**
#
# **Null.** A random vector of the same length, at the same place. A vector that is long enough
# changes what any model writes; only what v* does and the random one does not is about preferences.
#
# `python analyses/tutorial_your_own_pair.py BASE POLICY`, by default the model inside the package
# and the policy that `make reproduce` trained from it. Directories, hub ids and LoRA adapters work.

# %%
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd

import dsteer_tl as ds
from dsteer_tl.controls import random_like, sign_flipped_rows
from dsteer_tl.cosines import cosine_statistics
from dsteer_tl.plots.show import in_kernel

given = sys.argv[1:3] if not in_kernel() else []
base, policy = given if len(given) == 2 else ("tales", "runs/tales/policy")

# %% [markdown]
# ## The ten lines
#
# Prompts to measure on, and other prompts to judge on: a vector should not be tried on the texts
# that it was made from.

# %%
openings = ["Once upon a time", "The old man", "One day a girl", "In the dark forest", "My mother"]
endings = ["there was a little", "looked at the sea and", "found a box. She", "heard a voice and"]
measured = [f"{opening} {ending}" for opening in openings for ending in endings]
judged = ["The king had a", "The children went home and", "A boy named Tim was"]

pair = ds.ModelPair.load(base, policy)
shifts = ds.capture_shifts(pair, ds.probes_from_prompts(pair.tokenizer, measured))
v_star = ds.mean_shift_vector(pair, shifts, "h", "last_prompt")
control = v_star.with_values(random_like(v_star.values, seed=0), "random")
found = ds.sweep(pair, [v_star, control], judged, [-1, 0, 1, 4], progress=False)
ds.show(found)

# %% [markdown]
# ## What was loaded
#
# Both models are hooked with TransformerLens in their own weights, nothing folded. Loading refuses a
# model whose hooked logits differ from those of plain transformers; then base and policy are
# compared. A difference *outside* the blocks matters: if the unembedding or the final norm was
# trained, part of the change of the logits is no change of the residual stream.

# %%
ds.show(pair)

# %% [markdown]
# ## What was measured
#
# A *shift* is δ = h_policy − h_base at one token: both models read the same text, and the two
# residual streams are subtracted. There is one at every layer (`resid_post.l`) and at `h`, the
# vector that the unembedding multiplies. Here they are read at the last token of each prompt.
#
# The *steering vector* v* is their mean.

# %%
ds.show(shifts)
ds.show(v_star)

# %% [markdown]
# ## Is a mean a fair summary?
#
# It is if the shifts point the same way. `cos_loo` is the mean cosine of each shift with the mean of
# the *others*: a shift inside its own mean agrees with it for nothing. `sign_flipped` is the same
# number after each shift got a random sign, which keeps every length and axis and destroys what they
# share.

# %%
rows = {}
for site in shifts.sites:
    delta, prompts = shifts.shifts(site, "last_prompt"), shifts.prompts("last_prompt")
    flipped = cosine_statistics(sign_flipped_rows(delta, seed=0), prompts)
    rows[site] = {
        "cos_loo": cosine_statistics(delta, prompts).loo_mean,
        "sign_flipped": flipped.loo_mean,
        "mean_length": float((delta**2).sum(axis=1).mean() ** 0.5),
    }
numbers = pd.DataFrame(rows).T
ds.show(numbers.round(3))

# %% [markdown]
# ## What it does to text
#
# base + λv, greedily continued, on prompts that took no part in the mean. λ = 0 is the base, λ = 1
# one whole mean shift, λ = −1 its opposite. Read the two vectors against each other.

# %%
texts = found.completions.set_index(["prompt_text", "vector", "coefficient"])["completion"]
texts = texts.sort_index()
ds.show(texts.str.slice(0, 90).str.replace("\n", " ").to_frame("first 90 characters"))

# %% [markdown]
# Share of the texts that each vector changed at all:

# %%
of_each = texts.unstack("coefficient")
changed = of_each.drop(columns=0.0).ne(of_each[0.0], axis=0).groupby("vector").mean()
ds.show(changed.rename_axis(columns="λ").round(2))

# %% [markdown]
# ## Keep it
#
# A file that knows where the vector may act. Applied at another layer, or to another model, it is
# refused.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "v_star.safetensors"
    v_star.save(path)
    again = ds.SteeringVector.load(path)
ds.show(again)

# %% [markdown]
# ## Before you believe any of this
#
# - Twenty prompts are few. `dsteer analyze --base BASE --policy POLICY --prompts FILE --out RUN`
#   measures on as many as you give, with intervals, and writes every table, figure and verdict.
# - At `h`, adding a vector is the same as adding one constant to the logits at every token. To see
#   whether there is more, ask inside the network, at `resid_post.l`.
# - That a vector changes text does not make it an account of the tuning. *Is it a steering vector?*
#   (`tutorial_is_it_a_steering_vector.py`) asks that.
