"""Multi-turn dialogues: does the shift along v* drift from turn to turn (row 35)?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences import load_preferences
from dsteer_tl.preferences.dialogues import ASSISTANT, HUMAN, opening
from dsteer_tl.stress.columns import CONTROL, MEASURED
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.prompt_shifts import (
    FEWEST,
    RowCollector,
    Values,
    collector,
    continuation_scores,
    held_apart,
    prompt_room,
    read_prompts,
    stress_sites,
)
from dsteer_tl.stress.text_encodings import Ids, fitting_ids, random_tokens

logger = logging.getLogger(__name__)

#: The turns of one dialogue, each a text up to where the assistant speaks.
Turns = tuple[str, ...]
#: Numbers of each dialogue at each turn.
Grid = Float[np.ndarray, "turn dialogue"]


def split_turns(prompt: str) -> Turns:
    r"""What each turn of a dialogue adds: "\n\nHuman: …", then " answer\n\nHuman: …", and so on.

    The prompt of turn t is the first t parts, each followed by "\n\nAssistant:".

    Returns:
        The parts, or none where the text is no such dialogue: it does not end with the assistant's
        name, or a part holds no human turn.
    """
    if not prompt.startswith(HUMAN) or not prompt.endswith(ASSISTANT):
        return ()
    parts = tuple(prompt.removesuffix(ASSISTANT).split(ASSISTANT))
    return parts if all(HUMAN in part for part in parts) else ()


def turn_prompts(parts: Sequence[str]) -> Turns:
    """The prompt that the assistant answers at each turn."""
    return tuple(
        "".join(part + ASSISTANT for part in parts[: count + 1]) for count in range(len(parts))
    )


def shuffled_turns(dialogues: Sequence[Turns], seed: int) -> list[Turns]:
    """Dialogues that keep their first turn and take each later one from another dialogue.

    Keeps the number of turns, the opening and the lengths of turns in total; breaks that a later
    turn follows from an earlier one. Each place is permuted in one cycle, so that no dialogue keeps
    a later turn of its own.
    """
    generator = np.random.default_rng(seed)
    count = len(dialogues)
    columns = []
    for _ in range(1, len(dialogues[0])):
        order = generator.permutation(count)
        source = np.empty(count, dtype=int)
        source[order] = np.roll(order, 1)
        columns.append(source)
    return [
        (dialogue[0], *(dialogues[source[index]][turn] for turn, source in enumerate(columns, 1)))
        for index, dialogue in enumerate(dialogues)
    ]


def slopes(values: Grid) -> Values:
    """Least-squares slope of each dialogue over its turns, per turn."""
    places = np.arange(len(values)) - (len(values) - 1) / 2
    return np.asarray(places @ values / (places @ places))


def turns_table(inputs: StressInputs) -> pd.DataFrame:
    """The table ``stress_turns``: multi-turn dialogues at the end of each human turn (row 35).

    The same dialogues stand at every turn: those with at least ``stress.turns`` turns that fit the
    context, cut to that many. Conditions are ``dialogue.<turn>``, and as controls
    ``shuffled.<turn>`` (`shuffled_turns`: later without a conversation) and
    ``random_prefix.<turn>`` (the first turn behind random tokens, as long as the dialogue is then:
    longer without being later). Under ``dialogue``, ``shuffled`` and ``random_prefix`` stand
    ``projection_slope`` (per turn, relative to the first turn) and for the controls
    ``projection_slope_difference``, the dialogues' slope less theirs. ``too_few_turns`` and
    ``too_long`` count dialogues that were left out.

    Raises:
        ConfigurationError: No dialogues are given, or fewer than two turns are asked for.
        DataError: The dialogues cannot be read, or too few have enough turns and fit.
    """
    settings = inputs.settings
    if not settings.dialogues:
        raise ConfigurationError(
            "needs stress.dialogues: a file of multi-turn dialogues, as HH's, or a hub name"
        )
    if settings.turns < 2:
        raise ConfigurationError(f"stress.turns is {settings.turns}; expected at least 2")
    collected = collector("turns", inputs)
    dialogues = _dialogues(inputs, collected)
    vectors, room, pair = held_apart(inputs).vectors, prompt_room(inputs), inputs.pair

    def tokens(texts: Sequence[Turns]) -> list[list[tuple[Ids, bool]]]:
        return [[fitting_ids(pair.tokenizer, text, room) for text in turns] for turns in texts]

    asked = [[ids for ids, _ in row] for row in tokens([turn_prompts(d) for d in dialogues])]
    shuffled = tokens([turn_prompts(d) for d in shuffled_turns(dialogues, settings.seed)])
    cut = sum(any(was_cut for _, was_cut in row) for row in shuffled)
    collected.count("shuffled", CONTROL, "cut", cut, len(shuffled))
    conditions = {
        "dialogue": asked,
        "shuffled": [[ids for ids, _ in row] for row in shuffled],
        "random_prefix": _behind_random_tokens(inputs, asked),
    }
    found: dict[str, dict[tuple[str, str], Grid]] = {}
    for name, rows in conditions.items():
        role = MEASURED if name == "dialogue" else CONTROL
        read: list[dict[tuple[str, str], Values]] = []
        for turn in range(settings.turns):
            if name != "dialogue" and turn == 0:  # all three begin alike
                values = {
                    key: grid[0]
                    for key, grid in found["dialogue"].items()
                    if not key[1].startswith("score")
                }
            else:
                ids = [row[turn] for row in rows]
                values = _read(inputs, ids, vectors, scores=name == "dialogue")
            for (site, statistic), numbers in values.items():
                collected.mean(f"{name}.{turn + 1}", role, statistic, numbers, site)
            read.append(values)
        found[name] = {key: np.stack([values[key] for values in read]) for key in read[0]}
    for name in conditions:
        _add_slopes(collected, name, found, inputs)
    return collected.table()


def _read(
    inputs: StressInputs,
    ids: Sequence[Ids],
    vectors: Mapping[str, Float[np.ndarray, " d_model"]],
    *,
    scores: bool,
) -> dict[tuple[str, str], Values]:
    """Every number of each dialogue at one turn, by site and statistic."""
    shifts = read_prompts(inputs, ids)["policy"]
    values = {
        (site, statistic): numbers
        for site, vector in vectors.items()
        for statistic, numbers in shifts.statistics(site, vector).items()
    }
    values["", "kl"] = shifts.kl
    values["", "tokens"] = np.array([len(row) for row in ids], dtype=np.float64)
    found = continuation_scores(inputs, ids) if scores else {}
    return values | {("", statistic): numbers for statistic, numbers in found.items()}


def _add_slopes(
    collected: RowCollector,
    name: str,
    found: dict[str, dict[tuple[str, str], Grid]],
    inputs: StressInputs,
) -> None:
    role = MEASURED if name == "dialogue" else CONTROL
    grids, dialogues = found[name], found["dialogue"]
    for site in stress_sites(inputs.pair):
        own, first = slopes(grids[site, "projection"]), dialogues[site, "projection"][0]
        collected.ratio(name, role, "projection_slope", own, first, site)
        for statistic in ("cosine", "relative_norm"):
            collected.mean(name, role, f"{statistic}_slope", slopes(grids[site, statistic]), site)
        if name != "dialogue":
            more = slopes(dialogues[site, "projection"]) - own
            collected.ratio(name, role, "projection_slope_difference", more, first, site)
    for statistic in ("kl", "score_gap"):
        if ("", statistic) in grids:
            collected.mean(name, role, f"{statistic}_slope", slopes(grids["", statistic]))


def _dialogues(inputs: StressInputs, collected: RowCollector) -> list[Turns]:
    """Dialogues with enough turns that fit, each opening once, in an order drawn by the seed."""
    settings, tokenizer = inputs.settings, inputs.pair.tokenizer
    source = settings.dialogues.partition("=")[2] or settings.dialogues
    prompts = [item.prompt for item in load_preferences(source, tokenizer=tokenizer)]
    order = np.random.default_rng(settings.seed).permutation(len(prompts)).tolist()
    # An opening's longest dialogue stands for all that were cut from one conversation.
    longest: dict[str, Turns] = {}
    for index in order:
        parts = split_turns(prompts[index])
        if len(parts) > len(longest.get(opening(prompts[index]), ())):
            longest[opening(prompts[index])] = parts
    if not longest:
        raise DataError(
            f"{source}: none of {len(prompts)} prompts is a dialogue; expected texts as HH's, "
            f"{HUMAN!r} and {ASSISTANT!r} in turn"
        )
    enough = [parts[: settings.turns] for parts in longest.values() if len(parts) >= settings.turns]
    room = prompt_room(inputs)
    kept: list[Turns] = []
    too_long = 0
    for parts in enough:
        if len(kept) == settings.prompts:
            break
        if fitting_ids(tokenizer, turn_prompts(parts)[-1], room)[1]:
            too_long += 1
        else:
            kept.append(parts)
    few = len(longest) - len(enough)
    collected.count("dialogue", MEASURED, "too_few_turns", few, len(longest))
    collected.count("dialogue", MEASURED, "too_long", too_long, len(kept) + too_long)
    logger.info("dialogues: %d kept, %d too long, %d with too few turns", len(kept), too_long, few)
    if len(kept) < FEWEST:
        raise DataError(
            f"{source}: {len(kept)} of {len(longest)} dialogues have {settings.turns} turns within "
            f"{room} tokens; expected at least {FEWEST}: set stress.turns lower"
        )
    return kept


def _behind_random_tokens(inputs: StressInputs, asked: Sequence[Sequence[Ids]]) -> list[list[Ids]]:
    """The first turn of each dialogue, moved back by random tokens to the length of each turn."""
    tokenizer, d_vocab = inputs.pair.tokenizer, inputs.pair.base.d_vocab
    noise = random_tokens(tokenizer, [row[-1] for row in asked], d_vocab, inputs.settings.seed)
    found = []
    for row, random in zip(asked, noise, strict=True):
        first = row[0]
        begin = first[:1] if first[0] == tokenizer.bos_token_id else ()
        rest = first[len(begin) :]
        found.append([(*begin, *random[len(begin) : len(ids) - len(rest)], *rest) for ids in row])
    return found
