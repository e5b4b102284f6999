"""The change of a token's log-probability, split exactly into four changes of the model's end.

The logits of a position depend on four things: the last ``resid_post`` x, whose change has a part
along a direction and the rest; the scale s that the final norm divides it by; and the readout,
which is the norm's gain and bias, W_U and b_U. With C the identity (RMSNorm) or the projection that
takes the mean away (LayerNorm),

    z = cap(scale · (W_Uᵀ(γ ⊙ Cx / s + β) + b_U)),    ln p(y) = z_y − ln Σ exp z.

The log softmax is not linear, so what one change does depends on which of the others were made
before. The split is the Shapley value over the 16 combinations of base and policy for the four
changes (Shapley 1953): the mean over all orders, which is exact, adds up to the whole, treats the
changes alike, and gives nothing to what has not changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import Readout

TERMS = ("along", "off", "scale", "readout")
_ALONG, _OFF, _SCALE, _READOUT = 1, 2, 4, 8

# Numbers of W_U in float64 at a time, and logits of a block of rows that stay in a cache.
_BLOCK_WEIGHTS, _BLOCK_LOGITS = 2**24, 2**18


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NormReadout:
    """From the last ``resid_post`` to logits with the norm's scale given.

    Attributes:
        gain: γ.
        bias: β, zeros where the norm has none.
        centred: Whether the norm takes the mean of x away first (LayerNorm).
        readout: W_U, b_U, soft-capping and the factor on the logits.
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool
    readout: Readout

    def numerator(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """γ ⊙ Cx: what the norm divides by its scale."""
        return self.gain * (x - x.mean(dim=-1, keepdim=True) if self.centred else x)

    def scales(
        self, x: Float[Tensor, "row d_model"], h: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, " row"]:
        """The s of each row for which γ ⊙ Cx/s + β is nearest to the h that the model had."""
        top = self.numerator(x)
        return (top * top).sum(dim=-1) / (top * (h - self.bias)).sum(dim=-1)

    def normed(
        self, x: Float[Tensor, "row d_model"], scale: Float[Tensor, " row"]
    ) -> Float[Tensor, "row d_model"]:
        """H for a given scale: γ ⊙ Cx/s + β."""
        return self.numerator(x) / scale[:, None] + self.bias

    def columns(
        self, tokens: slice
    ) -> tuple[Float[Tensor, "d_model token"], Float[Tensor, " token"]]:
        """M and c of z = cap(xᵀM/s + c) for a range of tokens, in float64."""
        W_U = self.readout.W_U[:, tokens].to(self.gain)
        M = self.gain[:, None] * W_U
        if self.centred:
            M = M - M.mean(dim=0)
        c = self.bias @ W_U + self.readout.b_U[tokens].to(self.gain)
        return M * self.readout.scale, c * self.readout.scale

    def same_as(self, other: NormReadout) -> bool:
        """Whether the other gives the same logits for the same x and s."""
        ours, theirs = self.readout, other.readout
        return (
            (self.centred, ours.softcap, ours.scale)
            == (other.centred, theirs.softcap, theirs.scale)
            and torch.equal(self.gain, other.gain)
            and torch.equal(self.bias, other.bias)
            and (ours.W_U is theirs.W_U or torch.equal(ours.W_U, theirs.W_U))
            and torch.equal(ours.b_U, theirs.b_U)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChangedRows:
    """What each position of base and policy had when it predicted its token.

    Attributes:
        base, policy: The last ``resid_post``.
        base_scale, policy_scale: What the final norm divided it by.
        tokens: The token that is predicted.
        directions: Unit vectors (or a zero vector) that the change is split along.
        half: Which of the directions belongs to each row.

    Raises:
        ShapeError: The numbers of rows differ.
    """

    base: Float[Tensor, "row d_model"]
    policy: Float[Tensor, "row d_model"]
    base_scale: Float[Tensor, " row"]
    policy_scale: Float[Tensor, " row"]
    tokens: Int[Tensor, " row"]
    directions: Float[Tensor, "half d_model"]
    half: Int[Tensor, " row"]

    def __post_init__(self) -> None:
        fields = ("policy", "base_scale", "policy_scale", "tokens", "half")
        counts = {name: len(getattr(self, name)) for name in fields}
        if set(counts.values()) != {len(self.base)}:
            raise ShapeError(
                f"margin terms: found {len(self.base)} rows of the base and {counts}, expected as "
                "many of each: read both models on the same tokens"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MarginTerms:
    """The four terms of ln p_policy(y) − ln p_base(y) of each row, in nats.

    Attributes:
        terms: In the order of `TERMS`; their sum is the change.
        random: The terms along and off with a random direction in place of the given one, a draw.
        equal: What a movement as long as the one along, and as the one off, does in a random
            direction in its place, a draw.
    """

    terms: Float[np.ndarray, "term row"]
    random: Float[np.ndarray, "draw 2 row"]
    equal: Float[np.ndarray, "draw 2 row"]


def shapley(values: Float[np.ndarray, "16 row"]) -> Float[np.ndarray, "4 row"]:
    """Shapley values of four players from the worth of their 16 coalitions.

    Player i is in coalition number S if bit i of S is set. Each player gets the mean of what it
    adds over all 24 orders in which the players can come.

    Raises:
        ShapeError: There are not 16 coalitions.
    """
    if len(values) != 16:
        raise ShapeError(
            f"Shapley value: found {len(values)} coalitions, expected the 16 of 4 players"
        )
    # |S|!(3 − |S|)!/4! for a coalition S that the player joins.
    weights = (1 / 4, 1 / 12, 1 / 12, 1 / 4)
    found = np.zeros((4, *values.shape[1:]))
    for player in range(4):
        bit = 1 << player
        for others in range(16):
            if not others & bit:
                gain = values[others | bit] - values[others]
                found[player] += weights[others.bit_count()] * gain
    return found


@torch.inference_mode()
def margin_terms(
    rows: ChangedRows,
    base: NormReadout,
    policy: NormReadout,
    random: Float[np.ndarray, "draw d_model"] | None = None,
) -> MarginTerms:
    """Split the change of each row's log-probability into the four `TERMS`.

    Terms are computed in float64; what random directions do, in float32.

    Args:
        rows: Both models' states.
        base: The base's norm and unembedding.
        policy: The policy's.
        random: Random unit vectors for the null, none if not given.
    """
    draws = np.zeros((0, rows.base.shape[1])) if random is None else random
    sums = _Sums(len(rows.base), len(draws), not base.same_as(policy), rows.base.device)
    step = max(1, _BLOCK_WEIGHTS // rows.base.shape[1])
    vocabulary = base.readout.W_U.shape[1]
    for start in range(0, vocabulary, step):
        tokens = slice(start, min(start + step, vocabulary))
        for bit, side in ((0, base), (_READOUT, policy)):
            if bit and not sums.two_readouts:
                continue
            columns = side.columns(tokens)
            for block in _row_blocks(len(rows.base), tokens.stop - tokens.start):
                _add_block(sums, rows, columns, side.readout.softcap, tokens, block, bit, draws)
    return sums.result()


def _row_blocks(count: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK_LOGITS // width)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


class _Sums:
    """Running ln Σ exp z and the target's z of every combination, over blocks of the vocabulary.

    Columns: the 16 combinations; then a draw those with a random direction in the split, with a
    random movement along, and with a random movement off.
    """

    def __init__(self, rows: int, draws: int, two_readouts: bool, device: torch.device) -> None:
        self.two_readouts, self.draws = two_readouts, draws
        shape = (1 + 3 * draws, 16, rows)
        self._total = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self._picked = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, game: int, corner: int, block: slice, z: Tensor, targets: Tensor) -> None:
        """Count a block of logits; `targets` are the tokens' places in it, −1 if elsewhere."""
        total = self._total[game, corner, block]
        torch.logaddexp(total, z.logsumexp(dim=1).to(total.dtype), out=total)
        here = z.gather(1, targets.clamp(min=0)[:, None])[:, 0].to(total.dtype)
        self._picked[game, corner, block] += torch.where(targets >= 0, here, 0.0)

    def result(self) -> MarginTerms:
        values = (self._picked - self._total).cpu().numpy()
        if not self.two_readouts:
            values[:, _READOUT:] = values[:, :_READOUT]
        main = values[0]
        random = np.zeros((self.draws, 2, main.shape[1]))
        equal = np.zeros_like(random)
        for draw in range(self.draws):
            split, along, off = (
                _over(main, values[1 + 3 * draw + game], game) for game in range(3)
            )
            random[draw] = shapley(split)[:2]
            equal[draw] = shapley(along)[0], shapley(off)[1]
        return MarginTerms(terms=shapley(main), random=random, equal=equal)


def _replaced(game: int, corner: int) -> bool:
    """Whether a combination differs from the main game's: its movement is part of the change."""
    if game == 0:
        return bool(corner & _ALONG) != bool(corner & _OFF)
    return bool(corner & (_ALONG if game == 1 else _OFF))


def _over(main: np.ndarray, values: np.ndarray, game: int) -> np.ndarray:
    changed = np.array([_replaced(game, corner) for corner in range(16)])
    return np.where(changed[:, None], values, main)


def _add_block(
    sums: _Sums,
    rows: ChangedRows,
    columns: tuple[Tensor, Tensor],
    cap: float | None,
    tokens: slice,
    block: slice,
    bit: int,
    draws: Float[np.ndarray, "draw d_model"],
) -> None:
    M, c = columns
    base, shift = rows.base[block].to(M), (rows.policy[block] - rows.base[block]).to(M)
    units = rows.directions.to(M)
    half = rows.half[block]
    length = (shift * units[half]).sum(dim=1, keepdim=True)
    start, whole = base @ M, shift @ M
    along = length * (units @ M)[half]
    off = whole - along
    targets = rows.tokens[block].to(M.device) - tokens.start
    targets = torch.where(targets < tokens.stop - tokens.start, targets, -1).clamp(min=-1)
    scales = {0: rows.base_scale[block].to(M), _SCALE: rows.policy_scale[block].to(M)}

    def count(game: int, corner: int, moved: Tensor) -> None:
        for scale_bit, scale in scales.items():
            z = moved / scale[:, None].to(moved) + c.to(moved)
            z = z if cap is None else cap * torch.tanh(z / cap)
            sums.add(game, corner | scale_bit | bit, block, z, targets)

    for corner, moved in ((0, start), (1, start + along), (2, start + off), (3, start + whole)):
        count(0, corner, moved)
    if not len(draws):
        return
    start, whole, along, off = (part.float() for part in (start, whole, along, off))
    rest = (shift - length * units[half]).norm(dim=1, keepdim=True).float()
    directions = torch.from_numpy(draws).to(M)
    projections, lengths = (directions @ M).float(), (shift @ directions.T).float()
    for draw, projection in enumerate(projections):
        game = 1 + 3 * draw
        other = lengths[:, draw, None] * projection
        count(game, _ALONG, start + other)
        count(game, _OFF, start + whole - other)
        moved = start + length.float() * projection
        count(game + 1, _ALONG, moved)
        count(game + 1, _ALONG | _OFF, moved + off)
        moved = start + rest * projection
        count(game + 2, _OFF, moved)
        count(game + 2, _ALONG | _OFF, moved + along)
