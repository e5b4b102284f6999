"""One small run of the whole pipeline, shared by the tests of the scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsteer_tl.cli import main
from dsteer_tl.experiment.run_directory import RunDirectory
from tests.stress_tables import every_table

#: The smallest settings that give every table rows.
SETTINGS = (
    "preferences.sampling.prompts=48",
    "preferences.sampling.completions_per_prompt=6",
    "preferences.sampling.max_new_tokens=16",
    "preferences.sampling.whole_sentences=false",
    "preferences.sampling.margin=0.05",
    "preferences.held_out_share=0.4",
    "training.max_steps=6",
    "training.evaluate_every=2",
    "measurement.response_limit=2",
    "measurement.draws=20",
    "measurement.null_draws=2",
    "measurement.gradient_pairs=6",
    "measurement.patching_pairs=6",
    "measurement.coefficients=[0.0, 0.5, 1.0]",
    "measurement.ranks=[1, 2]",
    "audit.multiverse=false",
    "sweep.prompts=4",
    "sweep.max_new_tokens=8",
    "sweep.interpolate=[-1.0, 0.0, 1.0, 2.0]",
    "sweep.invert=[0.0, 0.5, 1.0]",
    "sweep.draws=20",
    "toxicity.labels=sampled",
    "toxicity.label_texts=400",
    "toxicity.label_margin=0.05",
    "toxicity.prompt_limit=8",
    "toxicity.windows=6",
    "toxicity.window_tokens=32",
    "toxicity.window_prompt=8",
    "toxicity.vectors=16",
    "toxicity.neurons=3",
    "toxicity.scales=[1.0, 10.0]",
    "toxicity.max_new_tokens=6",
    "toxicity.shuffled_pairs=false",
    "toxicity.draws=20",
    "stress.tests=[]",
)


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the model inside the package."""
    folder = tmp_path_factory.mktemp("run") / "tales"
    arguments = ["reproduce", "--out", str(folder), "--quiet"]
    assert main([*arguments, "--no-images", "--set", *SETTINGS]) == 0
    # Real ones train a dozen variants: tests/stress does that on tiny models.
    directory = RunDirectory.open(folder)
    for name, table in every_table().items():
        directory.write_table(name, table)
    assert main(["figures", str(folder), "--no-images"]) == 0
    return folder
