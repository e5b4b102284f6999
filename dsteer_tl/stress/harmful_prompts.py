"""Benign against harmful prompts: is one left alone and the other deflected (row 36)?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from dsteer_tl.controls import Interval, null_distribution
from dsteer_tl.errors import ConfigurationError, DataError, DependencyError
from dsteer_tl.preferences.records import FILE_SUFFIXES, first_text, read_records
from dsteer_tl.preferences.sampled_text import decode
from dsteer_tl.preferences.suites import SUITES, load_suite
from dsteer_tl.stress.columns import CONTROL, MEASURED
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.null_space import (
    energy_subspace,
    random_overlap,
    share_outside,
    subspace_overlap,
)
from dsteer_tl.stress.prompt_shifts import (
    FEWEST,
    PromptShifts,
    RowCollector,
    Values,
    collector,
    divide,
    held_apart,
    prompt_room,
    read_prompts,
    stress_sites,
)
from dsteer_tl.stress.text_encodings import Ids, fitting_ids, random_tokens

logger = logging.getLogger(__name__)

#: Columns that hold a prompt, in the order in which they are looked for.
_PROMPT_COLUMNS = ("prompt", "text", "instruction", "goal", "question")
#: Share of the variance of benign activations that their subspace holds.
_ENERGY = 0.95
#: Most principal components of each subspace of shifts, and fewest prompts for each of them.
_COMPONENTS, _PROMPTS_EACH = 8, 4

#: Numbers of each prompt by site and statistic.
Numbers = Mapping[tuple[str, str], Values]


def load_prompt_texts(entry: str, *, limit: int, seed: int) -> tuple[str, ...]:
    """Prompts of a suite or a file, each once.

    Args:
        entry: ``"advbench"`` (from the hub), ``"advbench=FILE"``, any name of your own with
            ``=FILE``, or a file alone. A file that is no known suite holds prompts in a column
            prompt, text, instruction, goal or question, or is a .txt of one prompt a line.
        limit: At most so many, drawn by a hash.
        seed: Of the draw.

    Raises:
        DataError: The prompts cannot be had or read.
    """
    name, _, path = entry.partition("=")
    if name not in SUITES and not path:
        name, path = Path(entry).name, entry
        if not entry.lower().endswith((*FILE_SUFFIXES, ".gz")):
            raise DataError(
                f"{entry!r} is no suite ({', '.join(sorted(SUITES))}) and no file of prompts; "
                f"expected one of them, or NAME=FILE"
            )
    if name in SUITES or path.lower().removesuffix(".gz").endswith(".txt"):
        suite = load_suite(name, path or None, limit=limit, seed=seed)
        return tuple(item.prompt for item in suite.prompts)
    texts = [first_text(record, *_PROMPT_COLUMNS) for record in read_records(path)]
    unique = list(dict.fromkeys(text for text in texts if text.strip()))
    order = np.random.default_rng(seed).permutation(len(unique))[: limit or None]
    return tuple(unique[index] for index in sorted(order.tolist()))


def prompts_table(inputs: StressInputs) -> pd.DataFrame:
    """The table ``stress_prompts``: what the policy does to benign and to harmful prompts (row 36).

    Conditions are ``benign`` and ``harmful``; as controls ``random_tokens`` (as long as the
    harmful prompts, which no training saw) and, of a base with random weight changes as large as
    the policy's, ``benign.random_weights`` and ``harmful.random_weights``. Statistics are those of
    `PromptShifts.statistics`, ``kl``, ``tokens``, and ``null_space_share``: the share of ‖δ‖²
    outside the subspace that holds 95 % of the variance of the base's activations on the other
    half of the benign prompts, with ``null_space_share_base`` for the base's own centred
    activations and, under ``isotropic``, 1 − k/d_model.

    Contrasts stand under ``harmful_to_benign``, ``random_tokens_to_benign``,
    ``harmful_to_random_tokens``, ``harmful_to_benign.random_weights`` and ``benign_halves`` (two
    random halves of the benign prompts, where nothing should differ): ``<statistic>_ratio`` of
    means and ``null_space_share_difference``. ``subspace_overlap`` is that of the leading principal
    components of the shifts, uncentred and ``_centred``, over random splits into sets of equal
    size; its nulls are ``benign_halves`` and ``random_subspaces``.

    Raises:
        ConfigurationError: No harmful prompts are given.
        DataError: Prompts cannot be read, or there are too few.
    """
    settings = inputs.settings
    if not settings.harmful:
        raise ConfigurationError(
            "needs stress.harmful: a suite such as advbench, NAME=FILE, or a file of prompts"
        )
    collected = collector("prompts", inputs)
    halves, tokenizer = held_apart(inputs), inputs.pair.tokenizer
    if settings.benign:
        benign = load_prompt_texts(settings.benign, limit=settings.prompts, seed=settings.seed)
    else:
        benign = tuple(decode(tokenizer, ids) for ids in halves.measured)
    harmful = load_prompt_texts(settings.harmful, limit=settings.prompts, seed=settings.seed)
    asked: dict[str, tuple[Ids, ...]] = {}
    for name, texts in (("benign", benign), ("harmful", harmful)):
        fitted = [fitting_ids(tokenizer, text, prompt_room(inputs)) for text in texts]
        asked[name] = tuple(ids for ids, _ in fitted)
        collected.count(name, MEASURED, "cut", sum(cut for _, cut in fitted), len(texts))
        if len(texts) < 2 * FEWEST:
            raise DataError(f"{len(texts)} {name} prompts; expected at least {2 * FEWEST}")
    d_vocab = inputs.pair.base.d_vocab
    asked["random_tokens"] = random_tokens(tokenizer, asked["harmful"], d_vocab, settings.seed)
    controls = inputs.load_controls()
    read: dict[str, PromptShifts] = {}
    for name, ids in asked.items():
        for model, shifts in read_prompts(inputs, ids, controls).items():
            read[name if model == "policy" else f"{name}.{model}"] = shifts
    numbers = _numbers(inputs, collected, read, halves.vectors)
    for name, values in numbers.items():
        role = MEASURED if name in ("benign", "harmful") else CONTROL
        lengths = [len(ids) for ids in asked[name.partition(".")[0]]]
        collected.mean(name, role, "tokens", np.array(lengths, dtype=np.float64))
        for (site, statistic), found in values.items():
            collected.mean(name, role, statistic, found, site)
    order = np.random.default_rng(settings.seed).permutation(len(benign))
    first, second = np.array_split(order, 2)
    halved = [
        {key: values[half] for key, values in numbers["benign"].items()} for half in (first, second)
    ]
    _contrast(collected, "harmful_to_benign", MEASURED, numbers["harmful"], numbers["benign"])
    _contrast(collected, "benign_halves", CONTROL, *halved)
    for name, above, below in (
        ("random_tokens_to_benign", "random_tokens", "benign"),
        ("harmful_to_random_tokens", "harmful", "random_tokens"),
        ("harmful_to_benign.random_weights", "harmful.random_weights", "benign.random_weights"),
    ):
        if above in numbers:
            _contrast(collected, name, CONTROL, numbers[above], numbers[below])
    for site in stress_sites(inputs.pair):
        _overlaps(collected, site, read, inputs)
    return collected.table()


def _numbers(
    inputs: StressInputs,
    collected: RowCollector,
    read: Mapping[str, PromptShifts],
    vectors: Mapping[str, np.ndarray],
) -> dict[str, Numbers]:
    """Statistics of every prompt, with null-space shares cross-fitted over halves of the benign."""
    found: dict[str, dict[tuple[str, str], Values]] = {name: {} for name in read}
    count = len(read["benign"].kl)
    order = np.random.default_rng(inputs.settings.seed + 1).permutation(count)
    halves = np.array_split(order, 2)
    for site, vector in vectors.items():
        for name, shifts in read.items():
            for statistic, values in shifts.statistics(site, vector).items():
                found[name][site, statistic] = values
        base = read["benign"].base[site]
        spaces = [energy_subspace(base[half], _ENERGY) for half in halves]
        rank = float(np.mean([space.rank for space in spaces]))
        collected.count("benign", MEASURED, "null_space_rank", rank, count, site)
        isotropic = float(np.mean([space.isotropic_share_outside for space in spaces]))
        collected.count("isotropic", CONTROL, "null_space_share", isotropic, count, site)
        for name, shifts in read.items():
            for statistic, rows in (
                ("null_space_share", [shifts.shifts[site]] * 2),
                ("null_space_share_base", [shifts.base[site] - space.mean for space in spaces]),
            ):
                shares = [
                    share_outside(of, space.directions)
                    for of, space in zip(rows, spaces, strict=True)
                ]
                values = np.mean(shares, axis=0)
                if name.partition(".")[0] == "benign":
                    # Only the subspace that the prompt did not shape.
                    values[halves[0]], values[halves[1]] = (
                        shares[1][halves[0]],
                        shares[0][halves[1]],
                    )
                found[name][site, statistic] = values
    for name, shifts in read.items():
        found[name]["", "kl"] = shifts.kl
    return {name: dict(values) for name, values in found.items()}


def _contrast(
    collected: RowCollector, name: str, role: str, above: Numbers, below: Numbers
) -> None:
    combine: Callable[[float, float], float]
    for (site, statistic), values in above.items():
        if statistic.startswith("null_space_share"):
            label, combine = f"{statistic}_difference", _subtract
        elif statistic == "cosine":
            label, combine = "cosine_difference", _subtract
        else:
            label, combine = f"{statistic}_ratio", divide
        collected.between(name, role, label, values, below[site, statistic], combine, site)


def _subtract(above: float, below: float) -> float:
    return above - below


def _overlaps(
    collected: RowCollector, site: str, read: Mapping[str, PromptShifts], inputs: StressInputs
) -> None:
    """Overlap of the subspaces of harmful and benign shifts, over random sets of equal size."""
    sets = {name: read[name].shifts[site] for name in ("benign", "harmful", "random_tokens")}
    size = min(len(sets["benign"]) // 2, len(sets["harmful"]))
    components = min(_COMPONENTS, size // _PROMPTS_EACH)
    if components < 1:
        return

    def drawn(other: np.ndarray, seed: int) -> np.ndarray:
        """Half of the benign shifts, and as many others; of benign ones, those of the rest."""
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(sets["benign"]))
        rest = sets["benign"][order[size:]] if other is sets["benign"] else other
        picked = generator.permutation(len(rest))[:size]
        return np.stack([sets["benign"][order[:size]], rest[picked]])

    def overlap(both: np.ndarray, centred: bool) -> float:
        return subspace_overlap(both[0], both[1], components, centred=centred)

    draws, seed = max(2, inputs.measurement.null_draws), inputs.settings.seed
    try:
        mean, deviation = random_overlap(sets["benign"].shape[1], components)
        for suffix, centred in (("", False), ("_centred", True)):
            for name, role, other in (
                ("harmful_to_benign", MEASURED, "harmful"),
                ("random_tokens_to_benign", CONTROL, "random_tokens"),
                ("benign_halves", CONTROL, "benign"),
            ):
                found = null_distribution(
                    partial(overlap, centred=centred), partial(drawn, sets[other]), draws, seed
                )
                collected.add(name, role, f"subspace_overlap{suffix}", found, size, site)
    except DependencyError as error:
        logger.info("subspaces of the shifts are left out: %s", error)
        return
    known = Interval(value=mean, low=mean - 1.96 * deviation, high=mean + 1.96 * deviation, draws=0)
    collected.add("random_subspaces", CONTROL, "subspace_overlap", known, components, site)
