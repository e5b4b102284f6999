"""Causal patching by component: what attention and MLPs of the policy write, put into the base.

Both models read the same tokens. The base runs once more, and in some of its layers what attention
or the MLP adds to the stream is replaced by what the policy's adds there; the base's later layers
respond to it. Groups of replaced places:

``component``
    ``attn_out.<l>`` or ``mlp_out.<l>`` alone;
``from``
    both in every layer ≥ l: the top layers' writes alone, over the base's stream below them;
``upto``
    both in every layer ≤ l.

They are replaced at all tokens, at all tokens of the prompt, at its last token, or at the tokens
of the response. The control adds to the base's writes a random change of the policy's norm, token
by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from dsteer_tl.attribution.patched_batch import OUTPUTS, PatchedBatch, Text
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens_model import length_sorted_batches
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe, check_lengths, spread_evenly
from dsteer_tl.preferences import EncodedPair

SOURCES = ("policy", "random")
#: Depths at which ``from`` is patched at some tokens alone.
DEPTHS = 4

# Numbers that one batch may keep of both models: 4 GiB as float32.
_KEPT = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentPatch:
    """What is replaced, and at which tokens.

    Attributes:
        group: ``component``, ``from`` or ``upto``.
        component: ``attn_out`` or ``mlp_out``, or ``both``.
        layer: The layer, or where the group begins or ends.
        positions: ``all``, ``prompt``, ``last_prompt`` or ``response``.
        places: The replaced places.
    """

    group: str
    component: str
    layer: int
    positions: str
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchedRows:
    """Measurements of one patch from one source.

    Attributes:
        kinds: Position kind of each row whose divergence is measured.
        prompts: Its prompt.
        kl: KL(policy‖patched) in nats.
        kl_base: KL(policy‖base).
        margin_prompts: Prompt of each pair whose margin is measured; none without pairs.
        margin: The margin [log p(y_w) − log p(y_l)], patched base minus base, in nats.
        margin_policy: The same of the policy.
    """

    kinds: tuple[str, ...]
    prompts: np.ndarray
    kl: np.ndarray
    kl_base: np.ndarray
    margin_prompts: np.ndarray
    margin: np.ndarray
    margin_policy: np.ndarray


def component_patches(n_layers: int, *, responses: bool) -> tuple[ComponentPatch, ...]:
    """Every group at all tokens, and ``from`` at four depths by position.

    The single components and ``upto`` are patched at all tokens only: with the positions they
    would triple the time, and ``from`` says what the positions contribute. At all tokens ``from``
    costs a readout alone; at some, forward passes.

    Args:
        n_layers: Of the model.
        responses: Whether there are tokens after the prompt.
    """

    def both(layers: range) -> tuple[str, ...]:
        return tuple(f"{kind}.{layer}" for layer in layers for kind in OUTPUTS)

    patches = [
        ComponentPatch(
            group="component",
            component=kind,
            layer=layer,
            positions="all",
            places=(f"{kind}.{layer}",),
        )
        for kind in OUTPUTS
        for layer in range(n_layers)
    ]
    where = ("all", "prompt", "last_prompt", "response") if responses else ("all", "last_prompt")
    for positions in where:
        depths = spread_evenly(range(n_layers), None if positions == "all" else DEPTHS)
        patches += [
            ComponentPatch(
                group="from",
                component="both",
                layer=layer,
                positions=positions,
                places=both(range(layer, n_layers)),
            )
            for layer in depths
        ]
    patches += [
        ComponentPatch(
            group="upto",
            component="both",
            layer=layer,
            positions="all",
            places=both(range(layer + 1)),
        )
        for layer in range(n_layers)
    ]
    return tuple(patches)


@torch.inference_mode()
def patch_components(
    pair: ModelPair,
    probes: Sequence[Probe],
    encoded: Sequence[EncodedPair],
    patches: Sequence[ComponentPatch],
    *,
    token_budget: int,
    seed: int,
    progress: bool = True,
) -> dict[tuple[ComponentPatch, str], PatchedRows]:
    """Run every patch from the policy, and from a random change of the same norm.

    A row whose token comes before every patched one cannot be reached and is not counted.

    Args:
        pair: Base and policy.
        probes: Sequences and the positions whose divergence is measured.
        encoded: The pairs, in the order of `Probe.order`; may be empty: then there are no margins.
        patches: What to replace.
        token_budget: Padded tokens a forward pass; fewer where deep models would fill the memory.
        seed: Of the random changes.
        progress: Show a progress bar.

    Raises:
        DataError: A sequence is longer than the context.
        HookError: The blocks add more to the stream than attention and MLP.
        ShapeError: A probe is not prompt and chosen response of its pair.
    """
    for lens in (pair.base, pair.policy):
        lens.check_block_outputs()
        check_lengths(probes, lens.n_ctx, lens.name)
    texts = _texts(probes, encoded)
    most = max(_KEPT // (7 * pair.base.n_layers * pair.base.d_model), 1)
    lengths = [len(text.ids) for text in texts]
    batches = list(length_sorted_batches(lengths, min(token_budget, most)))
    found = {(patch, source): _Found() for patch in patches for source in SOURCES}
    with tqdm(
        total=len(batches) * len(found),
        desc="patched components",
        unit="pass",
        disable=not progress,
    ) as bar:
        for number, indices in enumerate(batches):
            chosen = [texts[index] for index in indices]
            run = PatchedBatch(pair, chosen, [seed, number])
            for (patch, source), kept in found.items():
                kept.add(chosen, run, *run.measure(patch.places, source, patch.positions))
                bar.update()
    return {key: kept.result(probes) for key, kept in found.items()}


def _texts(probes: Sequence[Probe], encoded: Sequence[EncodedPair]) -> list[Text]:
    texts = []
    for index, probe in enumerate(probes):
        length, sign = len(probe.ids), 0
        if encoded:
            item = encoded[probe.order] if probe.order < len(encoded) else None
            if item is None or probe.ids != (*item.prompt_ids, *item.chosen_ids):
                raise ShapeError(
                    f"component patching: probe {index} is not prompt and chosen response of pair "
                    f"{probe.order} ({len(encoded)} pairs were given): pass the pairs that the "
                    "probes were made from, in their order"
                )
            length, sign = len(item.prompt_ids), 1
            texts.append(
                Text(
                    probe=index,
                    prompt=probe.prompt,
                    ids=(*item.prompt_ids, *item.rejected_ids),
                    prompt_length=length,
                    positions={},
                    sign=-1,
                )
            )
        elif "last_prompt" in probe.positions:
            length = probe.positions["last_prompt"][0] + 1
        positions = {kind: tuple(at) for kind, at in probe.positions.items()}
        texts.append(
            Text(
                probe=index,
                prompt=probe.prompt,
                ids=tuple(probe.ids),
                prompt_length=length,
                positions=positions,
                sign=sign,
            )
        )
    return texts


@dataclass(slots=True)
class _Found:
    rows: list[tuple[str, int, float, float]] = field(default_factory=list)
    margin: dict[int, float] = field(default_factory=dict)
    margin_policy: dict[int, float] = field(default_factory=dict)

    def add(
        self,
        texts: Sequence[Text],
        run: PatchedBatch,
        kl: np.ndarray,
        margin: np.ndarray,
        reached: np.ndarray,
    ) -> None:
        for index in np.flatnonzero(reached):
            row, _, kind = run.rows[index]
            self.rows.append((kind, texts[row].prompt, float(kl[index]), float(run.kl_base[index])))
        for text, change, whole in zip(texts, margin, run.policy_change, strict=True):
            if text.sign:
                for sums, value in ((self.margin, change), (self.margin_policy, whole)):
                    sums[text.probe] = sums.get(text.probe, 0.0) + text.sign * float(value)

    def result(self, probes: Sequence[Probe]) -> PatchedRows:
        order = sorted(self.margin)
        return PatchedRows(
            kinds=tuple(row[0] for row in self.rows),
            prompts=np.array([row[1] for row in self.rows], dtype=np.int64),
            kl=np.array([row[2] for row in self.rows]),
            kl_base=np.array([row[3] for row in self.rows]),
            margin_prompts=np.array([probes[index].prompt for index in order], dtype=np.int64),
            margin=np.array([self.margin[index] for index in order]),
            margin_policy=np.array([self.margin_policy[index] for index in order]),
        )
