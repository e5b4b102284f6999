"""How much of DPO's effect a group of neurons carries: the policy's activations in the base.

Yang et al. 2024 find that toxic neurons explain 2.5–24 % of what DPO does to toxicity (claim 30).
Here both models read the same tokens, and the base runs once more with the activations m of some
neurons taken from the policy. Activations alone are patched: value vectors, attention and all else
stay the base's, so that even all neurons together need not give the policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.cosines import finite_vector, unit_rows
from dsteer_tl.distributions import Readout, blocks, divergence, log_probabilities
from dsteer_tl.errors import PairError, ShapeError
from dsteer_tl.lens_model import Gather, LensModel, PaddedBatch, length_sorted_batches, pad
from dsteer_tl.sites import resid_post
from dsteer_tl.toxicity.neuron_edits import (
    all_neurons,
    check_neurons,
    layers_of,
    replace_activations,
)
from dsteer_tl.toxicity.patching_shares import (
    STATISTICS,
    Patch,
    PatchingSums,
    share_table,
)
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import Neurons, StudyTexts
from dsteer_tl.toxicity.value_vectors import random_neurons

#: Random groups that the control averages over: which neurons are drawn matters more than which
#: prompts are read.
RANDOM_DRAWS = 12
#: As many of them have the smaller size too, and their KL, which is as slow as a forward pass.
KL_DRAWS = 3

# Logits that are compared at a time: as float64 they stay in a processor's cache, which halves the
# time. Fewer rows than this would read the whole unembedding for too little.
_BLOCK_LOGITS = 2**18
_FEWEST_ROWS = 64


def measure_patching(
    base: LensModel,
    policy: LensModel,
    texts: StudyTexts,
    probe_direction: Float[np.ndarray, " d_model"],
    attribute: Neurons,
    configuration: ToxicityConfiguration,
    *,
    unread: Collection[int] = (),
    progress: bool = True,
) -> pd.DataFrame:
    """The table ``toxicity_patching`` (claim 30): recovered shares with intervals over prompts.

    Both models read each prompt with the base's continuation; every token is patched. A share is 1
    where patching gives the policy, 0 where it does nothing and below 0 where it leads away; where
    the models do not differ in a statistic, its shares are NaN. The groups are the attribute's
    neurons (all, and the first ``configuration.neurons``), as many random neurons outside the
    group, and every neuron of every layer, for which the total effect alone is measured.

    A random share is the mean over ``draws`` groups: 12, or 3 for the KL and for the smaller size.
    ``draws_low`` and ``draws_high`` are the smallest and largest share among them; ``whole`` is
    what the models differ by, policy minus base of the projection or KL, as a mean over prompts.

    The mean of the projection over a prompt's tokens leaves the ids in ``unread`` out: give the
    special tokens, which the probe's features left out too. The KL counts every token.

    Raises:
        HookError: A neuron does not exist, or the value vectors are not what neurons write.
        PairError: The models have different shapes.
        ShapeError: The direction is not of the stream, there are fewer than two prompts, one has
            unread tokens alone, or too few neurons are left for the control.
    """
    sizes = sorted({len(attribute), min(configuration.neurons, len(attribute))})
    patches = [Patch(attribute.first(size)) for size in sizes]
    for draw in range(RANDOM_DRAWS):
        seed = int(np.random.SeedSequence([configuration.seed, draw]).generate_state(1)[0])
        drawn = random_neurons(base.n_layers, base.d_mlp, sizes[-1], seed, exclude=attribute)
        if draw < KL_DRAWS:
            patches += [Patch(drawn.first(size)) for size in sizes]
        else:
            patches.append(Patch(drawn, statistics=STATISTICS[:1]))
    patches.append(Patch(all_neurons(base), ("total",)))
    pairs = zip(texts.prompts, texts.continuations["base"], strict=True)
    sums = patching_sums(
        base,
        policy,
        [(*prompt, *continuation) for prompt, continuation in pairs],
        probe_direction,
        patches,
        token_budget=configuration.token_budget,
        unread=unread,
        progress=progress,
    )
    return share_table(patches, sums, draws=configuration.draws, seed=configuration.seed)


@torch.inference_mode()
def patching_sums(
    base: LensModel,
    policy: LensModel,
    sequences: Sequence[Sequence[int]],
    probe_direction: Float[np.ndarray, " d_model"],
    patches: Sequence[Patch],
    *,
    token_budget: int,
    unread: Collection[int] = (),
    progress: bool = True,
) -> PatchingSums:
    """Run every patch over every sequence.

    Args:
        base: The model that is patched.
        policy: Where the activations come from.
        sequences: Token ids; every token is patched.
        probe_direction: The probe on the last ``resid_post``; its length does not matter.
        patches: Which neurons.
        token_budget: Padded tokens a forward pass.
        unread: Token ids that the mean of the projection leaves out. The KL counts them: a
            beginning-of-sequence token, too, predicts a token of the text.
        progress: Show a progress bar.

    Raises:
        HookError: A neuron does not exist, or the value vectors are not what neurons write.
        PairError: The models have different shapes.
        ShapeError: The direction is not of the stream, a sequence has unread tokens alone, or the
            sequences do not fit the models.
    """
    unit = _checked(base, policy, probe_direction, patches)
    for index, sequence in enumerate(sequences):
        if set(unread).issuperset(sequence):
            raise ShapeError(
                f"sequence {index}: found {len(sequence)} tokens, all of them unread, expected at "
                "least one whose projection counts: leave it out"
            )
    base.check_value_vectors()
    readouts = [_readout(lens) for lens in (policy, base)]
    measures = [[(s, e) for s in patch.statistics for e in patch.effects] for patch in patches]
    whole = {statistic: np.zeros(len(sequences)) for statistic in STATISTICS}
    recovered = [{measure: np.zeros(len(sequences)) for measure in each} for each in measures]
    batches = list(length_sorted_batches([len(row) for row in sequences], token_budget))
    for indices in tqdm(batches, desc="patched neurons", unit="batch", disable=not progress):
        batch = pad([sequences[index] for index in indices])
        run = _Batch(base, policy, batch, patches, unread)
        start = run.prompt_means(run.base_stream, unit)
        whole["probe_projection"][indices] = run.prompt_means(run.policy_stream, unit) - start
        streams, places = [run.base_stream], []
        for patch, moved in zip(patches, recovered, strict=True):
            for effect in patch.effects:
                stream = run.patched(patch.neurons, effect)
                if ("probe_projection", effect) in moved:
                    after = run.prompt_means(stream, unit)
                    moved["probe_projection", effect][indices] = after - start
                if ("kl", effect) in moved:
                    streams.append(stream)
                    places.append(moved["kl", effect])
        divergences = _divergences(readouts, run.policy_stream, streams)
        kl = [run.prompt_sums(rows) for rows in divergences]
        whole["kl"][indices] = kl[0]
        for values, left in zip(places, kl[1:], strict=True):
            values[indices] = kl[0] - left
    return PatchingSums(whole=whole, recovered=recovered)


class _Batch:
    """Both models on one batch, and the base with patches; rows are its real tokens."""

    def __init__(
        self,
        base: LensModel,
        policy: LensModel,
        batch: PaddedBatch,
        patches: Sequence[Patch],
        unread: Collection[int],
    ) -> None:
        self._base, self._batch = base, batch
        self._rows, self._positions = batch.mask.nonzero(as_tuple=True)
        at = (self._rows, self._positions)
        self._counted = ~np.isin(batch.ids[at].numpy(), list(unread))
        layers = {layer for patch in patches for layer in layers_of(patch.neurons)}
        self.policy_stream, self._policy_m = self._read(policy, layers)
        self.base_stream, base_m = self._read(base, layers)
        self._change = {
            layer: (self._policy_m[layer].to(m.device).float() - m.float())[at]
            for layer, m in base_m.items()
        }

    def patched(self, neurons: Neurons, effect: str) -> Float[Tensor, "row d_model"]:
        """Last stream of the base with the policy's activations."""
        if effect == "direct":
            return self.base_stream + self._direct_write(neurons)
        values = {
            layer: self._policy_m[layer][..., torch.from_numpy(neurons.of_layer(layer))]
            for layer in layers_of(neurons)
        }
        with self._base.hooks(replace_activations(self._base, neurons, values)):
            return self._read(self._base, ())[0]

    def prompt_sums(self, values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " prompt"]:
        """Sum over the tokens of each prompt."""
        found = np.bincount(self._rows.numpy(), weights=values, minlength=len(self._batch.ids))
        return np.asarray(found)

    def prompt_means(
        self, stream: Float[Tensor, "row d_model"], unit: Float[np.ndarray, " d_model"]
    ) -> Float[np.ndarray, " prompt"]:
        """Mean projection over the tokens of each prompt that are read."""
        along = np.where(self._counted, stream.double().numpy() @ unit, 0.0)
        return np.asarray(self.prompt_sums(along) / self.prompt_sums(self._counted))

    def _read(self, lens: LensModel, layers: Iterable[int]) -> tuple[Tensor, dict[int, Tensor]]:
        last, gather = resid_post(lens.n_layers - 1), Gather(self._rows, self._positions)
        places = {layer: f"mlp_post.{layer}" for layer in layers}
        with lens.reading(list(places.values())) as store:
            kept = lens.capture(self._batch.ids, self._batch.mask, (last,), gather)
        return kept[last], {layer: store[place] for layer, place in places.items()}

    def _direct_write(self, neurons: Neurons) -> Float[Tensor, "row d_model"]:
        written = torch.zeros_like(self.base_stream)
        for layer in layers_of(neurons):
            index = torch.from_numpy(neurons.of_layer(layer))
            values = self._base.mlp_weights(layer).W_out[index].float()
            written += (self._change[layer][:, index].to(values.device) @ values).cpu()
        return written


def _readout(lens: LensModel) -> Readout:
    """From the last stream to logits, in float32."""
    readout = lens.readout.to(dtype=torch.float32)
    return lambda stream: readout(lens.final_norm(stream.to(lens.device, lens.dtype)).float())


def _divergences(
    readouts: Sequence[Readout],
    target: Float[Tensor, "row d_model"],
    streams: Sequence[Float[Tensor, "row d_model"]],
) -> list[Float[np.ndarray, " row"]]:
    """KL(policy‖·) in nats for each set of last streams, read out by the base."""
    policy, base = readouts
    found: list[list[np.ndarray]] = [[] for _ in streams]
    budget = max(_BLOCK_LOGITS, _FEWEST_ROWS * base(target[:1]).shape[-1])
    for block in blocks(base, target, budget):
        log_p = log_probabilities(policy(target[block]))
        for rows, parts in zip(streams, found, strict=True):
            parts.append(divergence(log_p, base(rows[block])))
    return [np.concatenate(parts) for parts in found]


def _checked(
    base: LensModel, policy: LensModel, direction: np.ndarray, patches: Sequence[Patch]
) -> Float[np.ndarray, " d_model"]:
    shapes = [(lens.n_layers, lens.d_model, lens.d_mlp) for lens in (base, policy)]
    if shapes[0] != shapes[1]:
        raise PairError(
            f"patched neurons: {base.name} has (layers, d_model, d_mlp) {shapes[0]} and "
            f"{policy.name} {shapes[1]}, expected equal ones: take a base and its own policy"
        )
    vector = finite_vector(direction, name="probe direction")
    if vector.size != base.d_model or not vector.any():
        raise ShapeError(
            f"probe direction: found length {vector.size} and norm {np.linalg.norm(vector):.3g}, "
            f"expected d_model {base.d_model} of {base.name} and a norm above 0"
        )
    for patch in patches:
        check_neurons(base, patch.neurons)
    return unit_rows(vector)
