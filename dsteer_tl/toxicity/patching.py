"""How much of DPO's effect a group of neurons carries: the policy's activations in the base.

Yang et al. 2024 find that toxic neurons explain 2.5–24 % of what DPO does to toxicity (claim 30).
Here both models read the same tokens, and the base runs once more with the activations m of some
neurons taken from the policy. Activations alone are patched: value vectors, attention and all else
stay the base's, so that even all neurons together need not give the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.controls import bootstrap_ratio
from dsteer_tl.cosines import finite_vector, unit_rows
from dsteer_tl.distributions import divergence, log_probabilities
from dsteer_tl.errors import PairError, ShapeError
from dsteer_tl.lens_model import Gather, LensModel, PaddedBatch, length_sorted_batches, pad
from dsteer_tl.lens_model.readout import Readout
from dsteer_tl.sites import FINAL, resid_post
from dsteer_tl.toxicity.neuron_edits import (
    all_neurons,
    check_neurons,
    layers_of,
    replace_activations,
)
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import Neurons, StudyTexts
from dsteer_tl.toxicity.value_vectors import random_neurons

#: ``probe_projection``: ⟨last resid_post, probe⟩. ``kl``: the divergence from the policy.
STATISTICS = ("probe_projection", "kl")
#: ``total``: the base runs on with the patched activations, and later layers react. ``direct``:
#: Σ Δm_i v_i is added to the last residual, and nothing reacts.
EFFECTS = ("total", "direct")

#: Random groups of each size that the control averages over.
RANDOM_DRAWS = 3

_COLUMNS = ["group", "neurons", "statistic", "effect", "share", "low", "high", "prompts"]
# Logits that are compared at a time: as float64 they stay in a processor's cache, which halves the
# time. Fewer rows than this would read the whole unembedding for too little.
_BLOCK_LOGITS = 2**18
_FEWEST_ROWS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Neurons that get the policy's activations, and the effects to measure."""

    neurons: Neurons
    effects: tuple[str, ...] = EFFECTS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchingSums:
    """What each prompt gives to the shares: a share is Σ recovered / Σ whole over prompts.

    Attributes:
        whole: For each statistic, what the models differ by: policy minus base of the projection,
            averaged over the prompt's tokens, or KL(policy‖base) summed over them, in nats.
        recovered: For each patch by statistic and effect, what it moved of that: patched minus
            base, or KL(policy‖base) − KL(policy‖patched).
    """

    whole: Mapping[str, Float[np.ndarray, " prompt"]]
    recovered: Sequence[Mapping[tuple[str, str], Float[np.ndarray, " prompt"]]]


def measure_patching(
    base: LensModel,
    policy: LensModel,
    texts: StudyTexts,
    probe_direction: Float[np.ndarray, " d_model"],
    attribute: Neurons,
    configuration: ToxicityConfiguration,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """The table ``toxicity_patching`` (claim 30): recovered shares with intervals over prompts.

    Both models read each prompt with the base's continuation; every token is patched and counted.
    A share is 1 where patching gives the policy, 0 where it does nothing and below 0 where it leads
    away; where the models do not differ in a statistic, its shares are NaN. The groups are the
    attribute's neurons (all, and the first ``configuration.neurons``), as many random neurons
    outside the group, averaged over 3 draws, and every neuron of every layer, for which the total
    effect alone is measured.

    Raises:
        HookError: A neuron does not exist, or the value vectors are not what neurons write.
        PairError: The models have different shapes.
        ShapeError: The direction is not of the stream, there are fewer than two prompts, or too few
            neurons are left for the control.
    """
    sizes = sorted({len(attribute), min(configuration.neurons, len(attribute))})
    patches = [Patch(attribute.first(size)) for size in sizes]
    for draw in range(RANDOM_DRAWS):
        seed = int(np.random.SeedSequence([configuration.seed, draw]).generate_state(1)[0])
        drawn = random_neurons(base.n_layers, base.d_mlp, sizes[-1], seed, exclude=attribute)
        patches += [Patch(drawn.first(size)) for size in sizes]
    patches.append(Patch(all_neurons(base), ("total",)))
    sequences = [
        (*prompt, *continuation)
        for prompt, continuation in zip(texts.prompts, texts.continuations["base"], strict=True)
    ]
    sums = patching_sums(
        base,
        policy,
        sequences,
        probe_direction,
        patches,
        token_budget=configuration.token_budget,
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
    progress: bool = True,
) -> PatchingSums:
    """Run every patch over every sequence.

    Args:
        base: The model that is patched.
        policy: Where the activations come from.
        sequences: Token ids; every token is patched and counted.
        probe_direction: The probe on the last ``resid_post``; its length does not matter.
        patches: Which neurons.
        token_budget: Padded tokens a forward pass.
        progress: Show a progress bar.

    Raises:
        HookError: A neuron does not exist, or the value vectors are not what neurons write.
        PairError: The models have different shapes.
        ShapeError: The direction is not of the stream, or the sequences do not fit the models.
    """
    unit = _checked(base, policy, probe_direction, patches)
    base.check_value_vectors()
    readouts = [lens.readout.to(dtype=torch.float32) for lens in (policy, base)]
    measures = [[(s, e) for s in STATISTICS for e in patch.effects] for patch in patches]
    whole = {statistic: np.zeros(len(sequences)) for statistic in STATISTICS}
    recovered = [{measure: np.zeros(len(sequences)) for measure in each} for each in measures]
    batches = list(length_sorted_batches([len(row) for row in sequences], token_budget))
    for indices in tqdm(batches, desc="patched neurons", unit="batch", disable=not progress):
        batch = pad([sequences[index] for index in indices])
        run = _Batch(base, policy, batch, patches)
        streams, finals, places = [run.base_stream], [run.base_final], []
        for number, patch in enumerate(patches):
            for effect in patch.effects:
                stream, final = run.patched(patch.neurons, effect)
                streams.append(stream)
                finals.append(final)
                places.append((number, effect))
        target = run.prompt_means(run.policy_stream.double().numpy() @ unit)
        moved = [run.prompt_means(stream.double().numpy() @ unit) for stream in streams]
        divergences = _divergences(readouts, run.policy_final, finals)
        kl = [run.prompt_sums(rows) for rows in divergences]
        whole["probe_projection"][indices] = target - moved[0]
        whole["kl"][indices] = kl[0]
        for (number, effect), projection, after in zip(places, moved[1:], kl[1:], strict=True):
            recovered[number]["probe_projection", effect][indices] = projection - moved[0]
            recovered[number]["kl", effect][indices] = kl[0] - after
    return PatchingSums(whole=whole, recovered=recovered)


def share_table(
    patches: Sequence[Patch], sums: PatchingSums, *, draws: int, seed: int
) -> pd.DataFrame:
    """Shares of each group and size; patches of one group and size are draws and are averaged.

    Raises:
        ShapeError: Fewer than two prompts.
    """
    members: dict[tuple[str, int, str, str], list[np.ndarray]] = {}
    for patch, recovered in zip(patches, sums.recovered, strict=True):
        for (statistic, effect), values in recovered.items():
            key = (patch.neurons.group, len(patch.neurons), statistic, effect)
            members.setdefault(key, []).append(values)
    rows = []
    for (group, neurons, statistic, effect), found in members.items():
        whole = sums.whole[statistic]
        share = bootstrap_ratio(np.mean(found, axis=0), whole, draws=draws, seed=seed)
        numbers = (share.value, share.low, share.high, len(whole))
        rows.append((group, neurons, statistic, effect, *numbers))
    return pd.DataFrame(rows, columns=_COLUMNS)


class _Batch:
    """Both models on one batch, and the base with patches; rows are its real tokens."""

    def __init__(
        self, base: LensModel, policy: LensModel, batch: PaddedBatch, patches: Sequence[Patch]
    ) -> None:
        self._base, self._batch = base, batch
        self._last = resid_post(base.n_layers - 1)
        self._rows, self._positions = batch.mask.nonzero(as_tuple=True)
        needed = {layer for patch in patches for layer in layers_of(patch.neurons)}
        direct = [patch for patch in patches if "direct" in patch.effects]
        added = {layer for patch in direct for layer in layers_of(patch.neurons)}
        self.policy_stream, self.policy_final, self._policy_m = self._read(policy, needed)
        self.base_stream, self.base_final, self._base_m = self._read(base, added)

    def patched(self, neurons: Neurons, effect: str) -> tuple[Tensor, Tensor]:
        """Last stream and final hidden state of the base with the policy's activations."""
        if effect == "total":
            values = {
                layer: self._policy_m[layer][..., torch.from_numpy(neurons.of_layer(layer))]
                for layer in layers_of(neurons)
            }
            with self._base.hooks(replace_activations(self._base, neurons, values)):
                return self._read(self._base, ())[:2]
        stream = self.base_stream + self._direct_write(neurons)
        moved = self._base.final_norm(stream.to(self._base.device, self._base.dtype))
        return stream, moved.to("cpu", torch.float32)

    def prompt_sums(self, values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " prompt"]:
        """Sum over the tokens of each prompt."""
        found = np.bincount(self._rows.numpy(), weights=values, minlength=len(self._batch.ids))
        return np.asarray(found)

    def prompt_means(self, values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " prompt"]:
        """Mean over the tokens of each prompt."""
        return np.asarray(self.prompt_sums(values) / self._batch.mask.sum(dim=1).numpy())

    def _read(
        self, lens: LensModel, layers: Iterable[int]
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        gather = Gather(self._rows, self._positions)
        places = {layer: f"mlp_post.{layer}" for layer in layers}
        with lens.reading(list(places.values())) as store:
            kept = lens.capture(self._batch.ids, self._batch.mask, (self._last, FINAL), gather)
        return kept[self._last], kept[FINAL], {each: store[place] for each, place in places.items()}

    def _direct_write(self, neurons: Neurons) -> Float[Tensor, "row d_model"]:
        written = torch.zeros_like(self.base_stream)
        for layer in layers_of(neurons):
            index = torch.from_numpy(neurons.of_layer(layer))
            values = self._base.mlp_weights(layer).W_out[index].float()
            before, after = (
                m[layer][self._rows, self._positions][:, index].float()
                for m in (self._base_m, self._policy_m)
            )
            written += ((after.to(values.device) - before.to(values.device)) @ values).cpu()
        return written


def _divergences(
    readouts: Sequence[Readout],
    target: Float[Tensor, "row d_model"],
    finals: Sequence[Float[Tensor, "row d_model"]],
) -> list[Float[np.ndarray, " row"]]:
    """KL(policy‖·) in nats for each set of final hidden states, read out by the base."""
    policy, base = readouts
    found: list[list[np.ndarray]] = [[] for _ in finals]
    step = max(_FEWEST_ROWS, _BLOCK_LOGITS // policy.W_U.shape[1])
    for start in range(0, len(target), step):
        block = slice(start, start + step)
        log_p = log_probabilities(policy(target[block].to(policy.W_U.device)))
        for rows, parts in zip(finals, found, strict=True):
            parts.append(divergence(log_p, base(rows[block].to(base.W_U.device))))
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
