"""Prompts that a stress test makes or loads: their shifts, their continuations, their table.

They are read where they predict the reply, at their last token. The steering vector they are
projected on comes from the run's captured shifts on prompts that no test measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from dsteer_tl.capture import CaptureConfiguration, capture_shifts
from dsteer_tl.controls import Interval, bootstrap, bootstrap_mean, bootstrap_ratio
from dsteer_tl.cosines import mean_shift, unit_rows
from dsteer_tl.distributions import kl
from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from dsteer_tl.preferences import get_scorer
from dsteer_tl.preferences.sampled_text import decode
from dsteer_tl.sites import FINAL, resid_post
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.stress.columns import PROMPT_COLUMNS
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.text_encodings import (
    Ids,
)
from dsteer_tl.toxicity.continuing import continue_prompts

KIND = "last_prompt"


Values = Float[np.ndarray, " prompt"]
#: Fewest prompts of a condition: an interval needs groups to resample.
FEWEST = 4


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowCollector:
    """Rows of a table of one stress test, each a statistic with its interval over prompts.

    Attributes:
        test: Name of the test.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.
        rows: What is collected so far.
    """

    test: str
    draws: int
    seed: int
    rows: list[dict[str, object]] = field(default_factory=list)

    def add(
        self, condition: str, role: str, statistic: str, found: Interval, n: int, site: str = ""
    ) -> None:
        """One statistic with its interval."""
        cells = (self.test, condition, role, site, KIND, statistic)
        values = (found.value, found.low, found.high, n)
        self.rows.append(dict(zip(PROMPT_COLUMNS, (*cells, *values), strict=True)))

    def count(
        self, condition: str, role: str, statistic: str, value: float, n: int, site: str = ""
    ) -> None:
        """A number without an interval."""
        nan = float("nan")
        known = Interval(value=float(value), low=nan, high=nan, draws=0)
        self.add(condition, role, statistic, known, n, site)

    def mean(
        self, condition: str, role: str, statistic: str, values: Values, site: str = ""
    ) -> None:
        """Mean over prompts."""
        found = bootstrap_mean(values, draws=self.draws, seed=self.seed)
        self.add(condition, role, statistic, found, len(values), site)

    def ratio(
        self,
        condition: str,
        role: str,
        statistic: str,
        above: Values,
        below: Values,
        site: str = "",
    ) -> None:
        """Ratio of means over the same prompts, resampled together."""
        found = bootstrap_ratio(above, below, draws=self.draws, seed=self.seed)
        self.add(condition, role, statistic, found, len(above), site)

    def between(
        self,
        condition: str,
        role: str,
        statistic: str,
        first: Values,
        second: Values,
        combine: Callable[[float, float], float],
        site: str = "",
    ) -> None:
        """A function of the means of two sets of different prompts."""
        values = np.concatenate([first, second])
        of_first = np.arange(len(values)) < len(first)

        def statistic_of(sample: np.ndarray, chosen: np.ndarray) -> float:
            if chosen.all() or not chosen.any():
                return float("nan")
            return combine(float(sample[chosen].mean()), float(sample[~chosen].mean()))

        found = bootstrap(statistic_of, values, of_first, draws=self.draws, seed=self.seed)
        self.add(condition, role, statistic, found, min(len(first), len(second)), site)

    def table(self) -> pd.DataFrame:
        """Everything collected."""
        return pd.DataFrame(self.rows, columns=list(PROMPT_COLUMNS))


def collector(test: str, inputs: StressInputs) -> RowCollector:
    """An empty collector with the draws of the measurement and the seed of the tests."""
    return RowCollector(test=test, draws=inputs.measurement.draws, seed=inputs.settings.seed)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PromptShifts:
    """Base states and shifts at the last token of each prompt.

    Attributes:
        base: Residuals of the base by site, float64.
        shifts: δ = h_policy − h_base by site, float64.
        kl: KL(policy‖base) of the next token, in nats.
    """

    base: Mapping[str, Float[np.ndarray, "prompt d_model"]]
    shifts: Mapping[str, Float[np.ndarray, "prompt d_model"]]
    kl: Values

    def statistics(self, site: str, vector: Float[np.ndarray, " d_model"]) -> dict[str, Values]:
        """What is reported of each shift at a site.

        ``projection`` is ⟨δ, v̂*⟩ in the units of the residual stream, ``cosine`` is cos(δ, v*),
        ``norm`` is ‖δ‖ and ``relative_norm`` is ‖δ‖/‖h_base‖.
        """
        shifts, unit = self.shifts[site], unit_rows(vector)
        norm = np.linalg.norm(shifts, axis=1)
        return {
            "projection": shifts @ unit,
            "cosine": unit_rows(shifts) @ unit,
            "norm": norm,
            "relative_norm": norm / np.linalg.norm(self.base[site], axis=1),
        }


def stress_sites(pair: ModelPair) -> tuple[str, str]:
    """The two sites of the tests: before the final norm, and ``h``."""
    return resid_post(pair.base.n_layers - 1), FINAL


def read_prompts(
    inputs: StressInputs, ids: Sequence[Ids], controls: Mapping[str, LensModel] | None = None
) -> dict[str, PromptShifts]:
    """Run base, policy and controls over prompts and read their last tokens.

    Returns:
        What was read by model: ``policy``, and each control in its place.

    Raises:
        DataError: A prompt is longer than the context.
    """
    pair, sites = inputs.pair, stress_sites(inputs.pair)
    probes = [Probe(i, row, {KIND: (len(row) - 1,)}, item=i) for i, row in enumerate(ids)]
    found = capture_shifts(
        pair,
        probes,
        sites=sites,
        controls=controls,
        configuration=CaptureConfiguration(
            token_budget=inputs.measurement.token_budget, progress=inputs.progress
        ),
    )
    base = {site: found.residuals("base", site, KIND).astype(np.float64) for site in sites}
    before = torch.from_numpy(found.residuals("base", FINAL, KIND))
    return {
        name: PromptShifts(
            base=base,
            shifts={site: found.shifts(site, KIND, name) for site in sites},
            kl=kl(
                _on_cpu(model),
                torch.from_numpy(found.residuals(name, FINAL, KIND)),
                _on_cpu(pair.base),
                before,
            ),
        )
        for name, model in {"policy": pair.policy, **(controls or {})}.items()
    }


def _on_cpu(model: LensModel) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda rows: model.readout(rows.to(model.device)).cpu()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HeldApart:
    """The run's prompts in two halves: one gives v*, the other is measured.

    Attributes:
        vectors: v* by site, from the captured shifts on the estimating half.
        measured: Token ids of the other half's prompts.
        swapped_vectors: v* by site from the measured half, which may judge the other half alone.
        estimating: Token ids of the half that gave `vectors`.
    """

    vectors: Mapping[str, Float[np.ndarray, " d_model"]]
    measured: tuple[Ids, ...]
    swapped_vectors: Mapping[str, Float[np.ndarray, " d_model"]]
    estimating: tuple[Ids, ...]


def held_apart(inputs: StressInputs) -> HeldApart:
    """Halve the captured prompts (`ShiftSet.halves`), so that no prompt judges its own vector.

    Raises:
        ConfigurationError: The last prompt token was not captured.
        DataError: There are fewer than four prompts a half.
    """
    found = inputs.shift_set
    if KIND not in found.kinds:
        raise ConfigurationError(
            f"stress tests read the last prompt token, but the run captured {found.kinds}: add "
            f"{KIND} to measurement.position_kinds, or leave that empty"
        )
    halves = found.halves(KIND, inputs.measurement.seed)
    prompts = found.prompts(KIND)
    texts = {
        probe.prompt: probe.ids[: probe.positions[KIND][0] + 1]
        for probe in inputs.probes
        if probe.positions.get(KIND)
    }
    sides = [tuple(texts[number] for number in sorted(half)) for half in halves]
    if min(map(len, sides)) < FEWEST:
        raise DataError(
            f"stress tests halve the prompts of the run: found {len(texts)}, expected at least "
            f"{2 * FEWEST}: hold out more"
        )
    vectors = [
        {
            site: mean_shift(found.shifts(site, KIND)[np.isin(prompts, list(half))])
            for site in stress_sites(inputs.pair)
        }
        for half in halves
    ]
    limit = inputs.settings.prompts
    return HeldApart(
        vectors=vectors[0],
        measured=sides[1][:limit],
        swapped_vectors=vectors[1],
        estimating=sides[0][:limit],
    )


def prompt_room(inputs: StressInputs) -> int:
    """Tokens of a prompt that leave room for a continuation in both contexts."""
    pair = inputs.pair
    return min(pair.base.n_ctx, pair.policy.n_ctx) - inputs.settings.max_new_tokens


def continuation_scores(inputs: StressInputs, ids: Sequence[Ids]) -> dict[str, Values]:
    """Scores of what base and policy write after each prompt; no continuation is left out.

    Both models meet the same random numbers (`continue_prompts`), so that ``score_gap``, policy
    less base, is paired.
    """
    settings, pair, score = inputs.settings, inputs.pair, get_scorer(inputs.scorer)
    decoding = Decoding(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
    )
    width = max(map(len, ids)) + settings.max_new_tokens
    rows = max(1, inputs.measurement.token_budget // width)
    found = {}
    for name, lens in (("base", pair.base), ("policy", pair.policy)):
        written = continue_prompts(lens, ids, decoding, batch_rows=rows)
        scores = score([decode(pair.tokenizer, row) for row in written])
        found[f"score_{name}"] = np.array(scores, dtype=np.float64)
    return found | {"score_gap": found["score_policy"] - found["score_base"]}


def divide(above: float, below: float) -> float:
    """The ratio of two numbers, NaN where the lower one is 0."""
    return above / below if below else float("nan")
