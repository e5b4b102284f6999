"""Encoded prompts: does an encoding bypass the offset (row 34)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.preferences.sampled_text import decode
from dsteer_tl.stress.columns import CONTROL, MEASURED
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.prompt_shifts import (
    Values,
    collector,
    continuation_scores,
    divide,
    held_apart,
    prompt_room,
    read_prompts,
    stress_sites,
)
from dsteer_tl.stress.text_encodings import (
    ENCODINGS,
    Ids,
    encode_text,
    fitting_ids,
    random_tokens,
)


def encodings_table(inputs: StressInputs) -> pd.DataFrame:
    """The table ``stress_encodings``: held-out prompts, plain and encoded (row 34).

    Conditions are ``plain``, each encoding, ``all`` (their mean for each prompt), and as controls
    ``random_tokens.<encoding>`` (as long as the encoded prompt), ``random_tokens`` (their mean) and
    ``other_half`` (the plain prompts that gave v*, judged by the vector of the measured half).
    ``projection_ratio`` is mean ⟨δ, v̂*⟩ over that of the plain prompts,
    ``projection_ratio_over_random`` what the encodings have more than random tokens do,
    ``score_gap_change`` the policy's gain in score less that on plain prompts, and ``cut`` counts
    prompts cut on the left to fit the context.

    Raises:
        ConfigurationError: An unknown encoding or none, or no room for a prompt.
        DataError: There are too few prompts.
    """
    names = tuple(dict.fromkeys(inputs.settings.encodings))
    if not names:
        raise ConfigurationError(
            f"needs stress.encodings: found none, expected some of {', '.join(ENCODINGS)}"
        )
    seed, tokenizer, room = inputs.settings.seed, inputs.pair.tokenizer, prompt_room(inputs)
    halves = held_apart(inputs)
    texts = [decode(tokenizer, ids) for ids in halves.measured]
    asked: dict[str, tuple[Ids, ...]] = {}
    collected = collector("encodings", inputs)
    for name in ("plain", *names):
        written = texts if name == "plain" else [encode_text(name, t, seed=seed) for t in texts]
        fitted = [fitting_ids(tokenizer, text, room) for text in written]
        asked[name] = tuple(ids for ids, _ in fitted)
        collected.count(name, MEASURED, "cut", sum(cut for _, cut in fitted), len(texts))
        if name != "plain":
            control = random_tokens(tokenizer, asked[name], inputs.pair.base.d_vocab, seed)
            asked[f"random_tokens.{name}"] = control
    found = {name: _read(inputs, ids, halves.vectors) for name, ids in asked.items()}
    for name in ("plain", *names):
        found[name].update(_scores(inputs, asked[name]))
    for pooled, parts in (("all", names), ("random_tokens", [f"random_tokens.{n}" for n in names])):
        found[pooled] = {
            key: np.mean([found[part][key] for part in parts], axis=0) for key in found[parts[0]]
        }
    # One continuation a prompt, after as many random tokens as one of the encodings takes in turn.
    mixed = [asked[f"random_tokens.{names[i % len(names)]}"][i] for i in range(len(texts))]
    found["random_tokens"].update(_scores(inputs, mixed))
    other = [fitting_ids(tokenizer, decode(tokenizer, i), room)[0] for i in halves.estimating]
    found["other_half"] = _read(inputs, other, halves.swapped_vectors)
    plain = found["plain"]
    for name, values in found.items():
        role = CONTROL if name.startswith(("random_tokens", "other")) else MEASURED
        for (site, statistic), numbers in values.items():
            collected.mean(name, role, statistic, numbers, site)
            against = plain[site, statistic]
            if name == "plain":
                continue
            if statistic == "score_gap":
                collected.mean(name, role, "score_gap_change", numbers - against, site)
            elif statistic == "projection" and name == "other_half":
                ratio = "projection_ratio"
                collected.between(name, role, ratio, numbers, against, divide, site)
            elif statistic == "projection":
                collected.ratio(name, role, "projection_ratio", numbers, against, site)
    for site in stress_sites(inputs.pair):
        above = found["all"][site, "projection"] - found["random_tokens"][site, "projection"]
        name = "projection_ratio_over_random"
        collected.ratio("all", MEASURED, name, above, plain[site, "projection"], site)
    return collected.table()


def _read(
    inputs: StressInputs, ids: Sequence[Ids], vectors: Mapping[str, Float[np.ndarray, " d_model"]]
) -> dict[tuple[str, str], Values]:
    """Every number of each prompt, by site and statistic."""
    read = read_prompts(inputs, ids)["policy"]
    found = {
        (site, name): values
        for site, vector in vectors.items()
        for name, values in read.statistics(site, vector).items()
    }
    found["", "kl"] = read.kl
    found["", "tokens"] = np.array([len(row) for row in ids], dtype=np.float64)
    return found


def _scores(inputs: StressInputs, ids: Sequence[Ids]) -> dict[tuple[str, str], Values]:
    return {("", name): values for name, values in continuation_scores(inputs, ids).items()}
