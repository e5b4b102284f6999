"""How much of the policy's behaviour does a vector carry?

One currency throughout: Kullback–Leibler divergence in nats between next-token distributions, and
the share of it that an edit removes (D-STEER's interpolation and inversion, claims 11 and 13).

**Trivial at h.** The logits are W_Uᵀh + b_U, so adding v to h adds the constant W_Uᵀv to the
logits of every row: there a steering vector *is* a constant logit bias of rank at most d_model, and
its recovery says only that the policy's tokens shifted alike everywhere. Compare it with
`fit_logit_bias`, the best constant bias of any rank, fitted on other rows: what the bias recovers
as well is `TRIVIAL`. Before the last blocks the comparison is informative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsteer_tl.controls import Interval, bootstrap_ratio
from dsteer_tl.cosines import finite_rows, finite_vector
from dsteer_tl.errors import ShapeError
from dsteer_tl.spectra import check_orthonormal

# Rows of a site to logits: the rest of the network from that site on, without gradient.
Readout = Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row d_vocab"]]
Direction = Literal["interpolate", "invert"]

# Logits in one block of rows; a block of float64 is 128 MiB, and a few are alive at a time.
BUDGET = 2**24
# Mean nats below which two models are the same to rounding and no share of it is defined.
_SAME = 1e-12
_SCALING_STEPS = 10

_Steer = Callable[[slice, float], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Divergence that is left, and the share removed, along a grid of edits.

    Attributes:
        direction: "interpolate" is KL(policy‖edited base), "invert" KL(base‖edited policy).
        grid: The coefficients λ, or the ranks k.
        kl: Divergence in nats after the edit, per grid point and row.
        reference_kl: Divergence without any edit, per row.
        recovered: 1 − Σ kl / Σ reference_kl per grid point, a ratio of sums, so that rows on
            which the models hardly differ weigh little. 1 restores the target exactly, 0 is no
            better than no edit, below 0 is worse. Intervals by bootstrap over groups.
        reason: Why `recovered` is NaN: the models agree to rounding. Empty when defined.
    """

    direction: Direction
    grid: Float[np.ndarray, " grid"]
    kl: Float[np.ndarray, "grid row"]
    reference_kl: Float[np.ndarray, " row"]
    recovered: tuple[Interval, ...]
    reason: str = ""

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.reference_kl.size)

    @property
    def mean_kl(self) -> Float[np.ndarray, " grid"]:
        """Mean divergence in nats after the edit, per grid point."""
        return np.asarray(self.kl.mean(axis=1))


def kl(
    readout_p: Readout,
    rows_p: Float[Tensor, "row d_model"],
    readout_q: Readout,
    rows_q: Float[Tensor, "row d_model"],
    *,
    budget: int = BUDGET,
) -> Float[np.ndarray, " row"]:
    """KL(p‖q) = Σ_y p(y) ln(p(y)/q(y)) per row, in nats, computed in float64.

    Args:
        readout_p: Readout of the first argument of the divergence.
        rows_p: Its rows.
        readout_q: Readout of the second.
        rows_q: Its rows, aligned with `rows_p`.
        budget: Most logits of one model held at a time; rows go in blocks of budget / d_vocab.

    Raises:
        ShapeError: Rows or vocabularies do not match, or NaN/inf in the rows.
    """
    _check_aligned(rows_p, rows_q)
    with torch.no_grad():
        parts = [
            _divergence(_log_probabilities(readout_p(rows_p[block])), readout_q(rows_q[block]))
            for block in _blocks(readout_p, rows_p, budget)
        ]
    return np.concatenate(parts)


def interpolation_recovery(
    base_rows: Float[Tensor, "row d_model"],
    policy_rows: Float[Tensor, "row d_model"],
    base_readout: Readout,
    policy_readout: Readout,
    vector: Float[np.ndarray, " d_model"],
    coefficients: Sequence[float],
    *,
    seed: int,
    groups: Sequence[object] | np.ndarray | None = None,
    draws: int = 1000,
    budget: int = BUDGET,
) -> Recovery:
    """Base + λv against the policy: 1 − ΣKL(policy‖base+λv) / ΣKL(policy‖base) (claim 11).

    Choose λ on one split and report it on another; at h see "Trivial at h" above.

    Args:
        base_rows: The base's activations at the site.
        policy_rows: The policy's activations on the same tokens.
        base_readout: From the site to the base's logits.
        policy_readout: From the site to the policy's logits.
        vector: The steering vector, in the units of the rows.
        coefficients: The λ to try.
        seed: Seed of the bootstrap.
        groups: One label (the prompt) per row for the bootstrap.
        draws: Bootstrap draws.
        budget: See `kl`.

    Raises:
        ShapeError: Shapes do not match, NaN/inf, no coefficients, or fewer than two groups.
    """
    _check_aligned(base_rows, policy_rows)
    offset = _like(finite_vector(vector), base_rows)

    def steer(block: slice, coefficient: float) -> Tensor:
        return base_readout(base_rows[block] + coefficient * offset)

    return _recovery(
        "interpolate", policy_readout, policy_rows, steer, base_readout, base_rows,
        coefficients, seed, groups, draws, budget,
    )  # fmt: skip


def inversion_recovery(
    base_rows: Float[Tensor, "row d_model"],
    policy_rows: Float[Tensor, "row d_model"],
    base_readout: Readout,
    policy_readout: Readout,
    vector: Float[np.ndarray, " d_model"],
    coefficients: Sequence[float],
    *,
    seed: int,
    groups: Sequence[object] | np.ndarray | None = None,
    draws: int = 1000,
    budget: int = BUDGET,
) -> Recovery:
    """Policy − λv against the base: 1 − ΣKL(base‖policy−λv) / ΣKL(base‖policy) (claim 13).

    Arguments, errors and the caveat at h as in `interpolation_recovery`; λ > 0 removes.
    """
    _check_aligned(base_rows, policy_rows)
    offset = _like(finite_vector(vector), policy_rows)

    def steer(block: slice, coefficient: float) -> Tensor:
        return policy_readout(policy_rows[block] - coefficient * offset)

    return _recovery(
        "invert", base_readout, base_rows, steer, policy_readout, policy_rows,
        coefficients, seed, groups, draws, budget,
    )  # fmt: skip


def subspace_recovery(
    base_rows: Float[Tensor, "row d_model"],
    policy_rows: Float[Tensor, "row d_model"],
    base_readout: Readout,
    policy_readout: Readout,
    basis: Float[np.ndarray, "component d_model"],
    ranks: Sequence[int],
    *,
    seed: int,
    mean: Float[np.ndarray, " d_model"] | None = None,
    groups: Sequence[object] | np.ndarray | None = None,
    draws: int = 1000,
    budget: int = BUDGET,
) -> Recovery:
    """Adds to the base each row's own shift, projected on the first k directions.

    A generous rank-k account of the change: unlike one vector with one λ, each row brings its own
    k coefficients, read off the policy. Rank 0 adds nothing (or only `mean`); with all d_model
    directions and equal readouts everything is recovered. A random basis of the same rank is the
    control.

    Args:
        base_rows: As in `interpolation_recovery`, and so all arguments not named here.
        policy_rows: The policy's activations on the same tokens.
        base_readout: From the site to the base's logits.
        policy_readout: From the site to the policy's logits.
        basis: Orthonormal directions, such as `Spectrum.directions` of other rows.
        ranks: The k to try, each between 0 and the number of directions.
        seed: Seed of the bootstrap.
        mean: If given, mean + P_k(shift − mean) is added instead: for a centred basis.
        groups: One label per row for the bootstrap.
        draws: Bootstrap draws.
        budget: See `kl`.

    Raises:
        ShapeError: Shapes do not match, NaN/inf, a basis not orthonormal, or an impossible rank.
    """
    _check_aligned(base_rows, policy_rows)
    directions = finite_rows(basis, name="basis")
    check_orthonormal(directions, base_rows.shape[1])
    wrong = [rank for rank in ranks if rank != int(rank) or not 0 <= rank <= len(directions)]
    if wrong:
        raise ShapeError(
            f"subspace recovery: found ranks {wrong}, expected integers from 0 to "
            f"{len(directions)}, the number of directions"
        )
    frame = torch.as_tensor(directions).to(base_rows)
    offset = None if mean is None else _like(finite_vector(mean, name="mean"), base_rows)

    def steer(block: slice, rank: float) -> Tensor:
        shift = policy_rows[block].to(base_rows) - base_rows[block]
        first = frame[: int(rank)]
        if offset is None:
            return base_readout(base_rows[block] + (shift @ first.T) @ first)
        return base_readout(base_rows[block] + offset + ((shift - offset) @ first.T) @ first)

    return _recovery(
        "interpolate", policy_readout, policy_rows, steer, base_readout, base_rows,
        ranks, seed, groups, draws, budget,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitBias:
    """The constant logit bias that best turns the base into the policy.

    Attributes:
        bias: b, with mean 0 (a constant added to all logits changes nothing).
        kl_before: Mean KL(policy‖base) on the fitting rows, in nats.
        kl_after: Mean KL(policy‖softmax(z_base + b)) on the fitting rows.
        residual: Largest entry of the gradient, |mean q(y) − mean p(y)|; 0 at the optimum.
    """

    bias: Float[np.ndarray, " d_vocab"]
    kl_before: float
    kl_after: float
    residual: float


@torch.inference_mode()
def mean_logit_bias(
    base_rows: Float[Tensor, "row d_model"],
    policy_rows: Float[Tensor, "row d_model"],
    base_readout: Readout,
    policy_readout: Readout,
    *,
    budget: int = BUDGET,
) -> Float[np.ndarray, " d_vocab"]:
    """The mean change of the logits over rows, b = mean(z_policy − z_base), with mean(b) = 0.

    At ``h``, with one readout, this is W_Uᵀv* up to the gauge: adding v* there and adding this
    constant to the logits are the same operation (claim 11's trap).

    Args:
        base_rows: Base residuals, ``[row, d_model]``.
        policy_rows: Policy residuals at the same rows.
        base_readout: Residuals to logits in the base.
        policy_readout: The same in the policy.
        budget: Logits held at a time.

    Raises:
        ShapeError: The two sets of rows differ in shape.
    """
    _check_aligned(base_rows, policy_rows)
    total = _sum(
        _double(policy_readout(policy_rows[block])) - _double(base_readout(base_rows[block]))
        for block in _blocks(base_readout, base_rows, budget)
    )
    bias: np.ndarray = (total / len(base_rows)).cpu().numpy()
    centred: np.ndarray = bias - bias.mean()
    return centred


def fit_logit_bias(
    base_rows: Float[Tensor, "row d_model"],
    policy_rows: Float[Tensor, "row d_model"],
    base_readout: Readout,
    policy_readout: Readout,
    *,
    iterations: int = 40,
    budget: int = BUDGET,
) -> LogitBias:
    """Minimises mean KL(policy‖softmax(z_base + b)) over constant biases b ∈ R^d_vocab.

    The control of every recovery (claim 11): a bias knows nothing about the context, and any
    steering vector at h is one of rank ≤ d_model. The problem is convex; its gradient is
    mean q − mean p. A few steps of iterative scaling, b ← b + ln(mean p / mean q), which never go
    up and settle the rare tokens, then L-BFGS with a fixed budget, so that the result is
    reproducible. Fit on one split, report `bias_recovery` on another.

    Args:
        base_rows: The base's activations at the site.
        policy_rows: The policy's activations on the same tokens.
        base_readout: From the site to the base's logits.
        policy_readout: From the site to the policy's logits.
        iterations: L-BFGS iterations.
        budget: See `kl`. If all base logits fit, they are computed once.

    Raises:
        ShapeError: Shapes do not match, or NaN/inf in the rows.
    """
    _check_aligned(base_rows, policy_rows)
    n = len(base_rows)
    with torch.no_grad():
        blocks = list(_blocks(base_readout, base_rows, budget))
        kept = [_double(base_readout(base_rows))] if len(blocks) == 1 else None
        before = kl(policy_readout, policy_rows, base_readout, base_rows, budget=budget)
        target = _sum(
            _log_probabilities(policy_readout(policy_rows[block])).exp() for block in blocks
        ).div(n)

        def logits() -> Iterator[Tensor]:
            return iter(kept) if kept else (_double(base_readout(base_rows[b])) for b in blocks)

        def moments(bias: Tensor) -> tuple[Tensor, Tensor]:
            loss, expected = torch.zeros_like(bias[0]), torch.zeros_like(bias)
            for block in logits():
                shifted = block + bias
                normaliser = shifted.logsumexp(dim=1, keepdim=True)
                loss += normaliser.sum()
                expected += (shifted - normaliser).exp_().sum(dim=0)
            return loss / n - target @ bias, expected / n

        bias = torch.zeros_like(target)
        smallest = torch.finfo(target.dtype).tiny
        for _ in range(_SCALING_STEPS):
            _, expected = moments(bias)
            bias += target.clamp_min(smallest).log() - expected.clamp_min(smallest).log()
            bias -= bias.mean()
        _minimise(bias, target, moments, iterations)
        bias -= bias.mean()
        after = np.concatenate(
            [
                _divergence(
                    _log_probabilities(policy_readout(policy_rows[block])),
                    _double(base_readout(base_rows[block])) + bias,
                )
                for block in blocks
            ]
        )
        residual = float((moments(bias)[1] - target).abs().max())
    return LogitBias(
        bias=bias.cpu().numpy().astype(np.float64),
        kl_before=float(before.mean()),
        kl_after=float(after.mean()),
        residual=residual,
    )


def bias_recovery(
    base_rows: Float[Tensor, "row d_model"],
    policy_rows: Float[Tensor, "row d_model"],
    base_readout: Readout,
    policy_readout: Readout,
    bias: Float[np.ndarray, " d_vocab"],
    coefficients: Sequence[float],
    *,
    seed: int,
    direction: Direction = "interpolate",
    groups: Sequence[object] | np.ndarray | None = None,
    draws: int = 1000,
    budget: int = BUDGET,
) -> Recovery:
    """Recovery of a constant logit bias: softmax(z_base + λb), or softmax(z_policy − λb).

    Pass rows the bias was not fitted on. Arguments and errors as in `interpolation_recovery`;
    `direction` "invert" is the control of `inversion_recovery`.
    """
    _check_aligned(base_rows, policy_rows)
    invert = direction == "invert"
    rows, readout = (policy_rows, policy_readout) if invert else (base_rows, base_readout)
    target_rows, target_readout = (
        (base_rows, base_readout) if invert else (policy_rows, policy_readout)
    )
    constant = finite_vector(bias, name="bias") * (-1.0 if invert else 1.0)

    def steer(block: slice, coefficient: float) -> Tensor:
        logits = _double(readout(rows[block]))
        if logits.shape[1] != constant.size:
            raise ShapeError(
                f"bias: found {constant.size} entries, expected {logits.shape[1]}, the vocabulary "
                "of the readout"
            )
        return logits + coefficient * torch.as_tensor(constant).to(logits)

    return _recovery(
        direction, target_readout, target_rows, steer, readout, rows,
        coefficients, seed, groups, draws, budget,
    )  # fmt: skip


def _recovery(
    direction: Direction,
    target_readout: Readout,
    target_rows: Tensor,
    steer: _Steer,
    start_readout: Readout,
    start_rows: Tensor,
    grid: Sequence[float],
    seed: int,
    groups: Sequence[object] | np.ndarray | None,
    draws: int,
    budget: int,
) -> Recovery:
    points = finite_vector(np.asarray(grid, dtype=np.float64), name="grid")
    columns: list[np.ndarray] = []
    with torch.no_grad():
        for block in _blocks(target_readout, target_rows, budget):
            target = _log_probabilities(target_readout(target_rows[block]))
            edits = [_divergence(target, start_readout(start_rows[block]))]
            edits += [_divergence(target, steer(block, float(point))) for point in points]
            columns.append(np.stack(edits))
    table = np.concatenate(columns, axis=1)
    reference, left = table[0], table[1:]
    reason = ""
    recovered: tuple[Interval, ...]
    if reference.mean() <= _SAME:
        reason = (
            f"base and policy agree: mean KL {reference.mean():.1g} nats over {reference.size} "
            "rows leaves nothing to recover"
        )
        undefined = Interval(value=float("nan"), low=float("nan"), high=float("nan"), draws=0)
        recovered = (undefined,) * points.size
    else:
        recovered = tuple(
            bootstrap_ratio(reference - each, reference, groups, draws=draws, seed=seed)
            for each in left
        )
    return Recovery(
        direction=direction,
        grid=points,
        kl=left,
        reference_kl=reference,
        recovered=recovered,
        reason=reason,
    )


def _minimise(
    bias: Tensor,
    target: Tensor,
    moments: Callable[[Tensor], tuple[Tensor, Tensor]],
    iterations: int,
) -> None:
    optimiser = torch.optim.LBFGS(
        [bias],
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=20,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        loss, expected = moments(bias)
        bias.grad = expected - target
        return float(loss)

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    bias.grad = None


def _blocks(readout: Readout, rows: Tensor, budget: int) -> Iterator[slice]:
    step = max(1, budget // int(readout(rows[:1]).shape[-1]))
    for start in range(0, len(rows), step):
        yield slice(start, min(start + step, len(rows)))


def _double(logits: Tensor) -> Tensor:
    # Apple's GPUs have no float64; there float32 has to do.
    return logits.float() if logits.device.type == "mps" else logits.double()


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(_double(logits), dim=-1)


def _divergence(log_p: Tensor, logits_q: Tensor) -> np.ndarray:
    log_q = _log_probabilities(logits_q).to(log_p.device)
    if log_p.shape != log_q.shape:
        raise ShapeError(
            f"KL: found logits {tuple(log_p.shape)} and {tuple(log_q.shape)}, expected equal "
            "shapes: both models need one vocabulary"
        )
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p))  # 0 ln 0 = 0
    return np.asarray(terms.sum(dim=-1).clamp_min(0).cpu().numpy(), dtype=np.float64)


def _sum(tensors: Iterator[Tensor]) -> Tensor:
    total = next(tensors).sum(dim=0)
    for tensor in tensors:
        total = total + tensor.sum(dim=0)
    return total


def _like(vector: np.ndarray, rows: Tensor) -> Tensor:
    if vector.size != rows.shape[1]:
        raise ShapeError(
            f"vector: found {vector.size} entries, expected {rows.shape[1]}, the d_model of the "
            "rows: use a vector of this site"
        )
    return torch.as_tensor(vector).to(rows)


def _check_aligned(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or first.shape[:1] != second.shape[:1] or second.ndim != 2 or not len(first):
        raise ShapeError(
            f"rows: found shapes {tuple(first.shape)} and {tuple(second.shape)}, expected two "
            "(row, d_model) with as many rows: capture both models on the same tokens"
        )
    for rows in (first, second):
        bad = ~torch.isfinite(rows)
        if bad.any():
            row, column = (int(index) for index in bad.nonzero()[0])
            raise ShapeError(
                f"rows: found {int(bad.sum())} NaN or infinite entries, the first at row {row}, "
                f"column {column}, expected finite numbers: check the precision of the capture"
            )
