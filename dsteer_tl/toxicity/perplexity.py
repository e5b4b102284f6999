"""Perplexity of running text, under hooks or, for vectors at the last layer, without a pass.

A vector added to the last ``resid_post`` meets nothing but the final norm and the unembedding. The
rows of that site are kept once, and the perplexity under any vector and coefficient is a readout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from dsteer_tl.controls import Interval, bootstrap_ratio
from dsteer_tl.distributions import PairedRows
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import Edit, Gather, LensModel, length_sorted_batches, pad
from dsteer_tl.logit_bias import mean_logit_bias
from dsteer_tl.sites import resid_post

# Logits of one forward pass: 256 MiB as float32.
_PASS_LOGITS = 2**26
# Logits of one block of rows: larger ones are handed back to the system after each block, which
# then costs more than the softmax.
_BLOCK_LOGITS = 2**22
# A search for a coefficient ends after so many evaluations, or at so many times its start.
_MOST_EVALUATIONS = 60
_MOST_GROWTH = 1e6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowLosses:
    """How surprising each window of text is.

    Attributes:
        nats: Σ −ln p of each window's tokens but the first, which nothing predicts.
        tokens: How many tokens that is.
    """

    nats: Float[np.ndarray, " window"]
    tokens: Int[np.ndarray, " window"]

    def __len__(self) -> int:
        return len(self.nats)

    @property
    def loss(self) -> float:
        """Mean −ln p a token, in nats."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """Exp of the mean −ln p a token."""
        return float(np.exp(self.loss))

    def interval(self, *, draws: int, seed: int) -> Interval:
        """Perplexity with a bootstrap interval over windows; of one window, the value alone."""
        if len(self) < 2:
            return Interval(value=self.perplexity, low=float("nan"), high=float("nan"), draws=0)
        loss = bootstrap_ratio(self.nats, self.tokens, draws=draws, seed=seed)
        low, high = float(np.exp(loss.low)), float(np.exp(loss.high))
        return replace(loss, value=self.perplexity, low=low, high=high)


@torch.inference_mode()
def window_losses(
    lens: LensModel,
    windows: Sequence[Sequence[int]],
    *,
    edits: Sequence[Edit] = (),
    token_budget: int = 4096,
) -> WindowLosses:
    """Σ −ln p(token | tokens before it) of every window, under hooks.

    Args:
        lens: The model.
        windows: Token ids, at least two each.
        edits: Applied to every forward pass.
        token_budget: Padded tokens a pass; fewer where their logits would need too much memory.

    Raises:
        ShapeError: A window has fewer than two tokens or does not fit the context.
        HookError: An edit's place does not exist.
    """
    check_windows(windows)
    nats = np.zeros(len(windows))
    budget = min(token_budget, max(1, _PASS_LOGITS // lens.d_vocab))
    with lens.hooks(edits):
        for indices in length_sorted_batches([len(window) for window in windows], budget):
            batch = pad([windows[index] for index in indices])
            logits = lens.forward(batch.ids, batch.mask)
            ids = batch.ids.to(logits.device)
            lengths = [len(windows[index]) for index in indices]
            sums = [
                _losses(logits[row, : length - 1], ids[row, 1:length]).sum()
                for row, length in enumerate(lengths)
            ]
            nats[indices] = torch.stack(sums).cpu().numpy()
    return WindowLosses(nats=nats, tokens=_predicted(windows))


class LastLayerWindows:
    """Windows of text as the last ``resid_post`` holds them: perplexity under steering there.

    Attributes:
        site: The last ``resid_post``.
        rows: The model's residuals at every position that predicts a token, in the model's dtype.
        readout: From rows to logits.
        mean_norm: Mean ‖x‖ of the rows.

    Args:
        lens: The model.
        windows: Token ids, at least two each.
        token_budget: Padded tokens a pass.

    Raises:
        ShapeError: A window has fewer than two tokens or does not fit the context.
    """

    def __init__(
        self, lens: LensModel, windows: Sequence[Sequence[int]], *, token_budget: int = 4096
    ) -> None:
        check_windows(windows)
        self.site = resid_post(lens.n_layers - 1)
        self.readout: Callable[[Tensor], Tensor] = lens.readout_at(self.site)
        self._tokens = _predicted(windows)
        self._block = max(1, _BLOCK_LOGITS // lens.d_vocab)
        rows, targets, owners = [], [], []
        for indices in length_sorted_batches([len(window) for window in windows], token_budget):
            batch = pad([windows[index] for index in indices])
            predicts = batch.mask.bool()
            predicts[torch.arange(len(indices)), batch.mask.sum(dim=1) - 1] = False
            places = predicts.nonzero()
            gather = Gather(places[:, 0], places[:, 1])
            rows.append(lens.capture(batch.ids, batch.mask, [self.site], gather)[self.site])
            targets.append(batch.ids[places[:, 0], places[:, 1] + 1])
            owners.append(torch.tensor(indices)[places[:, 0]])
        captured = torch.cat(rows)
        self.mean_norm = float(captured.double().norm(dim=1).mean())
        self.rows: Float[Tensor, "row d_model"] = captured.to(lens.device, lens.dtype)
        self._targets = torch.cat(targets).to(lens.device)
        self._owners = torch.cat(owners).numpy()

    def __len__(self) -> int:
        return len(self._tokens)

    def moved(
        self, coefficient: float, vector: Float[np.ndarray, " d_model"]
    ) -> Float[Tensor, "row d_model"]:
        """The rows + coefficient · vector, as a hook adds it.

        Raises:
            ShapeError: The vector has another width than the rows.
        """
        if np.shape(vector) != self.rows.shape[1:]:
            raise ShapeError(
                f"a vector of shape {np.shape(vector)} cannot be added at {self.site!r}, whose "
                f"rows have {self.rows.shape[1]} dimensions"
            )
        added = torch.from_numpy(coefficient * np.asarray(vector, dtype=np.float64))
        return self.rows + added.to(self.rows.device, self.rows.dtype)

    def mean_logit_change(
        self, coefficient: float, vector: Float[np.ndarray, " d_model"]
    ) -> Float[np.ndarray, " d_vocab"]:
        """Mean over the rows of the change of the logits under coefficient · vector.

        What the vector does when it reads no context. Its mean over the vocabulary is 0: a
        constant on all logits changes nothing.
        """
        moved = self.moved(coefficient, vector)
        readout = self.readout
        return mean_logit_bias(
            PairedRows(base=self.rows, policy=moved, base_readout=readout, policy_readout=readout),
            budget=_BLOCK_LOGITS,
        )

    @torch.inference_mode()
    def losses(
        self,
        coefficient: float = 0.0,
        *,
        vector: Float[np.ndarray, " d_model"] | None = None,
        logit_bias: Float[np.ndarray, " d_vocab"] | None = None,
    ) -> WindowLosses:
        """Losses of the windows under coefficient · vector, or coefficient · bias on the logits.

        Raises:
            ShapeError: The vector has another width than the rows.
        """
        rows = self.rows if vector is None else self.moved(coefficient, vector)
        bias = None
        if logit_bias is not None:
            scaled = torch.from_numpy(coefficient * np.asarray(logit_bias, dtype=np.float64))
            bias = scaled.to(rows.device, torch.promote_types(rows.dtype, torch.float32))
        losses = []
        for start in range(0, len(rows), self._block):
            block = slice(start, start + self._block)
            logits = self.readout(rows[block])
            losses.append(
                _losses(logits if bias is None else logits + bias, self._targets[block]).cpu()
            )
        nats = np.bincount(self._owners, weights=torch.cat(losses).numpy(), minlength=len(self))
        return WindowLosses(nats=nats, tokens=self._tokens)


def coefficient_at(
    rise: Callable[[float], float], aim: float, *, start: float, tolerance: float
) -> float | None:
    """A coefficient at which the rise of a loss is the one aimed at, by bracketing.

    The rise is continuous, 0 at 0, and near 0 quadratic or linear; it need not be monotone. Steps
    grow until it is above the aim; then, between the last two, the square root of the rise is
    interpolated and every third step is a bisection, so that the bracket shrinks whatever the
    curve.

    Args:
        rise: From a coefficient ≥ 0 to the loss above that of coefficient 0, in nats a token.
        aim: The rise asked for, above 0.
        start: The first coefficient tried, above 0.
        tolerance: How far from the aim is near enough, in nats a token.

    Returns:
        The coefficient, or None where the rise never reaches the aim.
    """
    coefficient, low, high = start, (0.0, 0.0), (np.inf, np.inf)
    short = 1.02  # the least factor of a growing step
    for evaluation in range(_MOST_EVALUATIONS):
        found = rise(coefficient)
        if abs(found - aim) <= tolerance:
            return coefficient
        if found < aim:
            low = (coefficient, max(found, 0.0))
        else:  # above it, or overflowed to NaN
            high = (coefficient, found)
        if high[0] == np.inf:
            if coefficient > _MOST_GROWTH * start:
                return None
            step = np.sqrt(1.02 * aim / found) if found > 0 else 4.0
            coefficient *= float(np.clip(step, short, 4.0))
            if step < 2:  # near, unless the curve flattens: the next step is not as short
                short = min(1.5 * short, 4.0)
            continue
        share = 0.5
        if evaluation % 3 and np.isfinite(high[1]):
            roots = np.sqrt([low[1], aim, high[1]])
            share = float(np.clip((roots[1] - roots[0]) / (roots[2] - roots[0]), 0.05, 0.95))
        coefficient = low[0] + share * (high[0] - low[0])
    return None


def check_windows(windows: Sequence[Sequence[int]]) -> None:
    """Refuse windows in which nothing is predicted.

    Raises:
        ShapeError: There are none, or one has fewer than two tokens.
    """
    if not windows:
        raise ShapeError("perplexity: found no windows, expected at least one")
    for index, window in enumerate(windows):
        if len(window) < 2:
            raise ShapeError(
                f"window {index} has {len(window)} tokens, expected at least 2: nothing predicts "
                "the first"
            )


def _predicted(windows: Sequence[Sequence[int]]) -> Int[np.ndarray, " window"]:
    return np.array([len(window) - 1 for window in windows], dtype=np.int64)


def _losses(
    logits: Float[Tensor, "row d_vocab"], targets: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    # Half precision would round every loss to three digits; sums are float64.
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return cross_entropy(wide, targets, reduction="none").to(
        torch.float32 if wide.device.type == "mps" else torch.float64
    )
