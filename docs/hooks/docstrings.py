"""How the reference reads the package: every name once, at its own module, and examples as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^(\s*)Example:$", flags=re.MULTILINE)


class HouseDocstrings(griffe.Extension):
    """Reads docstrings as the package writes them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Google's style knows ``Examples:`` as code; ``Example:`` would become a quotation."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """What a package imports from its modules is shown there, and not a second time."""
        for module in _packages(pkg):
            module.exports = None


def _packages(module: griffe.Module) -> list[griffe.Module]:
    inner = [member for member in module.modules.values() if not member.is_alias]
    found = [each for member in inner for each in _packages(member)]
    return [module, *found] if module.is_init_module else found
