# %% [markdown]
# # Your own pair
#
# Any base and its preference-tuned sibling: directories, hub ids, or transformers models in memory
# (then pass `tokenizer=…`; hooking consumes them, so save or copy them first). The same as
# `dsteer analyze`, by hand and for one question: what does the mean shift do?
#
# **Null.** A random vector of equal norm: what it changes is not about preferences. The whole
# ledger with every control comes from `dsteer analyze --base BASE --policy POLICY --prompts FILE`.
#
# `python analyses/your_own_pair.py BASE POLICY`, by default the model inside the package and the
# policy that `dsteer reproduce` trained from it.

# %%
from __future__ import annotations

import logging
import sys

import pandas as pd

from dsteer_tl.capture import capture_shifts
from dsteer_tl.controls import random_like
from dsteer_tl.cosines import cosine_statistics
from dsteer_tl.directions import mean_shift_vector
from dsteer_tl.lens_model import pad
from dsteer_tl.pair import ModelPair
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.positions import probes_from_prompts

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("your_own_pair")

given = sys.argv[1:3] if not in_kernel() else []
base, policy = given if len(given) == 2 else ("tales", "runs/tales/policy")
prompts = [
    "Once upon a time there was a little",
    "The old man looked at the sea and",
    "One day a girl found a box. She",
    "The dog and the cat were",
    "It was dark in the forest, but",
    "My mother told me that",
]

# %% [markdown]
# Load and check both, capture the shifts at the last prompt token, and take their mean.

# %%
pair = ModelPair.load(base, policy)
shift_set = capture_shifts(pair, probes_from_prompts(pair.tokenizer, prompts))
v_star = mean_shift_vector(pair, shift_set, site="h", position_kind="last_prompt")
control = v_star.with_values(random_like(v_star.values, seed=0), "random")
preflight = pd.DataFrame(pair.preflight.items)
logger.info("%s", preflight.to_string())
preflight

# %% [markdown]
# How parallel the shifts are at every site, each against the mean of the others.

# %%
statistics = {
    site: cosine_statistics(shift_set.shifts(site, "last_prompt"), shift_set.prompts("last_prompt"))
    for site in shift_set.sites
}
numbers = pd.Series({site: found.loo_mean for site, found in statistics.items()}, name="cos_loo")
numbers = numbers.to_frame()
logger.info("%s", numbers.to_string())
numbers


# %% [markdown]
# Greedy continuations of the first prompt: base, policy, base + v*, base + random, policy − v*.


# %%
def continued(model):
    batch = pad([pair.tokenizer(prompts[0])["input_ids"]], side="left", device=model.device)
    ids = model.generate(batch.ids, batch.mask, max_new_tokens=24)
    return pair.tokenizer.decode(ids[0, batch.ids.shape[1] :], skip_special_tokens=True)


texts = {"base": continued(pair.base), "policy": continued(pair.policy)}
with v_star.apply(pair.base, coefficient=1.0) as steered:
    texts["base + v*"] = continued(steered)
with control.apply(pair.base, coefficient=1.0) as steered:
    texts["base + random"] = continued(steered)
with v_star.apply(pair.policy, coefficient=-1.0) as steered:
    texts["policy - v*"] = continued(steered)
continuations = pd.Series(texts, name="continuation").to_frame()
logger.info("%s", continuations.to_string())
continuations
