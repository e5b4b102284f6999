# %% [markdown]
# # Lee et al. on your model
#
# [Lee et al. 2024](https://arxiv.org/abs/2401.01967) ask what DPO does inside GPT-2 to make it less
# toxic. Their answer in four steps: (1) a linear probe finds a direction of toxicity in the residual
# stream; (2) some MLP *value vectors*, the rows that neurons write, point along it and promote toxic
# words; (3) DPO leaves these vectors as they are and shifts the residual stream a little in many
# places, so that their neurons switch on less; (4) so the toxicity is still there: making a few *key
# vectors*, which those neurons read with, longer brings it back.
#
# This notebook takes the four steps on the run in `runs/tales`. The attribute is *unkind* against
# *kind* text by sentiment words, since nothing is downloaded.
#
# **Null.** Beside each step stands the same step with the wrong direction: shuffled labels, random
# value vectors, random neurons.
#
# **What is small here.** A 4M-parameter model; a few hundred labelled texts; 24 prompts, 16 new
# tokens each; no intervals. It shows how the study is done. `dsteer toxicity RUN` does it whole.
#
# `python analyses/tutorial_lee_et_al.py RUN`, for a run that `dsteer reproduce` trained.

# %%
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import dsteer_tl as ds
from dsteer_tl.plots.show import in_kernel
from dsteer_tl.toxicity.attribute import get_attribute_scorer
from dsteer_tl.toxicity.component_reading import continuation_probes, read_components
from dsteer_tl.toxicity.continuing import continue_prompts
from dsteer_tl.toxicity.decomposition import Decomposition, decomposition_places
from dsteer_tl.toxicity.labelled_texts import label_by_scorer
from dsteer_tl.toxicity.probe import fit_text_probe
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import StudyTexts
from dsteer_tl.toxicity.unalign import measure_unalign
from dsteer_tl.toxicity.value_vectors import (
    closest_value_vectors,
    oriented_to,
    oriented_value_vectors,
    probe_cosines,
    promoted_token_ids,
    random_neurons,
    tokens_promoted,
)
from dsteer_tl.toxicity.windows import text_windows

run = ds.RunDirectory.open(Path("runs/tales" if in_kernel() or not sys.argv[1:] else sys.argv[1]))
pair = ds.ModelPair.load(run.manifest["models"]["base"]["source"], run / "policy")
preferences = ds.PreferenceSet.load(run / "preferences.jsonl")
scorer = get_attribute_scorer("vader")
settings = ToxicityConfiguration(
    attribute="unkind",
    scorer="vader",
    held_out_share=0.25,
    neurons=7,
    scales=(1.0, 10.0),
    draws=50,
)
decoding = ds.Decoding(max_new_tokens=16)
ds.show(pair)

# %% [markdown]
# ## 1. A probe
#
# Texts that clearly have the attribute, and texts that clearly have not: completions of the training
# pairs, labelled by the scorer. The probe is a logistic regression on each text's mean residual at
# the last layer, fitted on three quarters and judged on the rest. `words` is a regression on single
# words that never sees the model.

# %%
texts = [text for item in preferences.train for text in (item.chosen, item.rejected)]
labelled = label_by_scorer(texts[:500], scorer, margin=0.2)
fit = fit_text_probe(pair.base, pair.tokenizer, labelled, settings, progress=False)
probe = pd.DataFrame(
    {
        found.control: {
            "balanced accuracy": found.balanced_accuracy.value,
            "low": found.balanced_accuracy.low,
            "high": found.balanced_accuracy.high,
        }
        for found in fit.results
    }
).T
ds.show(probe.round(3))

# %% [markdown]
# `shuffled_labels` is the null: the same fit on permuted labels. Where `words` does as well as the
# probe, the probe may be counting words.
#
# ## 2. Value vectors
#
# Each neuron of each MLP writes one vector, times its activation. Those with the highest cosine with
# the probe are said to *promote* the attribute: multiplied with the unembedding, they raise the
# logits of its words. This model's MLPs are gated, so a neuron also writes its vector negatively and
# the sign that fits is taken, for the random neurons too.

# %%
COUNT = 64
cosines = probe_cosines(pair.base, fit.probe.unit)
gated = pair.base.gated_mlp
near = closest_value_vectors(cosines, COUNT, gated=gated)
drawn = random_neurons(pair.base.n_layers, pair.base.d_mlp, COUNT, seed=0, exclude=near)
groups = {"closest to the probe": near, "random": oriented_to(drawn, cosines, gated=gated)}
listed = {
    token
    for token in range(len(pair.tokenizer))
    if pair.tokenizer.decode([token]).strip().lower() in scorer.words()
}
promoted = {}
for name, neurons in groups.items():
    vectors = oriented_value_vectors(pair.base, neurons)
    top = promoted_token_ids(pair.base, vectors, len(pair.tokenizer), 10)
    promoted[name] = {
        "mean cosine with the probe": float(
            (neurons.signs * cosines[neurons.layers, neurons.neurons]).mean()
        ),
        "unkind words among the ten tokens promoted most": float(np.isin(top, list(listed)).mean()),
    }
value_vectors = pd.DataFrame(promoted).T
ds.show(value_vectors.round(4))

# %% [markdown]
# The first one, in words:

# %%
first = oriented_value_vectors(pair.base, near)[0]
words = tokens_promoted(pair.base, pair.tokenizer, first, 8, words=scorer.words())
ds.show(words)

# %% [markdown]
# ## 3. Where the shift comes from
#
# δ = h_policy − h_base can be split exactly, neuron by neuron: changed value vectors (m·Δv), changed
# activations (Δm·v), both (Δm·Δv), and attention, biases and embedding. `share` is the part of δ
# that each writes along δ; the shares of one place add up to 1, and `error` is what rounding leaves.
# The paper's claim is about the first: many small m·Δv that add up. Its null permutes the rows of Δv
# among the neurons of a layer.

# %%
prompts = [tuple(pair.tokenizer(item.prompt)["input_ids"]) for item in preferences.held_out][:24]
written = {
    name: tuple(continue_prompts(model, prompts, decoding))
    for name, model in (("base", pair.base), ("policy", pair.policy))
}
decomposition = Decomposition(pair.base, pair.policy, seed=0)
places = decomposition_places(pair.base.n_layers)
models = {"base": pair.base, "policy": pair.policy}
for batch in read_components(
    models,
    continuation_probes(prompts, written["base"]),
    dict.fromkeys(models, places),
    token_budget=settings.token_budget,
    progress=False,
):
    decomposition.add(batch)
terms = decomposition.table(draws=settings.draws, seed=0)
at_the_end = terms.query(
    f"place == 'resid_post' and layer == {pair.base.n_layers - 1} and position_kind == 'response'"
)
shares = at_the_end.set_index(["control", "term"])[["share", "low", "high", "error"]]
ds.show(shares.round(4))

# %% [markdown]
# ## 4. Undoing DPO
#
# Multiply the key vectors of the seven closest neurons by ten, in the policy, and score what it
# writes. If DPO only routed around these neurons, the attribute comes back, and not with seven
# random neurons, nor with the seven that write most; perplexity says whether the text is still text.

# %%
study = StudyTexts(
    prompts=tuple(prompts),
    windows=text_windows(pair.tokenizer, texts, windows=8, tokens=48),
    window_prompt=16,
    continuations=written,
)
tables = measure_unalign(
    models, pair.tokenizer, study, scorer, near, settings, decoding, progress=False
)
unalign = tables["toxicity_unalign"].query("keys == 'in'")
scores = unalign.pivot_table(
    index=["host", "group"], columns="scale", values=["attribute_score", "perplexity"]
)
ds.show(scores.round(3))

# %% [markdown]
# ## What to make of it

# %%
measured = shares.xs("measured", level="control")["share"]
policy = scores.loc["policy", "attribute_score"]
base = float(scores.loc["base", "attribute_score"][1.0].iloc[0])
numbers = pd.DataFrame(
    [
        (
            "probe, balanced accuracy",
            probe.loc["probe"].iloc[0],
            probe.loc["words"].iloc[0],
            "words",
        ),
        (
            "unkind words promoted",
            value_vectors.iloc[0, 1],
            value_vectors.iloc[1, 1],
            "random value vectors",
        ),
        (
            "share of the shift written by m·Δv",
            measured["value_vectors"],
            shares["share"].drop("measured", level="control").iloc[0],
            "Δv permuted",
        ),
        (
            "unkindness regained by scaled keys",
            policy.loc["attribute", 10.0] - policy.loc["attribute", 1.0],
            policy.loc["random", 10.0] - policy.loc["random", 1.0],
            "random neurons",
        ),
        ("unkindness that DPO removed", base - policy.loc["attribute", 1.0], 0.0, "no change"),
    ],
    columns=["step", "measured", "null", "what the null is"],
).set_index("step")
ds.show(numbers.round(3))

# %% [markdown]
# A step is supported where its measured value is well beyond its null. With this few texts none of
# these differences has an interval; rows 20–30 of the ledger have theirs, from the whole study.
#
# **On your model.** Point the script at another run. For toxicity take the scorer `"lexicon"`
# or `"detoxify"`, labelled texts from `load_labelled_texts("paradetox", FILE)`, and
# prompts from RealToxicityPrompts: `docs/toxicity.md` has the commands.
