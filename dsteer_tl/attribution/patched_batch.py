"""One batch of texts: both models on it, and the base with the policy's writes in some layers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dsteer_tl.distributions import divergence, log_probabilities
from dsteer_tl.lens_model import Edit, Gather, LensModel, pad
from dsteer_tl.lens_model.base import EditFunction
from dsteer_tl.pair import ModelPair
from dsteer_tl.sites import resid_post

#: What a block adds to the stream.
OUTPUTS = ("attn_out", "mlp_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One sequence: a prompt with its chosen response, or with the rejected one.

    Attributes:
        probe: Number of the probe that it belongs to.
        prompt: Number of its prompt.
        ids: Token ids.
        prompt_length: Tokens of the prompt.
        positions: For each kind, positions whose next-token distribution is measured.
        sign: Of its log-probability in the margin: 1 chosen, −1 rejected, 0 where there is none.
    """

    probe: int
    prompt: int
    ids: tuple[int, ...]
    prompt_length: int
    positions: Mapping[str, tuple[int, ...]]
    sign: int


class PatchedBatch:
    """Runs both models once, and the base again for every patch.

    Attributes:
        rows: Text, position and position kind of every row whose distribution is measured.
        kl_base: KL(policy‖base) of each row, in nats.
        policy_change: Log p(response) of each text, policy minus base, in nats.
    """

    def __init__(self, pair: ModelPair, texts: Sequence[Text], seed: Sequence[int]) -> None:
        self._base, self._texts, self._seed = pair.base, texts, seed
        self._batch = pad([text.ids for text in texts])
        self.rows = [
            (row, position, kind)
            for row, text in enumerate(texts)
            for kind, positions in text.positions.items()
            for position in positions
        ]
        self._next = [  # row, position: the next token is one of the response
            (row, position)
            for row, text in enumerate(texts)
            if text.sign
            for position in range(text.prompt_length - 1, len(text.ids) - 1)
        ]
        places = sorted({(row, position) for row, position, _ in self.rows} | set(self._next))
        index = {place: number for number, place in enumerate(places)}
        self._at = _column([index[row, position] for row, position, _ in self.rows])
        self._next_at = _column([index[place] for place in self._next])
        self._tokens = _column([texts[row].ids[position + 1] for row, position in self._next])
        self._gather = Gather(_column([row for row, _ in places]), _column([p for _, p in places]))
        layers = range(pair.base.n_layers)
        parts = [f"{kind}.{layer}" for layer in layers for kind in OUTPUTS]
        self._last = resid_post(layers[-1])
        with pair.base.reading(["resid_pre.0", *map(resid_post, layers[:-1]), *parts]) as found:
            base = self._logits(pair.base)
        self._kept = dict(found)
        with pair.policy.reading(parts) as found:
            policy = self._logits(pair.policy)
        self._replacements = {("policy", place): tensor for place, tensor in found.items()}
        self._target = log_probabilities(policy[self._at])
        self.kl_base = divergence(self._target, base[self._at])
        self._base_likelihoods = self._log_likelihoods(base)
        self.policy_change = self._log_likelihoods(policy) - self._base_likelihoods

    def measure(
        self, places: Sequence[str], source: str, positions: str
    ) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " text"], Bool[np.ndarray, " row"]]:
        """Replace the outputs at places and run the base on.

        Args:
            places: Outputs of attention and MLPs.
            source: ``policy``, or ``random``: the base's outputs with a random change as long as
                the policy's at every token.
            positions: ``all``, ``prompt``, ``last_prompt`` or ``response``.

        Returns:
            KL(policy‖patched) of each row; the change of each text's log p(response); and the rows
            that a replaced token can reach, those at it or after it.
        """
        where = self._where(positions)
        layer, stream, left = self._start(places, source, everywhere=positions == "all")
        if layer == self._base.n_layers:
            at = (self._gather.rows, self._gather.positions)
            logits = self._readout(self._base, stream[at])
        else:
            edits = [
                Edit(place, _replacement(self._replaced(place, source), where)) for place in left
            ]
            with contextlib.ExitStack() as stack:
                if layer:
                    stack.enter_context(self._base.resumed(resid_post(layer - 1), stream))
                stack.enter_context(self._base.hooks(edits))
                logits = self._logits(self._base)
        kl = divergence(self._target, logits[self._at])
        change = self._log_likelihoods(logits) - self._base_likelihoods
        begun = where.cumsum(dim=1) > 0
        at = (_column([r[0] for r in self.rows]), _column([r[1] for r in self.rows]))
        return kl, change, begun[at].numpy()

    def _start(
        self, places: Sequence[str], source: str, *, everywhere: bool
    ) -> tuple[int, Float[Tensor, "batch position d_model"], list[str]]:
        """The first layer that must run, the stream that enters it, and what is replaced above.

        Layers below the first replaced one are the base's. Where a layer's outputs are all known
        before it runs, since both are replaced at all tokens, they are added up instead.
        """
        lowest = layer = min(int(place.rsplit(".", 1)[1]) for place in places)
        stream = self._kept["resid_pre.0" if layer == 0 else resid_post(layer - 1)]
        left = list(places)
        while everywhere and left:
            attention, mlp = (f"{kind}.{layer}" for kind in OUTPUTS)
            if attention in left and mlp in left:
                written = self._replaced(attention, source) + self._replaced(mlp, source)
            elif mlp in left and layer == lowest:  # attention still reads the base's stream
                written = self._kept[attention] + self._replaced(mlp, source)
            else:
                break
            stream, layer = stream + written.to(stream), layer + 1
            left = [place for place in left if place not in (attention, mlp)]
        return layer, stream, left

    def _replaced(self, place: str, source: str) -> Float[Tensor, "batch position d_model"]:
        key = (source, place)
        if key not in self._replacements:
            base = self._kept[place]
            policy = self._replacements["policy", place].to(base)
            # Seeded by place, so that a place has one random change in all groups.
            seed = np.random.SeedSequence([*self._seed, *place.encode()]).generate_state(2)
            generator = torch.Generator().manual_seed(int(seed[0]))
            noise = torch.randn(base.shape, generator=generator).to(base)
            length = (policy - base).norm(dim=-1, keepdim=True)
            self._replacements[key] = base + noise * (length / noise.norm(dim=-1, keepdim=True))
        return self._replacements[key]

    def _where(self, positions: str) -> Bool[Tensor, "batch position"]:
        column = torch.arange(self._batch.ids.shape[1])
        length = torch.tensor([text.prompt_length for text in self._texts])[:, None]
        chosen = {
            "all": column >= 0,
            "prompt": column < length,
            "last_prompt": column == length - 1,
            "response": column >= length,
        }[positions]
        return chosen.expand(self._batch.ids.shape) & self._batch.mask.bool()

    def _logits(self, lens: LensModel) -> Float[Tensor, "row d_vocab"]:
        """Logits at the measured rows, so that the unembedding runs on these alone."""
        ids, mask = self._batch.ids, self._batch.mask
        return self._readout(lens, lens.capture(ids, mask, (self._last,), self._gather)[self._last])

    def _readout(self, lens: LensModel, stream: Tensor) -> Float[Tensor, "row d_vocab"]:
        return lens.readout_at(self._last)(stream.to(lens.device, lens.dtype))

    def _log_likelihoods(self, logits: Tensor) -> Float[np.ndarray, " text"]:
        """Log p(response) of each text, teacher-forced, in nats."""
        chosen = logits[self._next_at.to(logits.device)].float()
        tokens = self._tokens.to(logits.device)
        found = torch.gather(chosen, 1, tokens[:, None])[:, 0] - chosen.logsumexp(dim=-1)
        rows = _column([row for row, _ in self._next]).numpy()
        weights = found.double().cpu().numpy()
        return np.asarray(np.bincount(rows, weights, minlength=len(self._texts)))


def _column(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def _replacement(value: Tensor, where: Tensor) -> EditFunction:
    return lambda found: torch.where(where[..., None].to(found.device), value.to(found), found)
