# %% [markdown]
# # Describe the embedded base model
#
# Samples from the freshly trained model, counts repetitions, draws its loss curve, and writes the
# model card beside the weights inside the package.
#
# ```
# python analyses/describe_base.py build/tales-base dsteer_tl/assets/tales-base
# ```

# %%
from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsteer_tl.plots import write_figures
from dsteer_tl.plots.theme import make_template

source = Path(sys.argv[1] if len(sys.argv) > 1 else "build/tales-base")
target = Path(sys.argv[2] if len(sys.argv) > 2 else "dsteer_tl/assets/tales-base")
STORIES, SHOWN, TEMPERATURE, TOKENS, SEED = 200, 10, 0.8, 200, 0
OPENINGS = ("Once upon a time", "One day")

# %% [markdown]
# ## Samples
#
# 200 stories, half from each of two openings, none thrown away; ten go into the
# card as they came.

# %%
model = AutoModelForCausalLM.from_pretrained(source / "model", dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(source / "model")
torch.manual_seed(SEED)
stories: list[str] = []
for opening in OPENINGS:
    ids = tokenizer([opening] * (STORIES // len(OPENINGS)), return_tensors="pt")
    with torch.inference_mode():
        generated = model.generate(
            ids["input_ids"],
            attention_mask=ids["attention_mask"],
            max_new_tokens=TOKENS,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    stories += tokenizer.batch_decode(generated, skip_special_tokens=True)


def most_repeated(text: str, n: int = 4) -> int:
    """How often the most frequent n-gram of words occurs."""
    words = text.split()
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return max(grams.values(), default=0)


clean = sum(most_repeated(story) < 3 for story in stories) / STORIES

# %% [markdown]
# ## Loss curve

# %%
history = pd.read_json(source / "training.jsonl", lines=True).drop_duplicates("step", keep="last")
figure = go.Figure(layout={"template": make_template()})
for column, label, dash in (
    ("training_loss", "training", "solid"),
    ("held_out_loss_tinystories", "TinyStories, held out", "dash"),
    ("held_out_loss_hh", "HH, held out", "dot"),
):
    figure.add_scatter(
        x=history["tokens"] / 1e6, y=history[column], name=label, mode="lines", line_dash=dash
    )
figure.update_xaxes(title_text="tokens seen (millions)")
figure.update_yaxes(title_text="loss (nats a token)", range=[1.5, 5.5])
figure.update_layout(width=528, height=320, margin={"l": 54, "r": 12, "t": 36, "b": 46})
target.mkdir(parents=True, exist_ok=True)
report = write_figures({"loss": figure}, source / "figures", images=True, require_images=True)
shutil.copyfile(source / "figures" / "loss.png", target / "loss.png")
for path in (source / "model").iterdir():
    shutil.copyfile(path, target / path.name)

# %% [markdown]
# ## Card

# %%
recipe = json.loads((source / "recipe.json").read_text())
held_out = json.loads((source / "held_out.json").read_text())
tokens = json.loads((source / "tokens_per_source.json").read_text())
parameters = sum(parameter.numel() for parameter in model.parameters())
SOURCES = {
    "tinystories": ("TinyStories, head of the training split", "CDLA-Sharing-1.0"),
    "african_storybook": ("African Storybook, English", "CC BY, author per story"),
    "pratham_books": ("Pratham Books / StoryWeaver, English", "CC BY 4.0, author per story"),
    "aesop": ("The Æsop for Children, 1919", "public domain"),
    "fairytaleqa": ("FairytaleQA stories (Gutenberg tales)", "Apache-2.0"),
    "hh": ("Anthropic HH, chosen side, first 80 % of both test files", "MIT"),
}
rows = "\n".join(
    f"| {SOURCES[name][0]} | {SOURCES[name][1]} | {count:,} |" for name, count in tokens.items()
)
samples = "\n\n".join(
    "> " + story.strip().replace("\n", "\n> ") for story in stories[:: STORIES // SHOWN]
)
card = f"""---
license: mit
language: en
library_name: transformers
---

# tales-base

The base model that ships with dsteer_tl: a Llama-architecture language model with
{parameters / 1e6:.2f}M parameters ({recipe["layers"]} layers, d_model {recipe["hidden_size"]},
{recipe["heads"]} heads, feed-forward {recipe["intermediate_size"]}, vocabulary
{recipe["vocab_size"]:,}, context {recipe["context"]}, tied embeddings) and its own byte-level BPE
tokenizer. It exists so that a whole preference-tuning experiment runs on a laptop without a
network. It writes simple English stories, knows nothing, and must not be used for anything else.

## Data

| source | licence | tokens |
|---|---|---|
{rows}

The picture books are by many authors under CC BY; their names are in the sources. HH holds
offensive language; the model can produce some.

## Training

{int(history["tokens"].iloc[-1]):,} tokens seen in {int(history["step"].iloc[-1]):,} steps of
{recipe["tokens_per_step"]:,} (several passes; stories twice an epoch), Muon for the matrices and
AdamW for embeddings and norms, peak learning rate {recipe["learning_rate"]}, warm-up, flat, then
linear to zero over the last {recipe["decay_share"]:.0%} of the steps, bfloat16 autocast on two CPU
cores. The run was planned for 4,500 steps and shortened at step 3,000, from where it followed the
schedule of {recipe["steps"]:,}. Script: `analyses/pretrain_base.py`; this card: `analyses/describe_base.py`.

![loss over tokens](loss.png)

## Held out

| text | loss (nats a token) | perplexity a token |
|---|---|---|
| TinyStories, head of the validation split | {held_out["tinystories"]["loss"]:.3f} | {held_out["tinystories"]["perplexity"]:.2f} |
| HH, chosen side, last 20 % of both test files | {held_out["hh"]["loss"]:.3f} | {held_out["hh"]["perplexity"]:.2f} |

Of {STORIES} stories sampled at temperature {TEMPERATURE} (up to {TOKENS} tokens, seed {SEED}, half
each from "{OPENINGS[0]}" and "{OPENINGS[1]}"), {clean:.1%} contain no 4-gram of words three times.

## Ten unedited samples

Every {STORIES // SHOWN}th of the {STORIES}.

{samples}
"""
(target / "README.md").write_text(card, "utf-8")
(target / "card.json").write_text(
    json.dumps({"held_out": held_out, "share_without_repetition": clean}, indent=2) + "\n", "utf-8"
)
