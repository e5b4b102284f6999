"""Continuations that a linear probe pulls towards an attribute: decoding after PPLM."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.errors import ConfigurationError, ShapeError
from dsteer_tl.lens_model import Edit, LensModel, pad
from dsteer_tl.sites import FINAL, check_site, layer_of, resid_post
from dsteer_tl.steering.token_choice import Decoding, sample, uniforms
from dsteer_tl.toxicity.continuing import length_batches

if TYPE_CHECKING:
    from dsteer_tl.toxicity.linear_probe import LinearProbe


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceConfiguration:
    """How far decoding is pulled towards the attribute.

    Attributes:
        site: The perturbed stream, ``resid_post.<layer>``, below the probe's; empty for the middle
            layer.
        strength: Root mean square norm of one gradient step a position, as a share of the median
            norm of the stream there; 0 is plain decoding.
        iterations: Gradient steps a token.
        fusion: γ, the weight of the perturbed distribution in the geometric mean of both.
        kl_scale: Weight of the KL divergence from the plain distribution.
        candidates: How many of the likeliest next tokens the probe sees ahead; 0 for the text so
            far alone.
    """

    site: str = ""
    strength: float = 0.05
    iterations: int = 3
    fusion: float = 0.9
    kl_scale: float = 0.01
    candidates: int = 3

    def __post_init__(self) -> None:
        rules = (
            (self.strength >= 0, f"strength is {self.strength}; expected at least 0"),
            (self.iterations >= 1, f"iterations is {self.iterations}; expected at least 1"),
            (0 <= self.fusion <= 1, f"fusion is {self.fusion}; expected from 0 to 1"),
            (self.kl_scale >= 0, f"kl_scale is {self.kl_scale}; expected at least 0"),
            (self.candidates >= 0, f"candidates is {self.candidates}; expected at least 0"),
        )
        for holds, message in rules:
            if not holds:
                raise ConfigurationError(f"guidance: {message}")


def guided_continuations(
    lens: LensModel,
    prompts: Sequence[Sequence[int]],
    probe: LinearProbe,
    configuration: GuidanceConfiguration,
    *,
    decoding: Decoding,
    unread: Collection[int] = (),
    batch_size: int = 32,
    progress: bool = True,
) -> list[tuple[int, ...]]:
    r"""Continues prompts towards the attribute of a probe (PPLM, Dathathri et al. 2020).

    Before each token a perturbation Δ of the residual stream x at one site climbs

    .. math:: w · \bar x(Δ) − λ\, KL(p_Δ ‖ p_0), \qquad
        \bar x(Δ) = \frac{1}{T + 1} \Big( \sum_{t ≤ T} x_t(Δ) + \sum_v p_Δ(v)\, x_{T+1}(v) \Big)

    where :math:`x_t` is the stream that the probe w reads, at the T tokens so far and at a next
    token v (one of the few likeliest, the probabilities of which are scaled to sum to 1), and
    :math:`p_Δ, p_0` are the next-token distributions with and without Δ. Each step has the same
    size, whatever the norm of the gradient. The token comes from :math:`p ∝ p_Δ^γ\, p_0^{1−γ}`.

    What differs from PPLM:

    - PPLM climbs log p = log σ(logit) of the attribute, here it is the logit: both have one
      direction, but that of log p vanishes once the probe is sure, and as steps are normalised the
      KL term alone would then turn them back.
    - PPLM perturbs the cached keys and values of all layers; here Δ is added to the residual
      stream after one block, at every position, because hooks cannot reach every backend's cache.
      The blocks below are not perturbed.
    - PPLM's perturbation is carried from token to token and grows with the text; here every token
      starts from Δ = 0, so that its norm stays below ``iterations × strength``.
    - PPLM looks ahead through the expected embedding of the next token; here through the expected
      residual, for there is no hook at the embedding. What would follow v is not perturbed.
    - PPLM samples from the 10 likeliest tokens; here `decoding` names a nucleus.

    Nothing is cached. A token costs ``1 + candidates`` whole forward passes over the text so far
    and, of the blocks above the site, ``iterations`` forward and backward passes and one forward
    pass more. Rows draw from random streams of their own, those of `continue_prompts`: batches
    change nothing but rounding, and at strength 0 both write the same.

    Args:
        lens: The model. No gradient reaches its weights.
        prompts: Token ids, at least one each.
        probe: What is climbed; its bias plays no part.
        configuration: How far.
        decoding: Length, temperature, nucleus and seed.
        unread: Token ids whose residuals the mean leaves out, as the probe's features did: the
            special tokens.
        batch_size: Prompts at a time.
        progress: Show a bar.

    Returns:
        For each prompt the new tokens, without the end of the sequence.

    Raises:
        ConfigurationError: The perturbed site is not below the probe's.
        ShapeError: The probe is not as wide as the model, or a prompt is empty or too long.
        HookError: The site does not exist.
    """
    for index, prompt in enumerate(prompts):
        length = len(prompt) + decoding.max_new_tokens
        if not prompt or length > lens.n_ctx:
            raise ShapeError(
                f"prompt {index} has {len(prompt)} tokens, expected from 1 to "
                f"{lens.n_ctx - decoding.max_new_tokens}: the context of {lens.name} is "
                f"{lens.n_ctx} and {decoding.max_new_tokens} are added"
            )
    found: dict[int, tuple[int, ...]] = {}
    with (
        torch.inference_mode(False),
        _without_weight_gradients(lens),
        tqdm(total=len(prompts), desc="guided", leave=False, disable=not progress) as bar,
    ):
        guide = _Guide(lens, probe, configuration, unread)
        for batch in length_batches(prompts, batch_size):
            texts = _continue(guide, [tuple(prompts[i]) for i in batch], batch, decoding)
            found.update(zip(batch, texts, strict=True))
            bar.update(len(batch))
    return [found[index] for index in range(len(prompts))]


def _continue(
    guide: _Guide, prompts: list[tuple[int, ...]], seeds: Sequence[int], decoding: Decoding
) -> list[tuple[int, ...]]:
    drawn = torch.from_numpy(uniforms(seeds, decoding))
    ends = set(guide.lens.end_token_ids)
    rows = list(prompts)
    going = list(range(len(rows)))
    for step in range(decoding.max_new_tokens):
        if not going:
            break
        batch = pad([rows[row] for row in going], device=guide.lens.device)
        logits = guide.logits(batch.ids, batch.mask)
        if decoding.temperature == 0:
            tokens = logits.argmax(dim=-1)
        else:
            tokens = sample(logits, drawn[going, step], decoding)
        chosen = dict(zip(going, tokens.tolist(), strict=True))
        going = [row for row in going if chosen[row] not in ends]
        for row in going:
            rows[row] = (*rows[row], chosen[row])
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


class _Ahead(NamedTuple):
    """The likeliest next tokens, ⟨w, x⟩ at each, and whether the probe's mean takes it in."""

    tokens: Int[Tensor, "batch candidate"]
    along: Float[Tensor, "batch candidate"]
    read: Bool[Tensor, "batch candidate"]


class _Guide:
    """Logits of the next token under guidance, for a right-padded batch."""

    def __init__(
        self,
        lens: LensModel,
        probe: LinearProbe,
        configuration: GuidanceConfiguration,
        unread: Collection[int],
    ) -> None:
        self.lens, self.configuration = lens, configuration
        self.site = configuration.site or resid_post((lens.n_layers - 1) // 2)
        self.read = check_site(probe.site, lens.n_layers, lens.name)
        check_site(self.site, lens.n_layers, lens.name)
        below, above = layer_of(self.site), layer_of(self.read)
        if below is None or (above is not None and below >= above):
            raise ConfigurationError(
                f"guidance perturbs {self.site!r} and its probe reads {self.read!r} of "
                f"{lens.name}, which has {lens.n_layers} layers: expected a site below the probe's"
            )
        self.weight = torch.as_tensor(probe.weight, dtype=torch.float32, device=lens.device)
        self.unread = torch.tensor(sorted(unread), dtype=torch.long, device=lens.device)
        if self.weight.shape != (lens.d_model,):
            raise ShapeError(
                f"the probe has the shape {tuple(self.weight.shape)}, expected ({lens.d_model},), "
                f"the width of {lens.name}: fit it on this model"
            )

    def logits(
        self, ids: Int[Tensor, "batch position"], mask: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Log p of the fused distribution, up to a constant a row; plain logits at strength 0."""
        settings = self.configuration
        with torch.no_grad(), self.lens.reading([self.site]) as kept:
            plain = self._last_logits(ids, mask)
        if settings.strength == 0:
            return plain
        stream = kept[self.site]
        before = plain.log_softmax(dim=-1)
        ahead = self._look_ahead(ids, mask, before)
        change = torch.zeros_like(stream, dtype=torch.float32)
        size = settings.strength * _step_size(stream, mask.bool().to(stream.device))
        for _ in range(settings.iterations):
            slope = self._slope(ids, mask, stream, change, before, ahead)
            norm = slope.norm(dim=(1, 2), keepdim=True)
            # A row whose gradient vanishes stays where it is.
            change = change + slope * (size / norm).where(norm > 0, 0)
        with torch.no_grad(), self.lens.resumed(self.site, stream + change):
            after = self._last_logits(ids, mask).log_softmax(dim=-1)
        return settings.fusion * after + (1 - settings.fusion) * before

    def _slope(
        self,
        ids: Tensor,
        mask: Tensor,
        stream: Tensor,
        change: Tensor,
        before: Tensor,
        ahead: _Ahead,
    ) -> Float[Tensor, "batch position d_model"]:
        change = change.detach().requires_grad_()
        with (
            torch.enable_grad(),
            self.lens.resumed(self.site, stream + change),
            self.lens.reading([self.read]) as kept,
        ):
            after = self._last_logits(ids, mask).log_softmax(dim=-1)
            divergence = (after.exp() * (after - before)).sum(dim=-1)
            read = mask.bool() & ~torch.isin(ids, self.unread)
            expected = after.gather(1, ahead.tokens).softmax(dim=-1) * ahead.read
            count = read.sum(dim=1) + expected.sum(dim=1)
            sums = (self._along(kept[self.read]) * read).sum(dim=1)
            attribute = (sums + (expected * ahead.along).sum(dim=1)) / count.clamp_min(1e-6)
            # Where nothing is read there is nothing to climb but rounding.
            gain = (attribute - self.configuration.kl_scale * divergence) * (count > 0)
            # Rows do not see each other: the gradient of the sum is every row's own.
            return torch.autograd.grad(gain.sum(), change)[0]

    def _look_ahead(self, ids: Tensor, mask: Tensor, before: Tensor) -> _Ahead:
        """What the probe would read at each of the likeliest next tokens."""
        rows, k = len(ids), self.configuration.candidates
        tokens = before.topk(k, dim=-1).indices
        if k == 0:
            return _Ahead(tokens, before[:, :0], tokens.bool())
        place = mask.sum(dim=1).repeat_interleave(k)[:, None]
        room = ids.new_zeros((rows, 1))
        longer = torch.cat([ids, room], dim=1).repeat_interleave(k, dim=0)
        longer = longer.scatter(1, place, tokens.reshape(-1, 1))
        real = torch.cat([mask, room], dim=1).repeat_interleave(k, dim=0).scatter(1, place, 1)
        with torch.no_grad(), self.lens.reading([self.read]) as kept:
            self._last_logits(longer, real)
        along = self._along(kept[self.read]).gather(1, place).reshape(rows, k)
        return _Ahead(tokens, along, ~torch.isin(tokens, self.unread))

    def _along(self, residual: Tensor) -> Float[Tensor, "batch position"]:
        return residual.to(self.weight) @ self.weight

    def _last_logits(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "batch d_vocab"]:
        rows, last = torch.arange(len(ids), device=ids.device), mask.sum(dim=1) - 1
        # One position a row meets the unembedding.
        gather = Edit(FINAL, lambda h: h[rows.to(h.device), last.to(h.device)][:, None])
        with self.lens.hooks([gather]):
            return self.lens.forward(ids, mask)[:, 0].float()


def _step_size(
    stream: Float[Tensor, "batch position d_model"], real: Bool[Tensor, "batch position"]
) -> Float[Tensor, "batch 1 1"]:
    # The median: the first position of many models is a hundred times as long as the others.
    norms = stream.float().norm(dim=-1).masked_fill(~real, torch.nan)
    median: Tensor = norms.nanmedian(dim=1).values
    return (median * real.sum(dim=1).sqrt())[:, None, None]


@contextlib.contextmanager
def _without_weight_gradients(lens: LensModel) -> Iterator[None]:
    """Keep autograd to the perturbation; the weights are as they were afterwards."""
    trained = [p for block in lens._stages for p in block.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
