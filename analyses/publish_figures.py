# %% [markdown]
# # Publish the figures of a run
#
# Copies the PNGs of a run into `figures/`, writes the numbers behind them as JSON, and renders the
# ledger as Markdown between the markers of the README, so that every number there comes from a run
# that its manifest names.
#
# ```
# python analyses/publish_figures.py runs/tales figures
# ```

# %%
from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.claims import judge, ledger_markdown
from dsteer_tl.experiment.run_directory import MANIFEST, RunDirectory

run = RunDirectory.open(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tales"))
target = Path(sys.argv[2] if len(sys.argv) > 2 else "figures")
target.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Pictures, and the numbers behind them
#
# Tables with a row per token or lattice point are left in the run: the summaries carry the claims.

# %%
SUMMARIES = (
    "shifts",
    "nulls",
    "entropy",
    "mass",
    "directions",
    "kl_recovery",
    "rank_recovery",
    "patching",
    "logit_lens",
    "formation",
    "tokens",
    "sweep_metrics",
)
STUDY = tuple(
    f"toxicity_{name}"
    for name in (
        "probe",
        "value_vectors",
        "svd",
        "tokens",
        "weights",
        "activation_changes",
        "offsets",
        "decomposition",
        "lens",
        "interventions",
        "unalign",
        "patching",
        "metrics",
    )
)


def records(table: pd.DataFrame) -> list[dict[str, object]]:
    """Rows as JSON, rounded to six significant digits."""
    return json.loads(table.to_json(orient="records", double_precision=10))


for picture in sorted((run / "figures").glob("*.png")):
    shutil.copyfile(picture, target / picture.name)
tables = run.tables()
numbers = {name: records(tables[name]) for name in SUMMARIES if name in tables}
(target / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")
study = {name: records(tables[name]) for name in STUDY if name in tables}
if study:
    (target / "toxicity.json").write_text(json.dumps(study, indent=1) + "\n", "utf-8")
if "sweep" in tables:
    # Thousands of points: a table of columns, not a list of objects.
    columns = tables["sweep"].drop(columns=["scale"]).to_json(orient="split", double_precision=6)
    (target / "sweep.json").write_text(columns + "\n", "utf-8")
shutil.copyfile(run / "claims.json", target / "claims.json")
manifest = json.loads((run / MANIFEST).read_text("utf-8"))
(target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
shutil.copyfile(run / "config.yaml", target / "config.yaml")

# %% [markdown]
# ## The ledger: whole as a page, and in short in the README

# %%
START, END = "<!-- ledger -->", "<!-- /ledger -->"
differences = tuple(item["name"] for item in manifest.get("preflight", ()) if not item["passed"])
results = judge(tables, differences)
title = f"# The ledger of `{manifest['name']}`\n\n"
(target / "ledger.md").write_text(f"{title}{ledger_markdown(results)}\n", "utf-8")
readme = target.parent / "README.md"
if readme.is_file():
    text = readme.read_text("utf-8")
    if START in text and END in text:
        before, after = text.split(START)[0], text.split(END)[1]
        ledger = ledger_markdown(results, reasons=False)
        readme.write_text(f"{before}{START}\n{ledger}\n{END}{after}", "utf-8")
