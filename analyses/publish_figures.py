# %% [markdown]
# # Publish the figures of a run
#
# Copies the PNGs of a run into `figures/`, writes the numbers behind them as JSON, and renders the
# ledger as Markdown between the markers of the README, so that every number there comes from a run
# that its manifest names.
#
# ```
# python analyses/publish_figures.py runs/tales figures
# python analyses/publish_figures.py runs/stressed figures/stress stress
# ```
#
# With a third argument only pictures and tables whose names begin with it: a run that was put to every
# stress test stands beside the default one.

# %%
from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd

from dsteer_tl.claims import ledger_markdown
from dsteer_tl.experiment.judging import judge_run
from dsteer_tl.experiment.run_directory import RunDirectory
from dsteer_tl.manifest import MANIFEST

run = RunDirectory.open(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tales"))
target = Path(sys.argv[2] if len(sys.argv) > 2 else "figures")
only = sys.argv[3] if len(sys.argv) > 3 else ""
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
    "contributions",
    "component_patching",
    "margin_terms",
    "separation",
    "multiverse",
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


for picture in sorted((run / "figures").glob(f"{only}*.png")):
    shutil.copyfile(picture, target / picture.name)
tables = run.tables()
stressed = {name: records(tables[name]) for name in tables if name.startswith("stress_")}
(target / "stress.json").write_text(json.dumps(stressed, indent=1) + "\n", "utf-8")
numbers = {name: records(tables[name]) for name in SUMMARIES if name in tables}
if not only:
    (target / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")
    study = {name: records(tables[name]) for name in STUDY if name in tables}
    if study:
        (target / "toxicity.json").write_text(json.dumps(study, indent=1) + "\n", "utf-8")
    if "sweep" in tables:
        # Thousands of points: a table of columns, not a list of objects.
        columns = (
            tables["sweep"].drop(columns=["scale"]).to_json(orient="split", double_precision=6)
        )
        (target / "sweep.json").write_text(columns + "\n", "utf-8")
shutil.copyfile(run / "claims.json", target / "claims.json")
manifest = json.loads((run / MANIFEST).read_text("utf-8"))
(target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
shutil.copyfile(run / "config.yaml", target / "config.yaml")

# %% [markdown]
# ## The ledger: whole as a page, and in short in the README


# %%
def put(mark: str, content: str) -> None:
    """Replace what stands between two marks of the README."""
    readme = next(
        (
            folder / "README.md"
            for folder in target.resolve().parents
            if (folder / "README.md").is_file()
        ),
        None,
    )
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    text = "" if readme is None else readme.read_text("utf-8")
    if readme is not None and start in text and end in text:
        before, after = text.split(start)[0], text.split(end)[1]
        readme.write_text(f"{before}{start}\n{content}\n{end}{after}", "utf-8")


results = judge_run(run)
title = f"# The ledger of `{manifest['name']}`\n\n"
(target / "ledger.md").write_text(f"{title}{ledger_markdown(results)}\n", "utf-8")
if only:
    put("questions", ledger_markdown(results.rows(*range(31, 37)), reasons=False))
else:
    put("ledger", ledger_markdown(results, reasons=False))

# %% [markdown]
# ## Variants of the policy, in one table
#
# At h and the last prompt token; accuracy is that of held-out pairs.

# %%
COLUMNS = {
    "cos_loo_mean": "cosine with v*",
    "sigma_ratio": "σ2/σ1",
    "effective_rank_centred": "effective rank, centred",
    "recovered": "KL recovered",
    "accuracy": "accuracy",
    "cos_to_reference": "cos(v*, v* of the run)",
}
TESTS = ("embeddings", "heterogeneous", "causes", "losses", "sensitivity")
lines = [
    f"| test | condition | {' | '.join(COLUMNS.values())} |",
    "|---" * (2 + len(COLUMNS)) + "|",
]
for test in (name for name in TESTS if f"stress_{name}" in tables):
    table = tables[f"stress_{test}"]
    place = (table["site"] == "h") & (table["position_kind"] == "last_prompt")
    shown = table[(place | (table["site"] == "output")) & (table["data"] == "run")]
    for condition in dict.fromkeys(shown["condition"]):
        rows = shown[shown["condition"] == condition].set_index("statistic")["value"]
        cells = [f"{rows[name]:.2f}" if name in rows else "–" for name in COLUMNS]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {test} | {condition.replace('_', ' ')} | {' | '.join(cells)} |")
if only:
    put("variants", "\n".join(lines))
