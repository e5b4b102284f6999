"""Scores of given sequences under every coefficient, by the cheapest exact engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.pair import ModelPair
from dsteer_tl.sites import FINAL
from dsteer_tl.steering.interventions import SIGNS, Direction, Intervention
from dsteer_tl.steering.logit_algebra import Line, score_grid
from dsteer_tl.steering.reference import ROLES, Reference, Role, compare
from dsteer_tl.steering.replay import Replay, logits_by_hooks, unsteered_logits
from dsteer_tl.steering.scored import Batch, Scored, TokenSequence, batches
from dsteer_tl.steering.sums import Sums

#: ``algebra``: one pass for all coefficients, at h. ``replay``: the blocks above the site, once a
#: coefficient. ``hooks``: a whole pass a coefficient, which the others must equal.
Engine = Literal["algebra", "replay", "hooks"]
#: Most logits of one model in a batch; a few arrays of that size in float64 are alive at a time.
_LOGIT_BUDGET = 2**25
#: Which model a direction steers.
HOSTS: dict[Direction, Role] = {"interpolate": "base", "invert": "policy"}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Setting:
    """One curve: an intervention along a grid of coefficients.

    Attributes:
        intervention: What is added.
        coefficients: λ, as they are reported.
        scales: The multiple of the vector that each λ stands for, without the sign of the
            direction. Equal to λ unless matched by KL.
        matching: ``norm``: one λ is one ‖v*‖ of any vector. ``kl``: as much KL as v* at that λ.
    """

    intervention: Intervention
    coefficients: tuple[float, ...]
    scales: tuple[float, ...]
    matching: Literal["norm", "kl"] = "norm"

    @classmethod
    def by_norm(cls, intervention: Intervention, coefficients: Sequence[float]) -> Setting:
        """λ times the vector."""
        return cls(
            intervention=intervention,
            coefficients=tuple(coefficients),
            scales=tuple(coefficients),
        )


def engine_for(intervention: Intervention) -> Engine:
    """The cheapest exact way to score sequences under an intervention."""
    if intervention.logit_bias is not None or intervention.site == FINAL:
        return "algebra"
    return "replay"


def score_sequences(
    pair: ModelPair,
    settings: Sequence[Setting],
    sequences: Sequence[TokenSequence],
    direction: Direction,
    *,
    engine: Engine | Literal["auto"] = "auto",
    references: Sequence[Role] = ROLES,
    token_budget: int = 4096,
    progress: bool = True,
) -> list[Scored]:
    """`Scored` of every setting: base + λv (interpolate) or policy − λv (invert).

    See `score_directions`, which does both directions with the passes of one.
    """
    found = score_directions(
        pair,
        {direction: settings},
        sequences,
        engine=engine,
        references=references,
        token_budget=token_budget,
        progress=progress,
    )
    return found[direction]


@torch.inference_mode()
def score_directions(
    pair: ModelPair,
    settings: Mapping[Direction, Sequence[Setting]],
    sequences: Sequence[TokenSequence],
    *,
    engine: Engine | Literal["auto"] = "auto",
    references: Sequence[Role] = ROLES,
    token_budget: int = 4096,
    progress: bool = True,
) -> dict[Direction, list[Scored]]:
    """`Scored` of every setting of each direction.

    Every batch is read once by each model that is needed, however many settings and directions
    there are; above that, steering at h costs a matrix product, steering at layer l the blocks
    above l for each coefficient other than 0. The unembedding runs on the scored tokens alone.

    Args:
        pair: Base and policy.
        settings: By direction, interventions with their scales.
        sequences: Prompts with the completions to score.
        engine: ``auto``, or one engine for all settings, as for comparing them.
        references: Models that the steered one is compared with. Of one that is not named, every
            statistic of `Scored` is NaN and, unless it is steered, no pass is made: log-probability
            curves need none, KL from the host needs the host.
        token_budget: Padded tokens a batch, fewer where the vocabulary is large.
        progress: Show a progress bar.

    Raises:
        ConfigurationError: The algebra was asked for where blocks follow.
        SpaceError: A vector does not belong to the model.
        ShapeError: A sequence has no prompt or completion tokens.
    """
    asked = tuple(role for role in ROLES if role in references)
    curves = {
        direction: [
            _Curve(
                pair, direction, setting, engine, Sums(len(setting.scales), len(sequences), asked)
            )
            for setting in own
        ]
        for direction, own in settings.items()
    }
    budget = min(token_budget, max(1, _LOGIT_BUDGET // pair.base.d_vocab))
    title = f"score {' and '.join(settings)}"
    with tqdm(total=len(sequences), desc=title, disable=not progress) as bar:
        for batch in batches(sequences, budget):
            passes = _Passes(pair, batch, asked, curves)
            for own in curves.values():
                for curve in own:
                    curve.add(passes)
            bar.update(len(batch.ids))
    return {direction: [curve.total.scored() for curve in own] for direction, own in curves.items()}


class _Curve:
    """One setting on its host, and its sums so far."""

    def __init__(
        self,
        pair: ModelPair,
        direction: Direction,
        setting: Setting,
        engine: Engine | Literal["auto"],
        total: Sums,
    ) -> None:
        self.role, self.intervention, self.total = HOSTS[direction], setting.intervention, total
        self.host: LensModel = getattr(pair, self.role)
        self.intervention.require(self.host)
        self.scales = [SIGNS[direction] * scale for scale in setting.scales]
        self.engine = _engine(self.intervention, engine)
        self.line = (
            Line(self.host, self.intervention, self.scales) if self.engine == "algebra" else None
        )

    @property
    def site(self) -> str | None:
        """Where the residual of the unsteered host is needed."""
        return self.intervention.vectors[0].space if self.engine == "replay" else None

    def add(self, passes: _Passes) -> None:
        """Add one batch."""
        batch, reference = passes.batch, passes.reference
        self.total.note(batch, reference)
        if self.line is not None and self.scales:
            self.total.add(0, batch, score_grid(self.line, self.role, batch, reference))
            return
        for index, scale in enumerate(self.scales):
            if self.site is None:
                logits = logits_by_hooks(self.host, self.intervention, scale, batch)
            elif scale == 0:  # bit for bit the unsteered host
                logits = reference.models[self.role].logits
            else:
                residual = passes.residuals[self.role][self.site]
                replay = Replay(self.host, batch, self.site, residual)
                logits = replay.logits(self.intervention, scale)
            self.total.add(index, batch, compare(logits, batch, reference))


class _Passes:
    """One batch, read once by each model that is compared with or steered from its residuals."""

    def __init__(
        self,
        pair: ModelPair,
        batch: Batch,
        asked: Sequence[Role],
        curves: Mapping[Direction, Sequence[_Curve]],
    ) -> None:
        self.batch = batch
        self.residuals: dict[Role, dict[str, Tensor]] = {}
        logits: dict[Role, Tensor] = {}
        for role in ROLES:
            own = [curve for curve in chain(*curves.values()) if curve.role == role]
            if role in asked or any(curve.engine != "hooks" for curve in own):
                sites = sorted({curve.site for curve in own if curve.site is not None})
                lens: LensModel = getattr(pair, role)
                logits[role], self.residuals[role] = unsteered_logits(lens, batch, sites)
        self.reference = Reference(logits, asked)


def _engine(intervention: Intervention, asked: Engine | Literal["auto"]) -> Engine:
    cheapest = engine_for(intervention)
    if asked == "algebra" and cheapest != "algebra":
        raise ConfigurationError(
            f"{intervention.name!r} acts at {intervention.site!r}, where blocks follow: "
            "the algebra of the logits holds at 'h' only"
        )
    if asked == "replay" and not intervention.vectors:
        return "hooks"
    if asked == "replay" and intervention.site == FINAL:
        raise ConfigurationError("nothing follows 'h': use engine='algebra'")
    return cheapest if asked == "auto" else asked
