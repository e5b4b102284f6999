"""Every script runs on a finished run, prints nothing, and redraws its figures as they were."""

from __future__ import annotations

import ast
import logging
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dsteer_tl.claims import LEDGER
from dsteer_tl.errors import RunError

FOLDER = Path(__file__).resolve().parents[2] / "analyses"
#: Scripts that read a run, and the figures that each shows.
FIGURES = {
    "figure_1a_logit_geometry": ("figure_1a_logit_geometry", "figure_1a_logit_lens"),
    "figure_1b_gradient_field": ("figure_1b_gradient_field",),
    "figure_1c_clouds": ("figure_1c_clouds",),
    "figure_3_cosines": ("figure_3_cosines",),
    "figure_4a_entropy": ("figure_4a_entropy",),
    "figure_4b_singular_values": ("figure_4b_singular_values", "sigma_ratio", "mass"),
    "kl_recovery": ("kl_recovery", "rank_recovery"),
    "formation": ("formation", "training_curve"),
    "localisation": ("localisation",),
    "tokens": ("tokens",),
    "figure_2a_interpolation": ("figure_2a",),
    "figure_2b_inversion": ("figure_2b",),
    "dose_response": ("dose_response",),
    "collapse": ("collapse",),
    "refusals": ("refusal",),
    "text_browser": ("text_browser",),
    "contributions": ("contributions",),
    "component_patching": ("component_patching",),
    "margin_ledger": ("margin_ledger",),
    "weight_space": ("weight_spectra",),
    "token_shifts": ("token_shifts",),
    "separation": ("separation",),
    "multiverse": ("multiverse",),
    "stress_embeddings": ("stress_embeddings",),
    "stress_heterogeneous": ("stress_heterogeneous",),
    "stress_models": ("stress_models",),
    "stress_encodings": ("stress_encodings",),
    "stress_turns": ("stress_turns",),
    "stress_prompts": ("stress_prompts",),
    "stress_causes": ("stress_causes",),
    "stress_losses": ("stress_losses",),
    "stress_sensitivity": ("stress_sensitivity",),
    "lee2024_probe": ("toxicity_probe",),
    "lee2024_value_vectors": ("toxicity_value_vectors", "toxicity_tokens"),
    "lee2024_interventions": ("toxicity_interventions",),
    "lee2024_weights": ("toxicity_weights",),
    "lee2024_activations": ("toxicity_activations",),
    "lee2024_offsets": ("toxicity_offsets",),
    "lee2024_residuals": ("toxicity_residuals",),
    "lee2024_value_changes": ("toxicity_value_changes",),
    "lee2024_decomposition": ("toxicity_decomposition",),
    "lee2024_logit_lens": ("toxicity_lens",),
    "lee2024_unalign": ("toxicity_unalign",),
    "lee2024_patching": ("toxicity_patching",),
}
#: Figures that a row of the ledger links to.
CLAIMED = {claim.figure for claim in LEDGER}
#: Scripts that start from a pair of models and no run.
FROM_A_PAIR = ("your_own_pair", "sweep_your_own_vector")


def run_script(
    name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> dict[str, Any]:
    """Run a script as `python analyses/<name>.py …` would, in an empty working directory."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    # A script configures logging for itself; here pytest has the handlers.
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def test_every_script_that_shows_a_figure_is_tested() -> None:
    found = {path.stem for path in FOLDER.glob("*.py") if "**Shown.**" in path.read_text("utf-8")}
    assert found == set(FIGURES)


def test_every_row_of_the_ledger_has_a_script() -> None:
    shown = {figure for figures in FIGURES.values() for figure in figures}
    assert {claim.figure for claim in LEDGER} <= shown
    text = "".join((FOLDER / f"{name}.py").read_text("utf-8") for name in FIGURES)
    assert all(re.search(rf"\b[Rr]ows? {claim.id}\b|, row {claim.id}\b", text) for claim in LEDGER)


@pytest.mark.parametrize("name", sorted({*FIGURES, *FROM_A_PAIR}))
def test_script_opens_as_a_notebook_and_says_what_is_shown(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text("utf-8")
    assert text.startswith("# %% [markdown]\n# # ")
    introduction = text.split("# %%\n")[0]
    assert "**Null" in introduction
    if CLAIMED & set(FIGURES.get(name, ())):
        assert "**Claim" in introduction or "**Question" in introduction
    assert f"analyses/{name}.py" in introduction
    called = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert "print" not in called


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_script_shows_figures_and_numbers_of_a_run(
    name: str,
    run_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages = [run_directory / "figures" / f"{figure}.html" for figure in FIGURES[name]]
    before = {page: page.read_bytes() for page in pages}
    for page in pages:
        page.unlink()
    found = run_script(name, [str(run_directory)], monkeypatch, tmp_path)
    # The script draws what `dsteer reproduce` drew, byte for byte.
    assert {page: page.read_bytes() for page in pages} == before
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
    judged = [found["ledger"]] if CLAIMED & set(FIGURES[name]) else []
    for table in (found["numbers"], *judged):
        assert isinstance(table, pd.DataFrame)
        assert 0 < len(table) <= 60
    assert all(set(table.index) <= {claim.id for claim in LEDGER} for table in judged)


def test_script_without_a_run_says_which_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"runs/tales is no run directory"):
        run_script("figure_3_cosines", [], monkeypatch, tmp_path)


def test_your_own_pair_steers_both_ways(
    run_directory: Path,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(repository / "dsteer_tl/assets/tales-base"), str(run_directory / "policy")]
    found = run_script("your_own_pair", arguments, monkeypatch, tmp_path)
    assert capsys.readouterr().out == ""
    assert list(found["continuations"].index) == [
        "base",
        "policy",
        "base + v*",
        "base + random",
        "policy - v*",
    ]
    assert found["continuations"]["continuation"].str.len().min() > 0
    assert found["control"].norm == pytest.approx(found["v_star"].norm)
    assert found["numbers"]["cos_loo"].between(-1, 1).all()


def test_what_was_not_measured_is_listed_with_its_reason(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_script("figure_2a_interpolation", [str(run_directory)], monkeypatch, tmp_path)
    idle = found["idle"].set_index("metric")["reason"]
    assert "judge endpoint" in idle["judge_g_eval"]
    assert idle.str.len().min() > 0
    assert not set(idle.index) & set(found["numbers"].reset_index()["metric"])


def test_the_gap_from_policy_to_base_stands_beside_what_inversion_leaves(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = run_script("figure_2b_inversion", [str(run_directory)], monkeypatch, tmp_path)[
        "numbers"
    ]
    kl = numbers.xs("kl_base", level="metric").iloc[0]
    # The base is no distance from itself, and taking v* out of the policy brings it nearer.
    assert kl["base value"] == pytest.approx(0, abs=1e-9)
    assert kl["base value"] < kl["policy - v_star"] < kl["policy value"]


def test_sweep_your_own_vector_plans_first_and_keeps_its_batches(
    run_directory: Path,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "swept"
    arguments = [
        str(repository / "dsteer_tl/assets/tales-base"),
        str(run_directory / "policy"),
        str(folder),
    ]
    found = run_script("sweep_your_own_vector", arguments, monkeypatch, tmp_path)
    assert capsys.readouterr().out == ""
    completions = found["completions"]
    # λ = 0 is run once for both vectors, in each direction.
    repeated = 2 * len(found["prompts"])
    assert found["description"].startswith(f"prompts: {len(completions) - repeated} completions")
    assert found["control"].norm == pytest.approx(found["v_star"].norm)
    assert set(completions["vector"]) == {"v_star", "random"}
    assert not set(found["prompts"]) & set(found["estimating"])
    reasons = found["statuses"].set_index("metric")["reason"]
    assert reasons["repeated_4grams"] == ""
    assert "pairs" in reasons["kl_base"]
    assert {path.name for path in (folder / "figures").glob("*.html")} == {
        "collapse.html",
        "text_browser.html",
    }
    parts = {path: path.stat().st_mtime_ns for path in (folder / "parts").glob("*.parquet")}
    assert parts
    again = run_script("sweep_your_own_vector", arguments, monkeypatch, tmp_path)
    pd.testing.assert_frame_equal(again["completions"], completions)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


def test_the_notebook_example_of_the_study_runs_when_pasted(
    run_directory: Path,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (repository / "docs" / "toxicity.md").read_text("utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tales").symlink_to(run_directory)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "docs/toxicity.md", "exec"), found)
    shown = capsys.readouterr().out
    assert "promoted" in shown and "The old king said" in shown
    assert len(found["near"]) == 128
