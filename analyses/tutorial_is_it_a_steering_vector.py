# %% [markdown]
# # Is it a steering vector?
#
# A paper claims that DPO adds one vector to the residual stream and does no more. This notebook
# walks the argument on a finished run: five questions, each with the number that would answer it and
# with the number that the same procedure gives where the claim is false. The second number is the
# **null**; a first number without it says little.
#
# What would count as **yes**: shifts that agree far better than under random weight changes; one
# direction that carries them beyond their mean; a vector that recovers most of what separates policy
# from base, and more of it than a constant logit bias does; the same in every response, not only at
# the last token of the prompt.
#
# `python analyses/tutorial_is_it_a_steering_vector.py RUN`, by default `runs/tales`, which
# `make reproduce` makes.

# %%
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import dsteer_tl as ds
from dsteer_tl.claims.results import Ledger
from dsteer_tl.controls import gaussian_matched, random_like
from dsteer_tl.cosines import cosine_statistics, mean_shift
from dsteer_tl.distributions import PairedRows
from dsteer_tl.logit_bias import mean_logit_bias
from dsteer_tl.plots import localisation
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.recovery import bias_recovery, vector_recovery
from dsteer_tl.spectra import spectrum

run = ds.RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))
shifts = ds.ShiftSet.open(run / "capture")
last, kinds = shifts.sites[-2], shifts.kinds
ds.show(shifts)

# %% [markdown]
# The run kept the residuals of base and policy at the same tokens, and those of a third model:
# `random_weights`, the base with each weight tensor moved as far as DPO moved it, in a random
# direction. A shift is δ = h_policy − h_base at one token, the steering vector v* is the mean shift.
#
# ## 1. Do the shifts agree?
#
# Published: cosines with v* of 0.92–0.96. Two corrections first. A shift is part of its own mean, so
# each is compared with the mean over the *other* prompts. And any change of the weights moves all
# residuals somewhat alike, because the network is the same: the null is the same number for random
# weight changes.


# %%
def agreement(site: str, kind: str, model: str) -> float:
    """Mean cosine of each shift with the mean over the other prompts."""
    found = cosine_statistics(shifts.shifts(site, kind, model), shifts.prompts(kind))
    return float(found.loo_mean)


models = [model for model in shifts.models if model != "base"]
cosines = pd.DataFrame(
    {model: {kind: agreement("h", kind, model) for kind in kinds} for model in models}
)
ds.show(cosines.round(3))

# %% [markdown]
# A yes needs the first column near one *and* far above the second. A large first column with a large
# second one is a fact about the network.
#
# ## 2. Is one direction enough?
#
# If all shifts were multiples of one vector, the matrix of shifts would have rank one: σ2/σ1 near 0.
# But a mean that dominates makes σ1 large by itself, in every direction at once. So the same ratio is
# given after the mean is taken away (`centred`: is there an axis *besides* the mean?) and for
# Gaussian noise with the same mean and spread, which has no structure at all.


# %%
def ratio(rows: np.ndarray, centred: bool) -> float:
    """σ2/σ1: 0 for rank one, near 1 where no direction leads."""
    first, second = spectrum(rows, centred=centred).singular_values[:2]
    return float(second / first)


delta = shifts.shifts("h", "last_prompt")
noise = gaussian_matched(delta, seed=0)
ranks = pd.DataFrame(
    {
        "uncentred": {"shifts": ratio(delta, False), "noise of equal mean": ratio(noise, False)},
        "centred": {"shifts": ratio(delta, True), "noise of equal mean": ratio(noise, True)},
    }
)
ds.show(ranks.round(3))

# %% [markdown]
# A yes needs an uncentred ratio below 0.1 that noise does not reach. A centred ratio near 1 says
# that, beyond their mean, shifts have no common axis: v* is then a mean and not a direction that
# prompts share in different amounts.
#
# ## 3. Does the vector do what the policy does?
#
# Geometry aside: add v* to the base and ask how much of KL(policy‖base), the distance between their
# next-token distributions, is gone. v* comes from half of the prompts and is judged on the other
# half. The nulls: a random vector of equal length, and a *constant logit bias*, the mean change of
# the logits, added at every token. A bias knows nothing of the text; at `h` adding any vector *is*
# adding a bias, so there v* and the bias must coincide. Inside the network they need not.

# %%
pair = ds.ModelPair.load(run.manifest["models"]["base"]["source"], run / "policy")


def recovered(site: str, kind: str) -> dict[str, float]:
    """Share of KL(policy‖base) that is gone at λ = 1, on the half that made no vector."""
    prompts = shifts.prompts(kind)
    estimating = np.isin(prompts, list(shifts.halves(kind, seed=0)[0]))
    base, policy = (
        torch.from_numpy(shifts.residuals(model, site, kind)) for model in ("base", "policy")
    )
    made, judged = (
        PairedRows(
            base=base[half],
            policy=policy[half],
            base_readout=pair.base.readout_at(site),
            policy_readout=pair.policy.readout_at(site),
            groups=prompts[half],
        )
        for half in (estimating, ~estimating)
    )
    v_star = mean_shift(shifts.shifts(site, kind)[estimating])
    found = {
        "v_star": vector_recovery(judged, v_star, [1.0], seed=0, draws=1),
        "random": vector_recovery(judged, random_like(v_star, 0), [1.0], seed=0, draws=1),
        "logit_bias": bias_recovery(judged, mean_logit_bias(made), [1.0], seed=0, draws=1),
    }
    return {name: each.recovered[0].value for name, each in found.items()}


recovery = pd.DataFrame(
    {(site, kind): recovered(site, kind) for site in (last, "h") for kind in kinds}
).T
ds.show(recovery.round(3))

# %% [markdown]
# A yes needs `v_star` near one, far above `random`, and above `logit_bias` at the last
# `resid_post`; and that in every row. A vector that recovers much at the last prompt token and
# little in the responses describes the first word.
#
# ## 4. Where does the change act?
#
# The length of the shifts grows with depth whatever was trained, so length is no evidence. Patching
# is: the policy's residual stream is written into the base at one layer, and the base's own layers
# run on from there. Recovered early and fully means that early layers carry the change. The null is
# a random shift of equal length in its place.

# %%
patching = run.table("patching")
ds.show(localisation(run.table("shifts"), patching), "localisation", run / "figures")
where = patching[patching["position_kind"] == "last_prompt"]
where = where.pivot_table(index="site", columns="source", values="recovered", sort=False)
ds.show(where.round(3))

# %% [markdown]
# ## 5. The verdicts
#
# One rule for every published claim. `REPLICATED`: the target is met and the null does not meet it.
# `TRIVIAL`: the null meets it too. `PARTIAL`: the sign is right and the target is missed. `FAILED`:
# not even that.

# %%
ledger = Ledger(ds.judge(run.tables())).rows(4, 5, 6, 7, 8, 10, 11, 13, 18)
ds.show(ledger)

# %% [markdown]
# ## The answer, in one table
#
# Each line is a question above, what was measured here, its null, and what a yes would have needed.

# %%
in_responses = ("h", "response") if "response" in kinds else ("h", "last_prompt")
inside = (last, in_responses[1])
answers = pd.DataFrame(
    [
        (
            "shifts agree, last prompt token",
            cosines.loc["last_prompt", "policy"],
            cosines.loc["last_prompt"].drop("policy").max(),
            "measured ≥ 0.92, null below it",
        ),
        (
            "one direction, σ2/σ1",
            ranks.loc["shifts", "uncentred"],
            ranks.loc["noise of equal mean", "uncentred"],
            "measured < 0.1, null above it",
        ),
        (
            "v* recovers the policy inside the network",
            recovery.loc[inside, "v_star"],
            recovery.loc[inside, "logit_bias"],
            "measured ≥ 0.9, null below it",
        ),
        (
            "v* recovers the policy at h",
            recovery.loc[in_responses, "v_star"],
            recovery.loc[in_responses, "logit_bias"],
            "equal by algebra: no evidence either way",
        ),
    ],
    columns=["question", "measured", "null", "yes if"],
)
met = [
    answers.loc[0, "measured"] >= 0.92 > answers.loc[0, "null"],
    answers.loc[1, "measured"] < 0.1 <= answers.loc[1, "null"],
    answers.loc[2, "measured"] >= 0.9 > answers.loc[2, "null"],
]
answers["answer"] = [*("yes" if found else "no" for found in met), "cannot say"]
numbers = answers.set_index("question")
ds.show(numbers.round(3))

# %% [markdown]
# This is one small model, one seed of training, and pairs that a lexicon ranked: an answer about
# this pair. The same script on a run of your own pair answers for yours, where the policy was
# trained by `dsteer reproduce`; its verdicts are in every run's `claims.json`.
