"""The tables of the claims once more: in another precision, and on other prompts.

What a claim says should not hang on the number format of the weights or on which half of the
prompts was kept. Residuals of halves are those of the run; another precision and unrelated text are
captured anew. Fewer draws and rows than in a run, as only verdicts are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
from tqdm.auto import tqdm

from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.lens_model import LensModel
from dsteer_tl.measurements.localisation import patching_table
from dsteer_tl.measurements.readout import direction_table, identity_table, projection_table
from dsteer_tl.measurements.recovery_tables import kl_recovery_table
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.measurements.shift_statistics import (
    cosine_table,
    mass_table,
    null_table,
    shift_table,
)
from dsteer_tl.measurements.spectral import entropy_table
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from dsteer_tl.preferences import EncodedPair
from dsteer_tl.shift_set import FEWEST_PROMPTS
from dsteer_tl.sites import FINAL

Precision = Literal["float32", "bfloat16"]
#: Gives base and policy in a precision, with the models captured beside them as controls.
LoadModels = Callable[[Precision], tuple[ModelPair, Mapping[str, LensModel]]]
#: Dimension and choice, as `dsteer_tl.claims.choices` names them.
Choice = tuple[str, str]

FIRST_HALF, SECOND_HALF, UNRELATED = "first half", "second half", "unrelated text"
_PRECISION, _PROMPTS, _BOTH = "precision", "prompts", "precision · prompts"

#: At most so many bootstrap draws, draws of a null, pairs patched and pairs of the identity.
_DRAWS, _NULL_DRAWS, _PATCHED, _IDENTITIES = 200, 3, 16, 12
#: The one coefficient that a claim reads.
_COEFFICIENTS = (1.0,)
#: Rows kept of the position kinds with the most rows: a prompt gives many response tokens.
_KINDS = ("last_prompt", "response")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Captured:
    """One capture with the models and sequences that it is of."""

    pair: ModelPair
    shift_set: ShiftSet
    probes: Sequence[Probe]
    encoded: Sequence[EncodedPair]

    def with_enough_prompts(self) -> _Captured | None:
        """The same without position kinds that too few prompts have; None where none is left."""
        rows = self.shift_set
        kinds = [kind for kind in rows.kinds if len(set(rows.prompts(kind))) >= FEWEST_PROMPTS]
        return replace(self, shift_set=rows.restricted(kinds=kinds)) if kinds else None

    def of(self, prompts: Iterable[int]) -> _Captured:
        """The same for fewer prompts."""
        kept = frozenset(prompts)
        return replace(
            self,
            shift_set=self.shift_set.restricted(prompts=kept),
            probes=[probe for probe in self.probes if probe.prompt in kept],
        )


def other_capture_tables(
    load: LoadModels,
    probes: Sequence[Probe],
    shift_set: ShiftSet,
    configuration: MeasurementConfiguration,
    *,
    encoded: Sequence[EncodedPair] = (),
    unrelated: Sequence[Probe] = (),
    precision: Precision = "float32",
    progress: bool = True,
) -> dict[Choice, dict[str, pd.DataFrame]]:
    """The tables that the claims read, by dimension and choice.

    ``("precision", "bfloat16")`` has the run's prompts in the other precision (the weights are
    rounded before the forward pass; residuals are kept as float32), ``("prompts", …)`` the run's
    precision on the first half, the second half (`ShiftSet.halves`) and unrelated text, and
    ``("precision · prompts", "bfloat16 · …")`` both, with the tables of rows 6, 7, 8, 13 and 18
    alone. Each has ``shifts``, ``cosines``, ``nulls``, ``mass`` and ``kl_recovery``; a single
    choice also ``entropy`` and ``patching``, and where there are pairs ``identity``, ``directions``
    and ``projections``.

    Args:
        load: Gives the models, in the precision of the run and in the other one.
        probes: The sequences of the run.
        shift_set: Their residuals.
        configuration: Settings of the run; draws and pairs are cut.
        encoded: Tokenised pairs in the order of `Probe.order`; empty where there are only prompts.
        unrelated: Probes in neutral running text, as no preference is about it; empty for none.
        precision: Of the run.
        progress: Show progress bars.

    Raises:
        ShapeError: Residuals are not finite in the other precision.
    """
    quick = replace(
        configuration,
        draws=min(_DRAWS, configuration.draws),
        null_draws=min(_NULL_DRAWS, configuration.null_draws),
        patching_pairs=min(_PATCHED, configuration.patching_pairs),
        coefficients=_COEFFICIENTS,
    )
    other: Precision = "bfloat16" if precision == "float32" else "float32"
    found: dict[Choice, dict[str, pd.DataFrame]] = {}
    parts = 6 + 2 * bool(unrelated)
    with tqdm(total=parts - 1, desc="multiverse", unit="capture", disable=not progress) as bar:

        def add(dimension: str, choice: str, captured: _Captured, *, whole: bool) -> None:
            enough = captured.with_enough_prompts()
            if enough is not None:  # a half of few prompts cannot be halved again
                found[dimension, choice] = _tables(enough, quick, whole=whole)
            bar.update()

        for dtype in (precision, other):
            same = dtype == precision
            pair, controls = load(dtype)
            rows = shift_set if same else _captured_rows(pair, probes, controls, shift_set, quick)
            run = _Captured(pair=pair, shift_set=rows, probes=probes, encoded=encoded)
            if not same:
                add(_PRECISION, dtype, run, whole=True)
            sets = dict(zip((FIRST_HALF, SECOND_HALF), _halves(rows, quick.seed), strict=True))
            captures = {choice: run.of(prompts) for choice, prompts in sets.items()}
            if unrelated:
                text = _captured_rows(pair, unrelated, controls, shift_set, quick)
                captures[UNRELATED] = _Captured(
                    pair=pair, shift_set=text, probes=unrelated, encoded=()
                )
            for choice, captured in captures.items():
                dimension = _PROMPTS if same else _BOTH
                add(dimension, choice if same else f"{dtype} · {choice}", captured, whole=same)
            del pair, controls, run, captures
    return found


def _halves(shift_set: ShiftSet, seed: int) -> tuple[frozenset[int], frozenset[int]]:
    return shift_set.halves(max(shift_set.kinds, key=shift_set.count), seed)


def _captured_rows(
    pair: ModelPair,
    probes: Sequence[Probe],
    controls: Mapping[str, LensModel],
    like: ShiftSet,
    configuration: MeasurementConfiguration,
) -> ShiftSet:
    return capture_shifts(
        pair,
        probes,
        sites=like.sites,
        controls=controls,
        configuration=CaptureConfiguration(token_budget=configuration.token_budget, progress=False),
    )


def _tables(
    captured: _Captured, configuration: MeasurementConfiguration, *, whole: bool
) -> dict[str, pd.DataFrame]:
    """The tables of one capture.

    Args:
        captured: Residuals and models.
        configuration: How finely.
        whole: Also the tables of the rows that are not crossed.
    """
    rows = captured.shift_set
    layers = [site for site in rows.sites if site != FINAL]
    ends = [site for site in rows.sites if site == FINAL or site == layers[-1]]
    top = rows.restricted(sites=ends)
    pair = captured.pair
    found = {
        "shifts": shift_table(rows if whole else top),
        "cosines": cosine_table(top),
        "nulls": null_table(top, configuration),
        "mass": mass_table(top, configuration),
        "kl_recovery": kl_recovery_table(
            pair,
            top.restricted(kinds=[kind for kind in top.kinds if kind in _KINDS] or top.kinds),
            None,
            configuration,
        ),
    }
    if whole:
        late = layers[-max(1, len(layers) // 3) :]
        kind = "last_prompt" if "last_prompt" in rows.kinds else rows.kinds[0]
        found["entropy"] = entropy_table(
            rows.restricted(sites=[*late, *ends[1:]], kinds=[kind]), configuration
        )
        first = [
            replace(probe, positions={kind: probe.positions[kind]})
            for probe in captured.probes
            if probe.positions.get(kind)
        ]
        found["patching"] = patching_table(pair, first, configuration, progress=False)
        found.update(_pair_tables(captured, configuration))
    return {name: table for name, table in found.items() if len(table)}


def _pair_tables(
    captured: _Captured, configuration: MeasurementConfiguration
) -> dict[str, pd.DataFrame]:
    rows, probes = captured.shift_set, captured.probes
    if not captured.encoded or "divergence" not in rows.kinds:
        return {}
    pairs = [captured.encoded[probe.order] for probe in probes[:_IDENTITIES]]
    return {
        "identity": identity_table(captured.pair, pairs),
        "directions": direction_table(captured.pair, rows, probes, configuration),
        "projections": projection_table(captured.pair, rows, probes, configuration),
    }
