"""Small finished runs on a real model, made once a session and shared by several suites.

They go through the command line. Tests that change a run directory work on a copy.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from dsteer_tl.cli import main
from tests.models import policy_of

#: Settings under which every stage takes a second or less.
QUICK = (
    "measurement.draws=40",
    "measurement.null_draws=3",
    "measurement.gradient_pairs=4",
    "measurement.patching_pairs=8",
    "measurement.coefficients=[0.0, 0.5, 1.0]",
    "measurement.ranks=[1, 2, 4]",
    "audit.unrelated_prompts=8",
    "sweep.prompts=3",
    "sweep.interpolate=[-1.0, 0.0, 1.0]",
    "sweep.invert=[0.0, 1.0]",
    "sweep.max_new_tokens=6",
    "sweep.draws=20",
)

_PLACES = ("in the park", "by the river", "at home", "near the big tree")
_HEROES = ("The dog", "A girl named Lily", "Tom", "The old man", "Mom", "The little bird")

#: Texts of several lengths that end in different tokens.
PROMPTS = tuple(f"{hero} was {place}" for hero in _HEROES for place in _PLACES)


def pairs() -> list[dict[str, str]]:
    """Chosen and rejected that differ at once, after one word, or after several."""
    found = []
    for index, prompt in enumerate(PROMPTS):
        opening = ("", " and then", " and saw a friend who")[index % 3]
        found.append(
            {
                "prompt": prompt,
                "chosen": f"{opening} was happy and smiled all day.",
                "rejected": f"{opening} felt sad and cried a lot.",
            }
        )
    return found


@cache
def folder() -> Path:
    """A folder for the runs, removed when Python ends."""
    path = Path(tempfile.mkdtemp(prefix="dsteer-runs-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def perturbed_policy(base: Path) -> Path:
    """The base with noise on every weight inside its blocks."""
    path = folder() / base.name / "policy"
    transformers_logging.disable_progress_bar()
    policy_of(AutoModelForCausalLM.from_pretrained(base)).save_pretrained(path)
    AutoTokenizer.from_pretrained(base).save_pretrained(path)
    return path


@cache
def pair_file() -> Path:
    path = folder() / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs()), "utf-8")
    return path


@cache
def prompt_file() -> Path:
    path = folder() / "prompts.txt"
    path.write_text("".join(prompt + "\n" for prompt in PROMPTS), "utf-8")
    return path


def pair_arguments(base: Path, policy: Path, out: Path) -> list[str]:
    return [
        *("analyze", "--base", str(base), "--policy", str(policy), "--out", str(out)),
        *("--preferences", str(pair_file()), "--no-images", "--quiet", "--set", *QUICK),
    ]


def prompt_arguments(base: Path, policy: Path, out: Path) -> list[str]:
    return [
        *("analyze", "--base", str(base), "--policy", str(policy), "--out", str(out)),
        *("--prompts", str(prompt_file()), "--no-images", "--quiet", "--set", *QUICK),
    ]


def reproduce_arguments(base: Path, out: Path, *more: str) -> list[str]:
    return [
        *("reproduce", "--base", str(base), "--out", str(out), "--no-images", "--quiet", "--set"),
        *QUICK,
        "preferences.sampling.prompts=24",
        "preferences.sampling.completions_per_prompt=4",
        "preferences.sampling.max_new_tokens=16",
        "preferences.sampling.margin=0.05",
        "preferences.held_out_share=0.5",
        "training.max_steps=4",
        "training.batch_size=4",
        "training.evaluate_every=2",
        "toxicity.enabled=false",
        "audit.multiverse=false",
        "stress.tests=[]",
        *more,
    ]


@cache
def pair_run(base: Path) -> Path:
    out = folder() / base.name / "pair_run"
    assert main(pair_arguments(base, perturbed_policy(base), out)) == 0
    return out


@cache
def prompt_run(base: Path) -> Path:
    out = folder() / base.name / "prompt_run"
    assert main(prompt_arguments(base, perturbed_policy(base), out)) == 0
    return out


@cache
def reproduced(base: Path, number: int = 1) -> Path:
    """Two runs of one configuration in two folders are told apart by their number."""
    out = folder() / base.name / f"reproduced{number}"
    assert main(reproduce_arguments(base, out)) == 0
    return out
