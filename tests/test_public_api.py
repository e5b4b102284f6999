from __future__ import annotations

import subprocess
import sys

import pytest


def imported_by(statement: str) -> set[str]:
    """Modules that a fresh Python holds after one statement."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    return set(found.stdout.split())


@pytest.fixture(scope="module")
def after_import() -> set[str]:
    return imported_by("import dsteer_tl")


@pytest.mark.parametrize("package", ["trl", "plotly", "datasets", "transformer_lens", "kaleido"])
def test_importing_the_library_does_not_import(package: str, after_import: set[str]) -> None:
    assert "dsteer_tl" in after_import
    assert package not in after_import


def test_the_command_line_answers_before_torch_is_loaded() -> None:
    found = imported_by("import dsteer_tl.cli")
    assert "dsteer_tl.cli" in found
    assert not found & {"torch", "transformers", "trl", "plotly", "datasets", "pandas"}
