"""`SweepPlan`: everything that a sweep will do, and what it costs, before any of it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dsteer_tl.files import hash_content
from dsteer_tl.notebook import grid, listed, stacked
from dsteer_tl.steering.interventions import Direction, Intervention
from dsteer_tl.steering.scored import TokenSequence
from dsteer_tl.steering.teacher_forced import Setting, engine_for
from dsteer_tl.steering.token_choice import Decoding

Settings = Mapping[Direction, tuple[Setting, ...]]


@dataclass(frozen=True, slots=True)
class SweepPrompt:
    """A prompt as text and tokens."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSequence:
    """A given completion to score.

    Attributes:
        item: The pair or question it belongs to: the unit of resampling.
        side: ``"chosen"``, ``"rejected"``, or ``"choice.<k>"``.
        tokens: Prompt and completion.
    """

    item: int
    side: str
    tokens: TokenSequence


@dataclass(frozen=True, slots=True, eq=False)
class GenerationBlock:
    """One packed batch: some prompts under every setting of one direction and place.

    Attributes:
        direction: Which model is steered.
        place: Site and positions, as of `place_of`.
        prompts: Indices of the prompts.
        rows: What each prompt is run under, one row each; the unsteered row is there once.
    """

    direction: Direction
    place: tuple[str, str]
    prompts: tuple[int, ...]
    rows: tuple[tuple[Intervention, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepCost:
    """What a plan will do.

    Attributes:
        completions: Texts to generate.
        new_tokens: Most tokens in them.
        batches: Packed generations.
        scored_tokens: Tokens of given sequences, each read by base and policy once.
        replayed_coefficients: Coefficients for which blocks above a site run again.
        algebraic_coefficients: Coefficients that cost a matrix product.
    """

    completions: int
    new_tokens: int
    batches: int
    scored_tokens: int
    replayed_coefficients: int
    algebraic_coefficients: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SweepPlan:
    """A sweep over one suite of prompts.

    Attributes:
        suite: Name of the suite.
        prompts: What is continued.
        generated: Settings that generate text, by direction.
        sequences: What is scored.
        scored: Settings that score the sequences.
        decoding: Length and sampling.
        rows: Rows of one packed batch.
    """

    suite: str
    prompts: tuple[SweepPrompt, ...]
    generated: Settings
    sequences: tuple[SweepSequence, ...]
    scored: Settings
    decoding: Decoding
    rows: int = 128

    def blocks(self) -> Iterator[GenerationBlock]:
        """Packed batches in order: prompts of similar length together, shortest first."""
        order = sorted(
            range(len(self.prompts)), key=lambda index: (len(self.prompts[index].ids), index)
        )
        for direction, settings in self.generated.items():
            for place in dict.fromkeys(place_of(setting) for setting in settings):
                own = [setting for setting in settings if place_of(setting) == place]
                rows = tuple(_distinct_rows(own))
                step = max(1, self.rows // len(rows))
                for start in range(0, len(order), step):
                    yield GenerationBlock(
                        direction, place, tuple(order[start : start + step]), rows
                    )

    def cost(self) -> SweepCost:
        """Counts, without running anything."""
        blocks = list(self.blocks())
        completions = sum(len(block.prompts) * len(block.rows) for block in blocks)
        engines = [
            (engine_for(setting.intervention), len(setting.scales))
            for settings in self.scored.values()
            for setting in settings
        ]
        return SweepCost(
            completions=completions,
            new_tokens=completions * self.decoding.max_new_tokens,
            batches=len(blocks),
            scored_tokens=sum(len(item.tokens.completion_ids) for item in self.sequences),
            replayed_coefficients=sum(n for engine, n in engines if engine == "replay"),
            algebraic_coefficients=sum(n for engine, n in engines if engine == "algebra"),
        )

    def describe(self) -> str:
        """The cost in one line for people."""
        cost = self.cost()
        return (
            f"{self.suite}: {cost.completions:,} completions of at most "
            f"{self.decoding.max_new_tokens} tokens in {cost.batches} packed batches; "
            f"{cost.scored_tokens:,} given tokens scored under {cost.algebraic_coefficients} "
            f"coefficients by algebra and {cost.replayed_coefficients} by replay"
        )

    def __repr__(self) -> str:
        return f"SweepPlan({self.describe()})"

    def _repr_html_(self) -> str:
        rows = [
            (
                work,
                direction,
                setting.intervention.name,
                setting.intervention.site,
                setting.intervention.positions,
                setting.matching,
                listed(f"{value:g}" for value in setting.coefficients),
            )
            for work, of_direction in (("write", self.generated), ("score", self.scored))
            for direction, settings in of_direction.items()
            for setting in settings
        ]
        heads = ("", "direction", "vector", "site", "positions", "matched by", "λ")
        return stacked(grid(heads, rows, f"SweepPlan for {self.describe()}"))

    def content_hash(self, models: Mapping[str, str]) -> str:
        """Identity of what the plan computes: equal plans on equal models give equal tables."""
        return hash_content(
            [
                dict(models),
                self.suite,
                [prompt.ids for prompt in self.prompts],
                [[item.item, item.side, item.tokens.prompt_ids, item.tokens.completion_ids]
                 for item in self.sequences],
                _described(self.generated),
                _described(self.scored),
                [self.decoding.max_new_tokens, self.decoding.temperature],
                [self.decoding.top_p, self.decoding.seed, self.rows],
            ]
        )  # fmt: skip


def place_of(setting: Setting) -> tuple[str, str]:
    """Site and positions: what the rows of one packed batch share."""
    return setting.intervention.site, setting.intervention.positions


def _distinct_rows(settings: Sequence[Setting]) -> Iterator[tuple[Intervention, float]]:
    unsteered = False
    for setting in settings:
        for scale in dict.fromkeys(setting.scales):
            if scale == 0 and unsteered:
                continue
            unsteered = unsteered or scale == 0
            yield setting.intervention, scale


def _described(settings: Settings) -> list[object]:
    return [
        [
            direction,
            setting.intervention.name,
            setting.intervention.site,
            setting.intervention.positions,
            setting.matching,
            setting.coefficients,
            [repr(scale) for scale in setting.scales],
            [vector.values.tobytes().hex() for vector in setting.intervention.vectors],
            None
            if setting.intervention.logit_bias is None
            else setting.intervention.logit_bias.tobytes().hex(),
        ]
        for direction, own in settings.items()
        for setting in own
    ]
