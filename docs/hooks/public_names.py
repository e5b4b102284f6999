"""The table of public names in the reference, read from ``__all__`` and the docstrings."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import griffe

_MARK = "<!-- public names -->"
_PACKAGE = "dsteer_tl"


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Put the table where its mark is."""
    return markdown.replace(_MARK, _table(config)) if _MARK in markdown else markdown


def _table(config: Any) -> str:
    root = Path(config["docs_dir"]).parent
    package = griffe.load(_PACKAGE, search_paths=[root], try_relative_path=False)
    lines = ["| name | what it is |", "|---|---|"]
    for name in _public(root):
        found = package[name]
        found = found.final_target if found.is_alias else found
        first = found.docstring.value.splitlines()[0] if found.docstring else ""
        lines.append(f"| [`{name}`][{found.path}] | {first.replace('|', '&#124;')} |")
    return "\n".join(lines)


def _public(root: Path) -> list[str]:
    """The names in ``__all__``, without the version."""
    tree = ast.parse((root / _PACKAGE / "__init__.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("__")]
    raise ValueError(f"found no __all__ in {_PACKAGE}/__init__.py, expected a list of names")
