"""Every script of `analyses/` opens as a notebook; some of each kind are run in a kernel."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import nbformat
import pytest

from tests import runs
from tests.notebooks.notebooks import NOT_RUN, Executed, execute, linked_run, opened, scripts
from tests.notebooks.run_all import main

#: A figure with its numbers, a page, and the ledger of a run.
EXECUTED = ("kl_recovery", "tokens", "text_browser")


@pytest.fixture(scope="module")
def run(stories260k: Path) -> Path:
    return runs.pair_run(stories260k)


def outputs(found: Executed) -> list[nbformat.NotebookNode]:
    return [output for cell in found.notebook.cells for output in cell.get("outputs", ())]


def content(path: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_all_scripts_are_found() -> None:
    folder = scripts()[0].parent
    assert {path.stem for path in scripts()} == {path.stem for path in folder.glob("*.py")}
    assert set(NOT_RUN) <= {path.stem for path in scripts()}


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_script_is_a_valid_notebook(path: Path) -> None:
    notebook = opened(path)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    for source in code:
        ast.parse(source)
    # Every cell of the script is in the notebook, and saving it loses none.
    assert path.read_text("utf-8").count("# %%") == len(notebook.cells)
    assert nbformat.reads(nbformat.writes(notebook), as_version=4) == notebook


@pytest.mark.parametrize("name", EXECUTED)
def test_script_runs_in_a_kernel_and_leaves_the_run_as_it_was(
    name: str, run: Path, tmp_path: Path
) -> None:
    before = content(run)
    linked_run(run, tmp_path)
    path = next(path for path in scripts() if path.stem == name)
    found = execute(path, tmp_path, timeout=120)
    assert found.error == ""
    assert content(run) == before
    kinds = {kind for output in outputs(found) for kind in output.get("data", ())}
    assert "text/html" in kinds
    if name == "text_browser":
        pages = [output.data["text/html"] for output in outputs(found) if "data" in output]
        assert any("<iframe sandbox=" in page for page in pages)
    else:
        assert "application/vnd.plotly.v1+json" in kinds
    assert "cdn" not in json.dumps([output.get("data", {}) for output in outputs(found)]).lower()


def test_results_of_a_kernel_show_themselves(run: Path, tmp_path: Path) -> None:
    linked_run(run, tmp_path)
    script = tmp_path / "results.py"
    script.write_text(
        "# %% [markdown]\n# # Results\n# %%\n"
        "from pathlib import Path\nimport dsteer_tl as ds\n"
        "from dsteer_tl.claims.results import Ledger\n"
        "tables = ds.RunDirectory.open(Path('runs/tales')).tables()\n"
        "ledger = Ledger(ds.judge(tables))\nledger\n"
        "# %%\nds.ShiftSet.open(Path('runs/tales/capture'))\n"
        "# %%\nds.show(tables['shifts'])\nds.show(Path('runs/tales/figures/kl_recovery.html'))\n"
    )
    found = execute(script, tmp_path)
    assert found.error == ""
    shown = [output.data["text/html"] for output in outputs(found) if "data" in output]
    assert len(shown) == 4
    assert "Shifts are nearly parallel" in shown[0]
    assert "last_prompt" in shown[1]
    assert "position_kind" in shown[2]
    assert shown[3].startswith("<iframe sandbox=")


def test_run_all_names_what_failed(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The study was not run here, so that its scripts have no tables.
    assert main([str(run), "--only", "lee2024_probe"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED    lee2024_probe" in printed
    assert "RunError" in printed and "toxicity" in printed
    assert "0 of 1 notebooks" in printed


def test_run_all_wants_a_run_and_known_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "no manifest.json" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--only", "nothing"])
    assert "no script nothing" in capsys.readouterr().err
