"""The logit lens on residuals and on vectors: what they would make the model say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dsteer_tl.capture import ShiftSet
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.sites import FINAL

# Logits of one block of rows: 16 MiB as float32.
_BLOCK_LOGITS = 2**22
# Numbers of W_U that are held in float64 at a time: 128 MiB.
_BLOCK_WEIGHTS = 2**24


@torch.inference_mode()
def normed(
    model: LensModel, rows: Float[np.ndarray, "row d_model"]
) -> Float[np.ndarray, "row d_model"]:
    """Residuals through the model's own final norm, its gain included, as float64.

    This is the logit lens up to W_U: rows of the last ``resid_post`` become h exactly; of earlier
    layers, the h that the model would have if it stopped there.
    """
    tensor = torch.from_numpy(np.asarray(rows)).to(model.device, model.dtype)
    return model.final_norm(tensor).double().cpu().numpy()


@torch.inference_mode()
def lens_logits(
    model: LensModel, rows: Float[Tensor, "row d_model"]
) -> Iterator[Float[Tensor, "block d_vocab"]]:
    """Logits of residuals of any layer, in blocks of rows, float32 at least.

    The final norm is computed anew from every row: the scale that the last layer's stream has
    there would be another layer's, and another model's, in its place. Gain, unembedding, bias and
    soft-capping are the model's own.
    """
    # Logits of half precision would be off by a tenth of a nat.
    readout = model.readout.to(dtype=torch.promote_types(model.dtype, torch.float32))
    step = max(1, _BLOCK_LOGITS // model.d_vocab)
    for start in range(0, len(rows), step):
        h = model.final_norm(rows[start : start + step].to(model.device, model.dtype))
        yield readout(h.to(readout.W_U.dtype))


@torch.inference_mode()
def lens_log_probabilities(
    model: LensModel,
    rows: Float[Tensor, "row d_model"],
    groups: Sequence[Int[np.ndarray, " token"]],
) -> Float[np.ndarray, "group row"]:
    """Ln of the summed probability of each of many groups of tokens, by `lens_logits`.

    Args:
        model: The model that the rows are of.
        rows: Residuals of any layer.
        groups: Token ids, none twice in a group; an empty group has probability 0.
    """
    ids, places = np.unique(np.concatenate(groups), return_inverse=True)
    if not len(ids):
        return np.full((len(groups), len(rows)), -np.inf)
    members = torch.zeros(len(ids), len(groups))
    members[places, np.repeat(np.arange(len(groups)), [len(group) for group in groups])] = 1
    members, columns = members.to(model.device), torch.from_numpy(ids).to(model.device)
    found = []
    for logits in lens_logits(model, rows):
        chosen = logits[:, columns]
        # Relative to the likeliest of all groups, so that small probabilities do not underflow.
        top = chosen.amax(dim=-1, keepdim=True)
        sums = (chosen - top).exp() @ members.to(logits.dtype)
        found.append((sums.log() + top - logits.logsumexp(dim=-1, keepdim=True)).T.cpu())
    return torch.cat(found, dim=1).double().numpy()


def projections_by_site(
    model: LensModel,
    shift_set: ShiftSet,
    name: str,
    kind: str,
    vectors: Float[np.ndarray, "row d_model"],
) -> dict[str, Float[np.ndarray, " row"]]:
    """Per site the projection ⟨norm(x), v⁽ⁱ⁾⟩ of each row on its own vector, in logits.

    Args:
        model: The model whose final norm reads the residuals.
        shift_set: Captured residuals.
        name: Which captured model to read.
        kind: Position kind; one vector a row of it.
        vectors: v⁽ⁱ⁾, differences of unembedding columns.

    Raises:
        ShapeError: There are more or fewer vectors than rows.
    """
    found = {}
    for site in shift_set.sites:
        rows = shift_set.residuals(name, site, kind)
        if rows.shape != vectors.shape:
            raise ShapeError(
                f"{len(vectors)} vectors {vectors.shape} for {len(rows)} rows {rows.shape} of kind "
                f"{kind!r} at {site!r}: expected one vector a row"
            )
        states = rows.astype(np.float64) if site == FINAL else normed(model, rows)
        found[site] = np.einsum("ij,ij->i", states, vectors)
    return found


def logit_change(
    model: LensModel, vector: Float[np.ndarray, " d_model"]
) -> Float[np.ndarray, " d_vocab"]:
    """Change of every logit when a vector is added at h: W_Uᵀ v, less its mean over tokens.

    A constant added to all logits changes no probability, so the mean is taken away. Sums are of
    float64; W_U is turned to it in blocks of columns, as the whole may be larger than the model.
    """
    W_U, row = model.W_U.detach(), np.asarray(vector, dtype=np.float64)
    step = max(1, _BLOCK_WEIGHTS // len(W_U))
    starts = range(0, W_U.shape[1], step)
    parts = [row @ W_U[:, start : start + step].cpu().double().numpy() for start in starts]
    change = np.concatenate(parts) * model.readout.scale
    centred: np.ndarray = change - change.mean()
    return centred


def promoted_and_suppressed(
    model: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    vector: Float[np.ndarray, " d_model"],
    count: int = 12,
) -> pd.DataFrame:
    """The tokens whose logits a vector at h raises and lowers most.

    Ids from the tokenizer's length on are left out: they are columns that pad W_U to a round
    number, and no tokens.

    Returns:
        Columns ``effect`` (promoted, suppressed), ``rank`` from 1, ``token_id``, ``token``,
        ``value`` in logits a unit of the vector.
    """
    change = logit_change(model, vector)
    order = np.argsort(change[: len(tokenizer)])
    rows = []
    for effect, ids in (("promoted", order[::-1][:count]), ("suppressed", order[:count])):
        for rank, token_id in enumerate(ids, start=1):
            rows.append(
                {
                    "effect": effect,
                    "rank": rank,
                    "token_id": int(token_id),
                    "token": tokenizer.decode([int(token_id)]),
                    "value": float(change[token_id]),
                }
            )
    return pd.DataFrame(rows)
