"""``dsteer moments``: spectra and v* of any number of prompts, without keeping their rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dsteer_tl.capture import CaptureConfiguration
from dsteer_tl.experiment.model_settings import ModelConfiguration
from dsteer_tl.experiment.run_directory import RunDirectory, StageReport, hardware, versions
from dsteer_tl.measurements.moment_tables import moment_tables
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import PROMPT_KINDS
from dsteer_tl.processes import Processes
from dsteer_tl.steering_vector import SteeringVector
from dsteer_tl.streaming.accumulation import AccumulationConfiguration, accumulate_shifts
from dsteer_tl.streaming.probe_table import ProbeTable, probe_table_from_prompts
from dsteer_tl.streaming.shift_moments import ShiftMoments

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

#: Stage in the manifest.
STREAMING = "moments"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingConfiguration:
    """What ``dsteer moments`` measures, and how.

    Attributes:
        model: How the checkpoints are loaded.
        column: Column of the prompts; "prompt", else "text", where it is empty.
        kinds: Position kinds.
        sites: Sites; all where it is empty.
        limit: At most so many prompts; 0 for all.
        seed: Seed of the Gaussian null.
        token_budget: Padded tokens a batch.
        accumulation: How the work is cut.
        progress: Show progress bars.
    """

    model: ModelConfiguration = field(default_factory=ModelConfiguration)
    column: str = ""
    kinds: tuple[str, ...] = PROMPT_KINDS
    sites: tuple[str, ...] = ()
    limit: int = 0
    seed: int = 0
    token_budget: int = 4096
    accumulation: AccumulationConfiguration = field(default_factory=AccumulationConfiguration)
    progress: bool = True


def stream_moments(
    base: str,
    policy: str,
    source: str | Path | Dataset | IterableDataset,
    out: Path,
    configuration: StreamingConfiguration | None = None,
    *,
    processes: Processes | None = None,
) -> StageReport:
    """Tokenise prompts, accumulate the moments of their shifts, and write tables and vectors.

    Leaves ``probes/`` and ``moments/``, which the same command continues from, the tables
    ``streamed_spectra``, ``streamed_nulls`` and ``streamed_singular_values``, v* of each site as
    ``vectors/<position kind>/<site>.safetensors``, and a manifest.

    Args:
        base: Base model: directory, hub id, or ``tales``.
        policy: Policy: directory, hub id, or a LoRA adapter.
        source: Prompts: a file, a hub data set or a ``datasets`` object.
        out: Directory of the results.
        configuration: Settings.
        processes: The processes of the launch, which divide the prompts; one without it.

    Raises:
        DsteerError: Something is wrong with prompts, models, settings or the disk.
    """
    configuration = configuration or StreamingConfiguration()
    processes = processes or Processes()
    model = configuration.model
    pair = ModelPair.load(
        base,
        policy,
        backend=model.backend,
        options=model.load_options(model.revision),
        policy_options=model.load_options(model.policy_revision),
    )
    probes = _probes(pair, source, out / "probes", configuration, processes)
    moments = accumulate_shifts(
        pair,
        probes,
        sites=configuration.sites or None,
        folder=out / "moments",
        configuration=CaptureConfiguration(
            token_budget=configuration.token_budget, progress=configuration.progress
        ),
        accumulation=configuration.accumulation,
        processes=processes,
    )
    report = StageReport(STREAMING, ran=False, seconds=0.0)
    if processes.is_main:
        directory = RunDirectory(out)
        inputs = [probes.content_hash(), moments.hashes, moments.sites, moments.kinds]
        report = directory.stage(
            STREAMING,
            [*inputs, configuration.seed],
            lambda: _write(directory, pair, moments, configuration.seed),
        )
        directory.describe(
            {
                "models": {
                    "base": {"source": base},
                    "policy": {"source": policy},
                    "weights": moments.hashes,
                },
                "prompts": {"source": str(source), "kept": len(probes), "dropped": probes.dropped},
                "preflight": [asdict(item) for item in pair.preflight.items],
                "versions": versions(),
                "hardware": hardware(),
                "seeds": {"measurement": configuration.seed},
            }
        )
    processes.wait()
    return report


def _probes(
    pair: ModelPair,
    source: str | Path | Dataset | IterableDataset,
    folder: Path,
    configuration: StreamingConfiguration,
    processes: Processes,
) -> ProbeTable:
    """The main process tokenises, and all open what it wrote."""
    if processes.is_main:
        probe_table_from_prompts(
            pair.tokenizer,
            source,
            folder,
            column=configuration.column or None,
            kinds=configuration.kinds,
            limit=configuration.limit,
            n_ctx=min(pair.base.n_ctx, pair.policy.n_ctx),
        )
    processes.wait()
    return ProbeTable(folder)


def _write(
    directory: RunDirectory, pair: ModelPair, moments: ShiftMoments, seed: int
) -> Sequence[Path]:
    tables = moment_tables(moments, seed=seed)
    directory.drop(STREAMING)  # vectors of sites or kinds that are not measured now
    written = [
        directory.write_table("streamed_spectra", tables.spectra),
        directory.write_table("streamed_nulls", tables.nulls),
        directory.write_table("streamed_singular_values", tables.singular_values),
    ]
    readouts = dict.fromkeys(lens.readout.content_hash() for lens in (pair.base, pair.policy))
    for site, kind, found in moments.places():
        path = directory / "vectors" / kind / f"{site}.safetensors"
        vector = SteeringVector(
            found.mean, site, "v_star", kind, found.n, moments.hashes, tuple(readouts)
        )
        vector.save(path)
        written.append(path)
    return written
