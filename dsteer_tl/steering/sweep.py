"""Running a `SweepPlan`: completions and scores, streamed to disk, continued where they stopped.

With several processes each runs every n-th part; a part is the same whoever runs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from dsteer_tl.directions import SteeringVector
from dsteer_tl.errors import DataError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.notebook import grid, heading, small, stacked
from dsteer_tl.pair import ModelPair
from dsteer_tl.processes import Processes
from dsteer_tl.steering.check import check_steering
from dsteer_tl.steering.interventions import Direction, Intervention
from dsteer_tl.steering.plan import (
    GenerationBlock,
    Settings,
    SweepPlan,
    SweepPrompt,
    SweepSequence,
)
from dsteer_tl.steering.sweep_parts import KeptParts, SweepPart
from dsteer_tl.steering.sweep_rows import RelativeNorms, completion_rows, scored_rows
from dsteer_tl.steering.teacher_forced import HOSTS, Setting
from dsteer_tl.steering.token_choice import Decoding

Steering = SteeringVector | Intervention

#: Completions in the preview of a notebook.
_SHOWN = 16
#: Sequences scored before their numbers are written.
_SCORED_AT_ONCE = 64


@dataclass(frozen=True, slots=True, eq=False)
class SweepResult:
    """What a sweep gave.

    Attributes:
        completions: One row a completion, as in the table ``completions``.
        scored: One row a given sequence, setting and coefficient, with sums over its tokens.
    """

    completions: pd.DataFrame
    scored: pd.DataFrame

    def __repr__(self) -> str:
        return (
            f"SweepResult({len(self.completions):,} completions, "
            f"{len(self.scored):,} rows of scores)"
        )

    def _repr_html_(self) -> str:
        title = repr(self)
        if self.completions.empty:
            return stacked(heading(title))
        first = self.completions["prompt"].iloc[0]
        rows = self.completions[self.completions["prompt"] == first]
        columns = ["direction", "vector", "site", "coefficient", "completion"]
        table = grid([*columns[:3], "λ", "completion"], rows[columns].head(_SHOWN).to_numpy())
        prompt = f"First prompt: {rows['prompt_text'].iloc[0]!r}; the table completions has all."
        return stacked(heading(title), small(prompt), table)


def sweep(
    pair: ModelPair,
    vectors: Steering | Sequence[Steering],
    prompts: Sequence[str],
    coefficients: Sequence[float],
    *,
    invert: Sequence[float] = (),
    decoding: Decoding | None = None,
    rows: int = 128,
    suite: str = "prompts",
    folder: Path | None = None,
    progress: bool = True,
    processes: Processes | None = None,
) -> SweepResult:
    """Continue prompts under base + λv for every λ, and under policy − λv for those of `invert`.

    `plan_sweep` gives the same as a plan, with its cost and without running it.

    Example:
        >>> found = sweep(pair, v_star, ["Once upon a time"], [-1, 0, 1])  # doctest: +SKIP
        >>> found.completions[["coefficient", "completion"]]  # doctest: +SKIP

    Args:
        pair: Base and policy.
        vectors: What is added: steering vectors, or interventions for stacks, positions and
            logit biases.
        prompts: Texts to continue.
        coefficients: λ of the interpolation on the base.
        invert: λ of the inversion on the policy.
        decoding: Length and sampling; greedy by default.
        rows: Rows of one packed batch.
        suite: Name in the tables.
        folder: Where finished batches are kept, so that an interrupted sweep continues.
        progress: Show progress bars.
        processes: Those that share the batches, as for `execute`.

    Raises:
        SpaceError: A vector does not belong to this pair.
        DataError: A prompt is empty, or leaves no room in the context.
        SelfCheckError: Steering does not do what it should on this model.
    """
    given = [vectors] if isinstance(vectors, (SteeringVector, Intervention)) else list(vectors)
    interventions = [
        Intervention(name=item.name, vectors=(item,)) if isinstance(item, SteeringVector) else item
        for item in given
    ]
    grids: dict[Direction, Sequence[float]] = {"interpolate": coefficients, "invert": invert}
    settings: Settings = {
        direction: tuple(Setting.by_norm(item, grid) for item in interventions)
        for direction, grid in grids.items()
        if len(grid)
    }
    plan = plan_sweep(pair, prompts, generated=settings, decoding=decoding, rows=rows, suite=suite)
    return execute(plan, pair, folder=folder, progress=progress, processes=processes)


def plan_sweep(
    pair: ModelPair,
    prompts: Sequence[str],
    *,
    generated: Settings,
    sequences: Sequence[SweepSequence] = (),
    scored: Settings | None = None,
    decoding: Decoding | None = None,
    rows: int = 128,
    suite: str = "prompts",
) -> SweepPlan:
    """Everything a sweep will do; nothing runs yet.

    Args:
        pair: Base and policy.
        prompts: Texts to continue.
        generated: Settings that generate text, by direction.
        sequences: Given completions to score.
        scored: Settings that score them.
        decoding: Length and sampling.
        rows: Rows of one packed batch.
        suite: Name in the tables.

    Raises:
        SpaceError: A vector does not belong to this pair.
        DataError: A prompt is empty, or leaves no room in the context.
    """
    decoding = decoding or Decoding()
    for direction, settings in (*generated.items(), *(scored or {}).items()):
        for setting in settings:
            setting.intervention.require(getattr(pair, HOSTS[direction]))
    return SweepPlan(
        suite=suite,
        prompts=tuple(_prompts(pair, prompts, decoding.max_new_tokens)),
        generated=generated,
        sequences=tuple(sequences),
        scored=scored or {},
        decoding=decoding,
        rows=rows,
    )


def _prompts(pair: ModelPair, texts: Sequence[str], new_tokens: int) -> Iterable[SweepPrompt]:
    room = min(pair.base.n_ctx, pair.policy.n_ctx) - new_tokens
    for index, text in enumerate(texts):
        ids = tuple(pair.tokenizer(text, verbose=False)["input_ids"])
        if not ids or len(ids) > room:
            raise DataError(
                f"prompt {index} has {len(ids)} tokens, expected 1 to {room}: the context of "
                f"{pair.base.name} less {new_tokens} new tokens"
            )
        yield SweepPrompt(text, ids)


def execute(
    plan: SweepPlan,
    pair: ModelPair,
    *,
    folder: Path | None = None,
    progress: bool = True,
    processes: Processes | None = None,
) -> SweepResult:
    """Run a plan. Finished parts in `folder` are read, not run again.

    Args:
        plan: What to run.
        pair: Base and policy.
        folder: Where parts are kept; without it they stay in memory.
        progress: Show progress bars.
        processes: Those that share the parts, all of which call this with the same plan and a
            folder that all see; each returns the whole result. By default this process runs all.

    Raises:
        SelfCheckError: Steering does not do what it should on this model.
        RunError: The folder cannot be written.
    """
    processes = Processes() if processes is None or folder is None else processes
    # A rounding of its own in one process would be another plan.
    plan = processes.agreed(plan)
    shown = progress and processes.is_main
    parts = _parts(plan, pair, shown)
    kept = KeptParts(folder, plan.content_hash(_hashes(pair)), processes)
    own = processes.share(parts)
    found: dict[str, pd.DataFrame] = {}
    with tqdm(
        total=sum(part.texts for part in own),
        desc=f"sweep {plan.suite}",
        unit="text",
        disable=not shown,
    ) as bar:
        for part in own:
            found[part.name] = kept.get(part)
            bar.update(part.texts)
    processes.wait()
    frames = [found[part.name] if part.name in found else kept.read(part) for part in parts]
    texts = sum(part.texts > 0 for part in parts)
    return SweepResult(_joined(frames[:texts]), _by_direction(_joined(frames[texts:]), plan))


def _parts(plan: SweepPlan, pair: ModelPair, progress: bool) -> list[SweepPart]:
    """Generation first, then scores; nothing has run yet."""
    relative = RelativeNorms(pair, plan)
    checked: set[tuple[str, tuple[str, str]]] = set()

    def generate(block: GenerationBlock) -> pd.DataFrame:
        host: LensModel = getattr(pair, HOSTS[block.direction])
        if (block.direction, block.place) not in checked:
            check_steering(host, [item for item, _ in block.rows])
            checked.add((block.direction, block.place))
        return completion_rows(plan, pair, block, relative)

    found = [
        SweepPart(
            f"completions-{number:05d}",
            len(block.prompts) * len(block.rows),
            partial(generate, block),
        )
        for number, block in enumerate(plan.blocks())
    ]
    for start in range(0, len(plan.sequences) if plan.scored else 0, _SCORED_AT_ONCE):
        rows = plan.sequences[start : start + _SCORED_AT_ONCE]
        score = partial(scored_rows, plan, pair, rows, relative, progress)
        found.append(SweepPart(f"scored-{start:07d}", 0, score))
    return found


def _by_direction(scored: pd.DataFrame, plan: SweepPlan) -> pd.DataFrame:
    """Rows in the order of the plan; a part holds all directions of its sequences."""
    if scored.empty:
        return scored
    order = scored["direction"].map({name: place for place, name in enumerate(plan.scored)})
    return scored.loc[order.sort_values(kind="stable").index].reset_index(drop=True)


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    kept = [frame for frame in frames if len(frame)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def _hashes(pair: ModelPair) -> dict[str, str]:
    return {"base": pair.base.weights_hash, "policy": pair.policy.weights_hash}
