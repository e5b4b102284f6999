"""The commands of ``dsteer`` with their flags and help; what they do is in `cli`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Run the whole story: preferences, DPO, capture, tables, claims, figures."""

    preset: str = "tales"
    """Settings to start from; `dsteer presets` lists them."""
    config: Path | None = None
    """A YAML file over the preset."""
    out: Path | None = None
    """Run directory; default runs/<preset>."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Single settings over the file, as in --set training.beta=0.1 preferences.limit=200."""
    base: str | None = None
    """Base model: directory, hub id, or `tales`."""
    policy: str | None = None
    """Policy: directory or hub id; without it the policy is trained."""
    preferences: tuple[str, ...] = ()
    """Preference files or hub ids instead of the preset's."""
    require_images: bool = False
    """Fail if PNG images cannot be made."""
    images: bool = True
    """Make PNG images where kaleido and a browser are there."""
    print_config: bool = False
    """Print the resolved settings as YAML and stop."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a policy from a base and preference pairs, without the analysis."""

    preset: str = "tales"
    """Settings to start from."""
    config: Path | None = None
    """A YAML file over the preset."""
    out: Path = Path("runs/train")
    """Run directory; the policy is written to <out>/policy."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Single settings over the file."""
    base: str | None = None
    """Base model: directory, hub id, or `tales`."""
    preferences: tuple[str, ...] = ()
    """Preference files or hub ids instead of the preset's."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True, kw_only=True)
class Analyze:
    """Measure a base and a policy that exist already."""

    base: str
    """Base model: directory, hub id, or `tales`."""
    policy: str
    """Policy: directory, hub id, or a LoRA adapter."""
    out: Path
    """Run directory."""
    prompts: Path | None = None
    """A file of prompts (.jsonl, .txt, .csv, .parquet)."""
    preferences: tuple[str, ...] = ()
    """Preference files or hub ids; all pairs are measured."""
    config: Path | None = None
    """A YAML file of settings."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Single settings over the file, as in --set measurement.draws=1000 model.dtype=bfloat16."""
    drop_overlong: bool = False
    """Drop and count sequences longer than the context instead of refusing them."""
    require_images: bool = False
    """Fail if PNG images cannot be made."""
    images: bool = True
    """Make PNG images where kaleido and a browser are there."""
    print_config: bool = False
    """Print the resolved settings as YAML and stop."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Add behaviour sweeps to a finished run: more suites, other coefficients, a judge."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    suite: tuple[str, ...] = ()
    """Prompt suites to add, as `advbench` (from the hub) or `advbench=prompts.csv`."""
    judge: str | None = None
    """URL of an OpenAI-compatible server; the key comes from DSTEER_JUDGE_API_KEY."""
    judge_model: str | None = None
    """Name of the judge's model on that server."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Single settings of the sweep, as in --set prompts=64 interpolate=[0,1,2]."""
    plan: bool = False
    """Say what would run and what it costs, and stop."""
    require_images: bool = False
    """Fail if PNG images cannot be made."""
    images: bool = True
    """Make PNG images where kaleido and a browser are there."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True, kw_only=True)
class Toxicity(Reproduce):
    """Run the case study of Lee et al. 2024: probe, value vectors, what changed, un-align."""

    directory: tyro.conf.Positional[Path | None] = None
    """A run whose settings and policy are used; without it, one is made from the preset."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Single settings over the file, as in --set toxicity.scorer=lexicon toxicity.vectors=64."""


@dataclass(frozen=True, kw_only=True)
class Stress:
    """Put a finished run to the stress tests: trained variants, other prompts, other runs."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    test: tuple[str, ...] = ()
    """Tests to run; without it all whose data are there, and the others are NOT RUN."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Single settings of the tests, as in --set prompts=32 harmful=advbench=harmful.csv."""
    require_images: bool = False
    """Fail if PNG images cannot be made."""
    images: bool = True
    """Make PNG images where kaleido and a browser are there."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Load a base and a policy, run self-checks and preflight, and say what differs."""

    base: str
    """Base model: directory, hub id, or `tales`."""
    policy: str
    """Policy: directory, hub id, or a LoRA adapter."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Single settings, as in --set model.backend=hooked."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Stream any number of prompts: v*, spectra and cosines of the shifts, without keeping rows."""

    base: str
    """Base model: directory, hub id, or `tales`."""
    policy: str
    """Policy: directory, hub id, or a LoRA adapter."""
    prompts: str
    """A file of prompts (.txt, .jsonl, .csv, .tsv, .parquet, also .gz) or a hub data set."""
    out: Path
    """Directory of the results."""
    column: str = ""
    """Column of the prompts; default "prompt", else "text"."""
    sites: tuple[str, ...] = ()
    """Sites, as h resid_post.3; default all."""
    limit: int = 0
    """At most so many prompts; 0 for all."""
    groups: int = 16
    """Parts of the work with a state each on disk; at least as many as processes."""
    checkpoint_seconds: float = 300.0
    """Least time between two states of a group."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Single settings, as in --set model.dtype=bfloat16 measurement.token_budget=8192."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Rebuild every figure and the ledger of a run from its tables; no model is loaded."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    require_images: bool = False
    """Fail if PNG images cannot be made."""
    images: bool = True
    """Make PNG images where kaleido and a browser are there."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Rebuild report.html from what a run has stored; no model is loaded."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    images: bool = True
    """Make PNG images where kaleido and a browser are there."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Hash every file of a run again and say what was altered or is missing."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Put the ledgers of several runs side by side."""

    directories: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, two or more."""
    out: Path | None = None
    """Write the comparison as one HTML page here."""


@dataclass(frozen=True, kw_only=True)
class Presets:
    """List the presets with the time and memory to expect."""

    name: str | None = field(default=None)
    """Print one preset as YAML."""
    launch: str | None = None
    """Print one of accelerate's launch configurations, as in --launch fsdp-8."""


Command = (
    Reproduce
    | Train
    | Analyze
    | Sweep
    | Toxicity
    | Stress
    | Moments
    | Figures
    | Report
    | Verify
    | Compare
    | Check
    | Presets
)
