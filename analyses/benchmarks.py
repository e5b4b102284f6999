# %% [markdown]
# # Speed and memory beside every alternative
#
# **Measured.** What reading every layer of two models costs over running them, how many times as fast
# it is as other ways of reading the same residuals, and what sweeps, spectra and generation cost:
# medians of ratios within one run, the single repetitions faint, the target as a tick.
#
# **Null.** The floor is the same batches through plain transformers with nothing read. Every
# alternative was checked to find what capture finds.
#
# `make bench`, then `python analyses/benchmarks.py [figures/benchmarks.json [figures]]`

# %%
from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from dsteer_tl.plots import show, write_figures
from dsteer_tl.plots.benchmarks import benchmarks, read_entries
from dsteer_tl.plots.show import in_kernel

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("benchmarks")
for chatty in ("choreographer", "kaleido"):
    logging.getLogger(chatty).setLevel(logging.WARNING)

arguments = [] if in_kernel() else sys.argv[1:]
source = Path(arguments[0] if arguments else "figures/benchmarks.json")
target = Path(arguments[1]) if len(arguments) > 1 else source.parent
entries = json.loads(source.read_text("utf-8"))

# %%
figure = benchmarks(entries)
if in_kernel():
    show(figure, "benchmarks")
else:
    # Only the picture is published, without the pages that are written beside it.
    with tempfile.TemporaryDirectory() as folder:
        report = write_figures({"benchmarks": figure}, folder)
        for path in report.written:
            if path.suffix == ".png":
                shutil.copyfile(path, target / path.name)

# %% [markdown]
# The numbers, and what was not run.

# %%
numbers = pd.DataFrame(
    [
        {
            "benchmark": row.label,
            "ratio": row.ratio,
            "target": row.bound,
            "met": row.met,
            "not run": row.reason,
        }
        for row in read_entries(entries)
    ]
)
logger.info("%s", numbers.to_string(index=False))
numbers

# %% [markdown]
# The machines that it was measured on.

# %%
machines = sorted(
    {json.dumps(entry["hardware"]) for entry in entries.values() if "hardware" in entry}
)
logger.info("%s", "\n".join(machines))
machines
