"""The mean residual of a text: what a probe reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from dsteer_tl.errors import DataError
from dsteer_tl.lens_model import Gather, LensModel, length_sorted_batches, pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_features(
    lens: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    site: str,
    *,
    token_budget: int = 4096,
    progress: bool = True,
) -> Float[np.ndarray, "text d_model"]:
    """The mean residual of each text: x̄ = (1/T) Σ_t x_t over its T real tokens, in float64.

    The model reads the text as its tokenizer writes it, special tokens included, but neither they
    nor pads take part in the mean: the residual of a beginning-of-sequence token is large and says
    nothing of the text. Texts longer than the context are cut at its end. Lee et al. read the last
    layer, ``resid_post.<L − 1>``, before the final norm.

    Args:
        lens: The model.
        tokenizer: Its tokenizer.
        texts: At least one.
        site: Where to read.
        token_budget: Padded tokens a batch; changes nothing but rounding.
        progress: Show a progress bar.

    Raises:
        DataError: There is no text, or one has no tokens but special ones.
        HookError: The site does not exist.
    """
    if not texts:
        raise DataError("text features: found no texts; expected at least one")
    special = set(tokenizer.all_special_ids)
    # verbose only warns of long texts, which are cut here
    encoded = tokenizer(list(texts), verbose=False)["input_ids"]
    rows = [list(ids)[: lens.n_ctx] for ids in encoded]
    real = [[place for place, token in enumerate(row) if token not in special] for row in rows]
    empty = next((index for index, places in enumerate(real) if not places), None)
    if empty is not None:
        raise DataError(
            f"text {empty} of {len(texts)}, {texts[empty][:40]!r}, has no tokens but special ones; "
            "leave such texts out"
        )
    features = np.zeros((len(texts), lens.d_model))
    with tqdm(total=len(texts), desc="read texts", leave=False, disable=not progress) as bar:
        for indices in length_sorted_batches([len(row) for row in rows], token_budget):
            batch = pad([rows[index] for index in indices])
            counts = torch.tensor([len(real[index]) for index in indices])
            owners = torch.repeat_interleave(torch.arange(len(indices)), counts)
            places = torch.tensor([place for index in indices for place in real[index]])
            read = lens.capture(batch.ids, batch.mask, [site], Gather(owners, places))[site]
            sums = torch.zeros(len(indices), lens.d_model, dtype=torch.float64)
            sums.index_add_(0, owners, read.double())
            features[indices] = (sums / counts[:, None]).numpy()
            bar.update(len(indices))
    return features
