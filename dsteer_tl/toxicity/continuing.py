"""Continuations of token prompts, with common random numbers, and their F1 against a reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import Edit, LensModel, pad
from dsteer_tl.steering.token_choice import Decoding, RowChoice


def continue_prompts(
    lens: LensModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    seeds: Sequence[int] | None = None,
    edits: Sequence[Edit] = (),
    batch_rows: int = 128,
) -> list[tuple[int, ...]]:
    """What a model writes after each prompt, under edits that treat all rows alike.

    A row draws from its own random stream: a prompt with its seed meets the same random numbers in
    every model and under every edit, however prompts are batched, so that what differs between
    conditions is the condition. `steering.packed_generation` draws the same numbers.

    Args:
        lens: The model.
        prompts: Token ids, at least one each.
        decoding: Length, temperature, nucleus and seed.
        seeds: Of each prompt's random numbers; by default its index.
        edits: Applied to every forward pass, at prompt, new and pad positions alike.
        batch_rows: Prompts at a time.

    Returns:
        For each prompt the new tokens, without the end of the sequence; empty where the model
        ended at once.

    Raises:
        ShapeError: A prompt is empty or does not fit the context, or prompts and seeds differ in
            number.
        HookError: An edit's place does not exist.
    """
    own_seeds = list(range(len(prompts))) if seeds is None else list(seeds)
    if len(own_seeds) != len(prompts):
        raise ShapeError(
            f"continuations: found {len(prompts)} prompts and {len(own_seeds)} seeds, expected one "
            "seed a prompt"
        )
    if batch_rows < 1:
        raise ShapeError(f"continuations: batch_rows is {batch_rows}, expected at least 1")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ShapeError(f"prompt {index} has no tokens, expected at least one: drop it")
    found: dict[int, tuple[int, ...]] = {}
    with lens.hooks(edits):
        for indices in length_batches(prompts, batch_rows):
            batch = pad([prompts[index] for index in indices], side="left")
            # No interventions: hooks steer, and there is no logit bias to add.
            choose = RowChoice(decoding, [own_seeds[index] for index in indices], (), ())
            written = lens.generate(
                batch.ids, batch.mask, max_new_tokens=decoding.max_new_tokens, choose=choose
            )
            for index, row in zip(indices, written[:, batch.ids.shape[1] :].tolist(), strict=True):
                found[index] = until_end(row, lens.end_token_ids)
    return [found[index] for index in range(len(prompts))]


def length_batches(prompts: Sequence[Sequence[int]], batch_rows: int) -> list[list[int]]:
    """Indices of the prompts in batches of similar length, shortest first."""
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    return [order[start : start + batch_rows] for start in range(0, len(order), batch_rows)]


def until_end(tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """The tokens before the first end of sequence; what follows it is padding."""
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[:stop])


def unigram_f1(tokens: Sequence[int], reference: Sequence[int]) -> float:
    """Harmonic mean of the precision and recall of unigrams (Lee et al. 2024, sec. 3.3).

    With c the size of the intersection of both multisets of tokens, precision is c / |tokens|,
    recall c / |reference|, and F1 = 2c / (|tokens| + |reference|).

    Returns:
        A number in [0, 1]; 0 where either has no tokens.
    """
    if not len(tokens) or not len(reference):
        return 0.0
    common = sum((Counter(tokens) & Counter(reference)).values())
    return 2 * common / (len(tokens) + len(reference))
