"""Running text for perplexity and F1: windows of a text, and texts that a model writes itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.preferences.hub import read_hub
from dsteer_tl.preferences.prompts import load_prompts
from dsteer_tl.preferences.records import field_text
from dsteer_tl.preferences.sampled_text import before_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WIKITEXT_HUB, WIKITEXT_CONFIGURATION = "Salesforce/wikitext", "wikitext-2-raw-v1"
_SPLITS = {"wikitext": "test", "wikitext-train": "train"}

#: Rounds of sampling, per round that would do without repeated texts, before giving up.
_PATIENCE = 10

Rows = tuple[tuple[int, ...], ...]


def load_text(name: str | Path) -> list[str]:
    """Lines of running text, those without text left out.

    A text is taken as it is. The published WikiText files are tokenised (``" @-@ "`` for a hyphen,
    spaces before punctuation) and, apart from the raw ones, hold ``<unk>`` for rare words: their
    perplexity is no plain text's, and only numbers on one file may be compared.

    Args:
        name: ``"wikitext"`` for the test split of the hub's raw WikiText-2 (Merity et al. 2016),
            ``"wikitext-train"`` for its training split, or a file: .txt, or a table with the column
            prompt or text, both also .gz.

    Raises:
        DataError: The text cannot be had or read, or there is none.
    """
    split = _SPLITS.get(str(name))
    if split is None:
        return list(load_prompts(name))
    records = read_hub(WIKITEXT_HUB, split=split, configuration=WIKITEXT_CONFIGURATION)
    lines = [field_text(record, "text").rstrip("\r\n") for record in records]
    return [line for line in lines if line.strip()]


def text_windows(
    tokenizer: PreTrainedTokenizerBase,
    text_lines: Sequence[str],
    *,
    windows: int,
    tokens: int,
    seed: int = 0,
) -> Rows:
    """Windows of running text that do not overlap, spread evenly over the text.

    The lines are joined and tokenised whole, so that no line begins anew, and cut into pieces. The
    text is parted into as many equal stretches as windows are wanted, and one piece is drawn of
    each.

    Args:
        tokenizer: The model's. Its beginning-of-sequence token, where it has one, comes before
            every piece and counts as one of its tokens.
        text_lines: Lines without their ends.
        windows: How many.
        tokens: Tokens of each.
        seed: Of the draw.

    Raises:
        DataError: The text is too short.
        ConfigurationError: No windows are asked for, or they have no room for text.
    """
    _check(windows, tokens)
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    width = tokens - len(begin)
    encoded = tokenizer("\n".join(text_lines), add_special_tokens=False, verbose=False)
    ids = list(encoded["input_ids"])
    pieces = len(ids) // width
    if pieces < windows:
        raise DataError(
            f"the text has {len(ids)} tokens, enough for {pieces} windows of {tokens}; expected "
            f"{windows} of them: give more text, or ask for fewer or shorter windows"
        )
    bounds = np.arange(windows + 1) * pieces // windows
    chosen = np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])
    return tuple((*begin, *ids[piece * width : (piece + 1) * width]) for piece in chosen.tolist())


def sample_texts(
    lens: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> list[tuple[int, ...]]:
    """Different texts that the model writes from nothing, as rows of tokens.

    A row is the token that the model began from, then what it wrote before its end-of-sequence
    token; decode it without special tokens to read it.

    Args:
        lens: The model.
        tokenizer: Its tokenizer.
        count: How many.
        max_new_tokens: Most tokens of a text.
        temperature: Softmax temperature.
        seed: Of the samples.
        batch_size: Texts a call of the model; part of what decides the samples.
        progress: Show a progress bar.

    Raises:
        DataError: The tokenizer has no token to begin from, or the model repeats itself too much.
        ConfigurationError: The count, temperature or batch size is not above 0.
        ShapeError: The texts would not fit the context.
    """
    if count < 1 or batch_size < 1 or not temperature > 0:
        raise ConfigurationError(
            f"sampled texts: found count {count}, batch size {batch_size}, temperature "
            f"{temperature}; expected all of them above 0"
        )
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if begin is None:
        raise DataError(
            "the tokenizer has neither a beginning- nor an end-of-sequence token to begin from; "
            "give texts of your own"
        )
    random = np.random.default_rng(seed)
    ids = torch.full((batch_size, 1), int(begin), dtype=torch.long)
    rounds = _PATIENCE * math.ceil(count / batch_size)
    found: dict[tuple[int, ...], None] = {}
    with tqdm(total=count, desc="texts", leave=False, disable=not progress) as bar:
        for _ in range(rounds):
            sampled = lens.generate(
                ids,
                torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=int(random.integers(2**31)),
            )
            for row in sampled[:, 1:].tolist():
                written = before_end(tokenizer, row)
                if written:
                    found.setdefault((int(begin), *written))
            bar.update(min(len(found), count) - bar.n)
            if len(found) >= count:
                return list(found)[:count]
    raise DataError(
        f"{lens.name} wrote {len(found)} different texts in {rounds} batches of {batch_size}; "
        f"expected {count}: ask for fewer or longer ones, raise the temperature, or give texts of "
        "your own"
    )


def windows_of_rows(rows: Sequence[Sequence[int]], *, windows: int, tokens: int) -> Rows:
    """The first rows that are long enough, cut to one length.

    Raises:
        DataError: Too few are.
        ConfigurationError: No windows are asked for, or they have no room for text.
    """
    _check(windows, tokens)
    long_enough = [tuple(row[:tokens]) for row in rows if len(row) >= tokens]
    if len(long_enough) < windows:
        raise DataError(
            f"{len(long_enough)} of {len(rows)} texts have {tokens} tokens or more; expected "
            f"{windows} of them: sample more or longer texts, or ask for fewer or shorter windows"
        )
    return tuple(long_enough[:windows])


def _check(windows: int, tokens: int) -> None:
    if windows < 1 or tokens < 2:
        raise ConfigurationError(
            f"found {windows} windows of {tokens} tokens; expected at least 1 window of 2 tokens"
        )
