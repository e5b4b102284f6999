"""Figures to files: HTML, JSON, and PNG where a browser can be found."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from dsteer_tl.errors import ConfigurationError, DependencyError, RunError
from dsteer_tl.plots.theme import HEIGHT, SCALE, WIDTH

logger = logging.getLogger(__name__)

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "brave-browser",
    "microsoft-edge",
    "msedge",
)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        written: Files, in the order of the figures.
        skipped: Names of images that were not made, in that order.
        reason: Why, and what to do about it; None where nothing was skipped.
    """

    written: tuple[Path, ...]
    skipped: tuple[str, ...] = ()
    reason: str | None = None


def find_browser() -> Path | None:
    """A Chrome or Chromium: the file that BROWSER_PATH names, else the first one on PATH."""
    named = os.environ.get("BROWSER_PATH")
    if named:
        path = Path(named)
        return path if path.is_file() and os.access(path, os.X_OK) else None
    for name in BROWSERS:
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    return None


def _why_no_images() -> str | None:
    if importlib.util.find_spec("kaleido") is None:
        return "package kaleido is not installed: install the extra 'images'"
    if find_browser() is not None:
        return None
    named = os.environ.get("BROWSER_PATH")
    if named:
        return f"BROWSER_PATH is {named!r}, which is not an executable file: correct or unset it"
    return "no Chrome or Chromium on PATH: install one, or set BROWSER_PATH to its executable"


def write_figures(
    figures: Mapping[str, go.Figure],
    folder: Path | str,
    *,
    images: bool | None = None,
    require_images: bool = False,
) -> ExportReport:
    """Write each figure as `<name>.html` and `<name>.json`, and `<name>.png` at 300 dpi.

    The HTML files share one `plotly.min.js` beside them, so they open without a network. Every
    file is written under a temporary name and then renamed.

    Args:
        figures: Figure by file name without ending.
        folder: Made if it does not exist.
        images: Whether to write PNG; None means where kaleido and a browser are there.
        require_images: Raise instead of skipping when images cannot be made.

    Returns:
        What was written and what was skipped. Skipped images are also logged, once, as a warning.

    Raises:
        ConfigurationError: A name is no plain file name, or images are both refused and required.
        DependencyError: Images are required, and kaleido or a browser is missing.
        RunError: The folder cannot be written, or the browser failed to draw a figure.
    """
    for name in figures:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"figure name {name!r} is no plain file name; expected letters, digits, '_', '-' "
                "and '.': rename the figure"
            )
    if images is False and require_images:
        raise ConfigurationError(
            "images=False with require_images=True; expected one or the other: drop one of them"
        )
    obstacle = None if images is False else _why_no_images()
    if obstacle is not None and require_images:
        raise DependencyError(f"cannot write PNG images: {obstacle}")
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=target) as temporary:
            draft = Path(temporary)
            drawn = images is not False and obstacle is None and bool(figures)
            names = _write_pages(figures, draft)
            if drawn:
                _write_images(figures, draft)
                names = [n for name in figures for n in (*_page_names(name), f"{name}.png")]
            script = target / "plotly.min.js"
            if figures and not _same_text(script, get_plotlyjs()):
                (draft / script.name).write_text(get_plotlyjs(), encoding="utf-8")
                (draft / script.name).replace(script)
            for name in names:
                (draft / name).replace(target / name)
    except OSError as error:
        raise RunError(
            f"cannot write figures to {target}: {error}: free space or choose another folder"
        ) from error
    shared = (script.name,) if figures else ()
    written = tuple(target / name for name in (*names, *shared))
    if drawn or not figures:
        return ExportReport(written=written)
    if obstacle is None:
        reason = "images were not asked for"
        return ExportReport(written=written, skipped=_png_names(figures), reason=reason)
    reason = f"PNG images skipped ({len(figures)} figures; HTML and JSON are written): {obstacle}"
    older = sum((target / name).is_file() for name in _png_names(figures))
    if older:
        reason += f"; {older} PNG files of an earlier export were left as they are"
    logger.warning("%s", reason)
    return ExportReport(written=written, skipped=_png_names(figures), reason=reason)


def _page_names(name: str) -> tuple[str, str]:
    return f"{name}.html", f"{name}.json"


def _png_names(figures: Mapping[str, go.Figure]) -> tuple[str, ...]:
    return tuple(f"{name}.png" for name in figures)


def _same_text(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _write_pages(figures: Mapping[str, go.Figure], draft: Path) -> list[str]:
    names: list[str] = []
    for name, figure in figures.items():
        page, data = _page_names(name)
        # A fixed element id makes the same figure the same file.
        html = pio.to_html(figure, include_plotlyjs="directory", div_id=f"figure-{name}")
        (draft / page).write_text(html, encoding="utf-8")
        (draft / data).write_text(pio.to_json(figure), encoding="utf-8")
        names += [page, data]
    return names


def _write_images(figures: Mapping[str, go.Figure], draft: Path) -> None:
    """Draw all figures with one browser.

    `plotly.io.write_images` swallows what fails to render, so kaleido is called itself and its
    list of errors is not ignored.
    """
    import kaleido

    specifications = [
        {
            "fig": figure,
            "path": str(draft / f"{name}.png"),
            "opts": {
                "format": "png",
                "width": figure.layout.width or WIDTH,
                "height": figure.layout.height or HEIGHT,
                "scale": SCALE,
            },
        }
        for name, figure in figures.items()
    ]
    try:
        errors = kaleido.write_fig_from_object_sync(
            specifications,
            kopts={"mathjax": False, "path": str(find_browser())},
            cancel_on_error=False,
        )
    except Exception as error:
        raise RunError(
            f"the browser {find_browser()} could not draw {len(figures)} figures: "
            f"{_one_line(error)}: try it by hand, or export with images=False"
        ) from error
    if errors:
        raise RunError(
            f"{len(errors)} of {len(figures)} figures could not be drawn: {_one_line(errors[0])}: "
            "mend the figure, or export with images=False"
        )
    for name in figures:
        path = draft / f"{name}.png"
        if not path.is_file() or not path.read_bytes().startswith(_PNG_SIGNATURE):
            raise RunError(
                f"figure {name!r} gave no PNG from browser {find_browser()}; expected {path.name}: "
                "try another browser, or export with images=False"
            )


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__} {' '.join(str(error).split())}"[:300]
