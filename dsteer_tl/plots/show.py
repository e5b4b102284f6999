"""Show a figure: in a notebook's kernel on the page, elsewhere as files."""

from __future__ import annotations

import sys
from pathlib import Path

import plotly.graph_objects as go

from dsteer_tl.plots.export import write_figures


def in_kernel() -> bool:
    """Whether this process is a live Jupyter kernel (a terminal IPython is not)."""
    module = sys.modules.get("IPython")
    if module is None:
        return False
    shell = module.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def show(fig: go.Figure, name: str, folder: Path = Path("figures")) -> Path | None:
    """Display a figure in a live kernel; write `<name>.html` and `<name>.json` otherwise.

    In a script without a display plotly's own `fig.show()` does nothing, or opens a browser.

    Args:
        fig: The figure.
        name: File name without ending.
        folder: Where files go.

    Returns:
        The HTML file, or None where the figure was displayed.

    Raises:
        ConfigurationError: The name is no plain file name.
        RunError: The folder cannot be written.
    """
    if in_kernel():
        try:
            fig.show()
        except ValueError:
            # Plotly needs nbformat to display in a kernel; files do as well.
            pass
        else:
            return None
    return write_figures({name: fig}, folder, images=False).written[0]
