"""The scripts of `analyses/` as notebooks: which there are, how they open, and how one is run.

A notebook runs in a folder of its own, in which ``runs/tales`` is a copy of a run made of links:
what a script writes stays there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parents[2] / "analyses"

#: Scripts that open as notebooks but are not run as such, and why.
NOT_RUN = {
    "benchmarks": "reads figures/benchmarks.json of a checkout, not a run",
    "pretrain_base": "trains the embedded model from texts that are not shipped, for hours",
    "describe_base": "writes the card of a base that pretrain_base trained, from its texts",
    "publish_figures": "writes into figures/ and the README of the folder that it runs in",
}


def scripts() -> list[Path]:
    """Every script in percent format."""
    return sorted(
        path for path in FOLDER.glob("*.py") if path.read_text("utf-8").startswith("# %%")
    )


def opened(path: Path) -> nbformat.NotebookNode:
    """The script as Jupyter opens it, valid by the schema of notebooks."""
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.validate(notebook)
    return notebook


def linked_run(run: Path, folder: Path) -> Path:
    """``folder/runs/tales``, with the run's folders made anew and its files linked.

    Files of a run are written under another name and renamed, which replaces a link and leaves what
    it led to.
    """
    target = folder / "runs" / "tales"
    shutil.copytree(run.resolve(), target, copy_function=os.symlink)
    return target


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """What became of one notebook.

    Attributes:
        name: Of the script.
        seconds: From the start of its kernel to the end.
        error: Last line of what went wrong; empty where nothing did.
        notebook: With its outputs, as far as it came.
    """

    name: str
    seconds: float
    error: str
    notebook: nbformat.NotebookNode


def execute(path: Path, folder: Path, *, timeout: int = 300) -> Executed:
    """Run a script as a notebook in a kernel of its own.

    Args:
        path: The script.
        folder: Its working directory.
        timeout: Seconds that one cell may take.
    """
    notebook = opened(path)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        startup_timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    started = time.perf_counter()
    error = ""
    try:
        with (folder / "kernel.log").open("w") as log:
            # An event loop of its own, closed at the end.
            asyncio.run(client.async_execute(stderr=log))
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except (RuntimeError, TimeoutError) as failure:  # a dead kernel, or a cell without an end
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
    return Executed(
        name=path.stem, seconds=time.perf_counter() - started, error=error, notebook=notebook
    )
