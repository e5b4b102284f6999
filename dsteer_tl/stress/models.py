"""One table over several finished runs: is the picture the same across models (row 33)?

Runs are read from their files alone (tables, ledger, index of the capture): no model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError, safe_open

from dsteer_tl.controls import Interval
from dsteer_tl.errors import ConfigurationError, RunError
from dsteer_tl.files import read_json
from dsteer_tl.sites import FINAL, depth_order
from dsteer_tl.stress.columns import CONTROL, MEASURED
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.prompt_shifts import (
    KIND,
    RowCollector,
)

#: Statistics of the table ``shifts`` that are compared, and the null of each in ``nulls``.
_STATISTICS = {
    "cos_loo_mean": "random_weights",
    "sigma_ratio": "gaussian_matched",
    "effective_rank": "",
    "relative_norm": "random_weights",
}
#: Vectors of ``kl_recovery`` that are compared: v*, and what it has to beat.
_RECOVERED = {"v_star": MEASURED, "random": CONTROL, "logit_bias_fitted": CONTROL}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StoredRun:
    """What is read of one finished run.

    Attributes:
        name: Its folder, numbered where two folders have one name.
        verdicts: Verdict by row of the ledger.
        tables: ``shifts``, ``kl_recovery`` and ``nulls``; the last may be empty.
        d_model: Width of the residual stream; None where the capture is gone.
        parameters: Of the policy; None where the run did not train it.
    """

    name: str
    verdicts: Mapping[int, str]
    tables: Mapping[str, pd.DataFrame]
    d_model: int | None
    parameters: int | None

    @property
    def n_layers(self) -> int:
        """Layers of the model: sites but for ``h``."""
        return len(set(self.tables["shifts"]["site"]) - {FINAL})


def read_stored_run(
    folder: Path, *, name: str = "", verdicts: Mapping[int, str] | None = None
) -> StoredRun:
    """Read a finished run from its directory.

    Args:
        folder: The run directory.
        name: What the run is called; by default its folder.
        verdicts: Of the ledger's rows, where they are not to be read from ``claims.json``.

    Raises:
        RunError: A file is missing or cannot be read.
    """
    if verdicts is None:
        content = read_json(folder / "claims.json")
        try:
            verdicts = {int(row["id"]): str(row["verdict"]) for row in content}
        except (TypeError, KeyError, ValueError) as error:
            raise RunError(
                f"{folder / 'claims.json'} is no ledger: expected a list of rows with id and "
                "verdict; judge the run again"
            ) from error
    tables = {name: _table(folder, name) for name in ("shifts", "kl_recovery")}
    nulls = folder / "tables" / "nulls.parquet"
    tables["nulls"] = _table(folder, "nulls") if nulls.is_file() else pd.DataFrame()
    return StoredRun(
        name=name or folder.resolve().name,
        verdicts=verdicts,
        tables=tables,
        d_model=_width(folder),
        parameters=_parameters(folder / "policy"),
    )


def models_table(inputs: StressInputs, directory: Path | None = None) -> pd.DataFrame:
    """The table ``stress_models``: this run beside the runs of ``stress.runs`` (row 33).

    The condition is the run. At ``h`` and before the final norm stand ``cos_loo_mean``,
    ``sigma_ratio``, ``effective_rank``, ``relative_norm`` and ``recovered`` (the share of
    KL(policy‖base) that base + v* removes), each with its control where the run has one:
    random weight changes, a Gaussian with the same mean, a random vector. The vector that recovers
    is named by the role, but for ``recovered_logit_bias_fitted``. Without a site stand
    ``n_layers``, ``d_model`` and ``parameters``, where they are known.

    Args:
        inputs: Which runs.
        directory: This run; by default the folder above that of the stress tests.

    Raises:
        ConfigurationError: No other runs are given.
        RunError: A run is incomplete.
    """
    collected = RowCollector(test="models", draws=1, seed=inputs.settings.seed)
    for run in _runs(inputs, directory or inputs.folder.parent, None):
        _add_run(collected, run)
    return collected.table()


def model_verdict_table(
    inputs: StressInputs,
    directory: Path | None = None,
    verdicts: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """The table ``stress_model_verdicts``: run, id (row of the ledger), verdict.

    Args:
        inputs: Which runs.
        directory: This run; by default the folder above that of the stress tests.
        verdicts: Of this run, where its ``claims.json`` is not written yet.

    Raises:
        ConfigurationError: No other runs are given.
        RunError: A run is incomplete.
    """
    return verdict_rows(_runs(inputs, directory or inputs.folder.parent, verdicts))


def verdict_rows(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """Run, id and verdict of every row of every run."""
    rows = [
        {"run": run.name, "id": number, "verdict": verdict}
        for run in runs
        for number, verdict in sorted(run.verdicts.items())
    ]
    return pd.DataFrame(rows, columns=["run", "id", "verdict"])


def _runs(
    inputs: StressInputs, directory: Path, verdicts: Mapping[int, str] | None
) -> list[StoredRun]:
    if not inputs.settings.runs:
        raise ConfigurationError(
            "needs stress.runs: directories of other finished runs, as runs/pythia-160m-hh"
        )
    names: dict[str, int] = {}
    found = []
    for index, folder in enumerate((directory, *map(Path, inputs.settings.runs))):
        name = folder.resolve().name
        names[name] = names.get(name, 0) + 1
        label = name if names[name] == 1 else f"{name} ({names[name]})"
        # While this run is being written its ledger may be that of an earlier one.
        own = verdicts if index == 0 else None
        if index == 0 and own is None and not (folder / "claims.json").is_file():
            own = {}
        found.append(read_stored_run(folder, name=label, verdicts=own))
    return found


def _add_run(collected: RowCollector, run: StoredRun) -> None:
    for statistic, number in (
        ("n_layers", run.n_layers),
        ("d_model", run.d_model),
        ("parameters", run.parameters),
    ):
        if number is not None:
            collected.count(run.name, MEASURED, statistic, number, 1)
    shifts, recovery, nulls = (run.tables[n] for n in ("shifts", "kl_recovery", "nulls"))
    shifts = shifts[shifts["position_kind"] == KIND]
    recovery = recovery[
        (recovery["position_kind"] == KIND)
        & (recovery["direction"] == "interpolate")
        & (recovery["coefficient"] == 1.0)
    ]
    last = max(set(shifts["site"]) - {FINAL}, key=depth_order, default=FINAL)
    for site in dict.fromkeys((last, FINAL)):
        here = shifts[shifts["site"] == site]
        for statistic, null in _STATISTICS.items():
            for value, n in zip(here[statistic], here["n"], strict=True):
                collected.count(run.name, MEASURED, statistic, value, int(n), site)
            if not null or nulls.empty:
                continue
            against = nulls[
                (nulls["statistic"] == statistic)
                & (nulls["site"] == site)
                & (nulls["position_kind"] == KIND)
                & (nulls["null"] == null)
            ]
            _add_intervals(collected, run.name, CONTROL, statistic, against, "draws", site)
        for vector, role in _RECOVERED.items():
            rows = recovery[(recovery["site"] == site) & (recovery["vector"] == vector)]
            rows = rows.rename(columns={"recovered": "value"})
            statistic = "recovered" if "_bias" not in vector else f"recovered_{vector}"
            _add_intervals(collected, run.name, role, statistic, rows, "n", site)


def _add_intervals(
    collected: RowCollector,
    name: str,
    role: str,
    statistic: str,
    rows: pd.DataFrame,
    count: str,
    site: str,
) -> None:
    columns = (rows[column] for column in ("value", "ci_low", "ci_high", count))
    for value, low, high, n in zip(*columns, strict=True):
        known = Interval(value=float(value), low=float(low), high=float(high), draws=0)
        collected.add(name, role, statistic, known, int(n), site)


def _table(folder: Path, name: str) -> pd.DataFrame:
    path = folder / "tables" / f"{name}.parquet"
    if not path.is_file():
        raise RunError(
            f"{path} is missing: {folder} is no finished run; finish it, or leave it out"
        )
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): it was altered or cut short") from error


def _width(folder: Path) -> int | None:
    """Width of the captured residuals at h, from the header of one file."""
    for path in sorted(folder.glob("capture/shard-*.safetensors")):
        shape = _shapes(path).get(f"base/{FINAL}")
        if shape:
            return shape[-1]
    return None


def _parameters(policy: Path) -> int | None:
    """Stored weights of a whole checkpoint; tied ones are stored, and counted, once."""
    files = sorted(policy.glob("model*.safetensors"))
    shapes = [shape for path in files for shape in _shapes(path).values()]
    total = 0
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        total += size
    return total or None


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            return {name: list(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} cannot be read ({error}): it was altered or cut short") from error
