"""The logit lens on residuals and on vectors: what they would make the model say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from dsteer_tl.capture import ShiftSet
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.sites import FINAL


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

    A constant added to all logits changes no probability, so the mean is taken away.
    """
    W_U = model.W_U.detach().cpu().double().numpy()
    change = np.asarray(vector, dtype=np.float64) @ W_U * model.readout.scale
    centred: np.ndarray = change - change.mean()
    return centred


def promoted_and_suppressed(
    model: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    vector: Float[np.ndarray, " d_model"],
    count: int = 12,
) -> pd.DataFrame:
    """The tokens whose logits a vector at h raises and lowers most.

    Returns:
        Columns ``effect`` (promoted, suppressed), ``rank`` from 1, ``token_id``, ``token``,
        ``value`` in logits a unit of the vector.
    """
    change = logit_change(model, vector)
    order = np.argsort(change)
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
