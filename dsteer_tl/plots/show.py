"""Show a figure, table, result or page: in a notebook at its place, elsewhere as file or text."""

from __future__ import annotations

import sys
from pathlib import Path

import plotly.graph_objects as go

from dsteer_tl.errors import ConfigurationError, RunError
from dsteer_tl.plots.export import write_figures
from dsteer_tl.plots.token_view import TokenPage


def in_kernel() -> bool:
    """Whether this process is a live Jupyter kernel (a terminal IPython is not)."""
    module = sys.modules.get("IPython")
    if module is None:
        return False
    shell = module.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def show(fig: object, name: str = "", folder: Path = Path("figures")) -> Path | None:
    """Display something in a live kernel; elsewhere write a figure to files and the rest as text.

    In a script without a display plotly's own `fig.show()` does nothing, or opens a browser.

    Args:
        fig: A figure; a path to a page, as of the text browser or the report, shown in a frame
            that cannot reach the notebook; or anything else that a notebook can show, such as a
            table, a `ModelPair`, or what `judge` returns.
        name: File name of a figure without ending.
        folder: Where the files of a figure go: `<name>.html` and `<name>.json`.

    Returns:
        The HTML file of a figure or page, or None where it was displayed or is only text.

    Raises:
        ConfigurationError: The name of a figure is no plain file name.
        RunError: The folder cannot be written, or the page cannot be read.
    """
    if isinstance(fig, go.Figure):
        return _show_figure(fig, name, folder)
    if isinstance(fig, Path):
        return _show_page(fig)
    if in_kernel():
        _display(fig)
    else:
        to_string = getattr(fig, "to_string", None)
        _write(to_string() if callable(to_string) else str(fig))
    return None


def _show_figure(fig: go.Figure, name: str, folder: Path) -> Path | None:
    if in_kernel():
        try:
            fig.show()
        except ValueError:
            # Plotly needs nbformat to display in a kernel; files do as well.
            pass
        else:
            return None
    if not name:
        raise ConfigurationError(
            "found no name for this figure; outside a notebook it is written to files: "
            "show(figure, 'name')"
        )
    return write_figures({name: fig}, folder, images=False).written[0]


def _show_page(path: Path) -> Path | None:
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read the page {path}: {error}; expected an HTML file") from error
    if in_kernel():
        _display(TokenPage(html=content))
        return None
    _write(str(path))
    return path


def _display(found: object) -> None:
    from IPython.display import display

    display(found)  # type: ignore[no-untyped-call]


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
