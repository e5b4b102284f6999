"""Who writes v*: the shift of the last residual stream, split exactly over what wrote it.

Before the final norm the stream is a sum, r = embed + Σ_l (attn_out.l + mlp_out.l), so that the
shift along the steering vector is the sum of what each component's own change brings:

⟨δ, v̂⟩ = Σ_c ⟨c_policy − c_base, v̂⟩,

and an attention splits further into z_h·W_O[h] of its heads and its bias b_O. Positional embeddings
count with the embedding. This is a direct attribution: a change in layer 2 that makes layer 7 write
more is counted in layer 7. `dsteer_tl.attribution.component_patching` asks what follows from what.

v̂ is the unit mean shift of the other half of the prompts, so that no prompt is judged by a vector
that was estimated on itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.capture import ShiftSet
from dsteer_tl.controls import random_direction
from dsteer_tl.cosines import unit_rows
from dsteer_tl.errors import DataError, HookError
from dsteer_tl.lens_model import Gather, LensModel, length_sorted_batches, pad
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe, check_lengths
from dsteer_tl.sites import resid_post

#: Random directions of the null.
NULL_DIRECTIONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A writer to the residual stream.

    Attributes:
        name: ``embed``, ``attn.<l>``, ``head.<l>.<h>``, ``attn_bias.<l>`` or ``mlp.<l>``.
        kind: ``embed``, ``attention``, ``head``, ``bias`` or ``mlp``.
        layer: −1 for the embedding.
    """

    name: str
    kind: str
    layer: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contributions:
    """Projections at one position kind, summed over the rows of each prompt.

    Attributes:
        components: What the columns are.
        prompts: Prompt of each line.
        rows: Rows summed in each line.
        base: Σ_rows ⟨c_base, v̂⟩.
        policy: Σ_rows ⟨c_policy, v̂⟩.
        random: Σ_rows ⟨c_policy − c_base, u⟩ for each random unit direction u.
        shift: Σ_rows ⟨δ, v̂⟩, read at the last ``resid_post`` and not summed up from components.
    """

    components: tuple[Component, ...]
    prompts: Int[np.ndarray, " prompt"]
    rows: Int[np.ndarray, " prompt"]
    base: Float[np.ndarray, "prompt component"]
    policy: Float[np.ndarray, "prompt component"]
    random: Float[np.ndarray, "prompt component draw"]
    shift: Float[np.ndarray, " prompt"]


def components_of(n_layers: int, n_heads: int | None) -> tuple[Component, ...]:
    """All components in the order of the forward pass; blocks alone without a number of heads."""
    found = [Component(name="embed", kind="embed", layer=-1)]
    for layer in range(n_layers):
        found.append(Component(name=f"attn.{layer}", kind="attention", layer=layer))
        if n_heads is not None:
            found += [
                Component(name=f"head.{layer}.{head}", kind="head", layer=layer)
                for head in range(n_heads)
            ]
            found.append(Component(name=f"attn_bias.{layer}", kind="bias", layer=layer))
        found.append(Component(name=f"mlp.{layer}", kind="mlp", layer=layer))
    return tuple(found)


def direct_contributions(
    pair: ModelPair,
    probes: Sequence[Probe],
    shift_set: ShiftSet,
    *,
    token_budget: int,
    seed: int,
    progress: bool = True,
) -> dict[str, Contributions]:
    """Project what every component writes on v̂ of the other half, at every position kind.

    Everything is projected inside the hooks: memory grows with components and prompts, not with
    the width of the stream. Where an attention's output cannot be split over heads (a norm follows
    it), blocks alone are measured. Kinds with fewer than two prompts are left out.

    Args:
        pair: Base and policy.
        probes: The sequences and positions that were captured.
        shift_set: Their shifts, from which v̂ is estimated.
        token_budget: Padded tokens a forward pass.
        seed: Of the halves and of the random directions.
        progress: Show a progress bar.

    Returns:
        For every position kind, `Contributions`.

    Raises:
        DataError: A prompt was not captured, or is longer than the context.
        HookError: The blocks add more to the stream than attention and MLP.
    """
    for lens in (pair.base, pair.policy):
        lens.check_block_outputs()
        check_lengths(probes, lens.n_ctx, lens.name)
    n_heads = _heads(pair)
    components = components_of(pair.base.n_layers, n_heads)
    kinds = [kind for kind in shift_set.kinds if len(np.unique(shift_set.prompts(kind))) > 1]
    directions, column = _directions(pair.base, shift_set, kinds, seed)
    sums = {kind: _Sums(len(components)) for kind in kinds}
    batches = list(length_sorted_batches([len(probe.ids) for probe in probes], token_budget))
    for indices in tqdm(batches, desc="contributions", unit="batch", disable=not progress):
        chosen = [probes[index] for index in indices]
        rows = [
            (row, position)
            for row, probe in enumerate(chosen)
            for position in sorted({p for kind in kinds for p in probe.positions.get(kind, ())})
        ]
        if not rows:
            continue
        place = {key: index for index, key in enumerate(rows)}
        base, whole_base = _projections(pair.base, chosen, rows, directions, components)
        policy, whole_policy = _projections(pair.policy, chosen, rows, directions, components)
        for row, probe in enumerate(chosen):
            for kind in kinds:
                at = [place[row, position] for position in probe.positions.get(kind, ())]
                if not at:
                    continue
                if (kind, probe.prompt) not in column:
                    raise DataError(
                        f"contributions: prompt {probe.prompt} has no captured {kind} position, "
                        "so no half of the prompts is its own: pass the probes that were captured"
                    )
                own = column[kind, probe.prompt]
                sums[kind].add(
                    probe.prompt,
                    rows=len(at),
                    base=base[at][:, :, own].sum(axis=0),
                    policy=policy[at][:, :, own].sum(axis=0),
                    random=(policy - base)[at][:, :, -NULL_DIRECTIONS:].sum(axis=0),
                    shift=float((whole_policy - whole_base)[at][:, own].sum()),
                )
    return {kind: found.result(components) for kind, found in sums.items() if len(found) > 1}


class _Sums:
    """Sums over the rows of each prompt; sequences of one prompt come in any order."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._parts: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, prompt: int, **parts: np.ndarray | float) -> None:
        before = self._parts.get(prompt)
        self._parts[prompt] = {
            name: np.asarray(part) + (0 if before is None else before[name])
            for name, part in parts.items()
        }

    def result(self, components: tuple[Component, ...]) -> Contributions:
        prompts = sorted(self._parts)

        def column(name: str) -> np.ndarray:
            return np.stack([self._parts[prompt][name] for prompt in prompts])

        return Contributions(
            components=components,
            prompts=np.array(prompts),
            rows=column("rows"),
            base=column("base"),
            policy=column("policy"),
            random=column("random"),
            shift=column("shift"),
        )


def _heads(pair: ModelPair) -> int | None:
    """Number of heads, or None where a head's z·W_O is not what it adds."""
    try:
        for lens in (pair.base, pair.policy):
            lens.check_attention_outputs()
    except HookError:
        return None
    return int(pair.base.attention_output(0).W_O.shape[0])


def _directions(
    lens: LensModel, shift_set: ShiftSet, kinds: Sequence[str], seed: int
) -> tuple[Float[Tensor, "d_model direction"], dict[tuple[str, int], int]]:
    """Unit directions, the random ones last, and which column judges a prompt at a kind."""
    found: list[np.ndarray] = []
    column: dict[tuple[str, int], int] = {}
    for kind in kinds:
        shifts = shift_set.shifts(resid_post(lens.n_layers - 1), kind)
        prompts = shift_set.prompts(kind)
        first, second = shift_set.halves(kind, seed)
        for own, other in ((first, second), (second, first)):
            column.update({(kind, prompt): len(found) for prompt in own})
            found.append(unit_rows(shifts[np.isin(prompts, list(other))].mean(axis=0)))
    seeds = np.random.SeedSequence(seed).generate_state(NULL_DIRECTIONS)
    found += [random_direction(lens.d_model, int(each)) for each in seeds]
    return torch.from_numpy(np.stack(found, axis=1)), column


def _projections(
    lens: LensModel,
    probes: Sequence[Probe],
    rows: Sequence[tuple[int, int]],
    directions: Float[Tensor, "d_model direction"],
    components: Sequence[Component],
) -> tuple[Float[np.ndarray, "row component direction"], Float[np.ndarray, "row direction"]]:
    """⟨component, direction⟩ and ⟨r, direction⟩ of one model, in float64."""
    device = lens.device if lens.device.type == "cuda" else torch.device("cpu")
    along = directions.to(device)
    reduce: dict[str, Callable[[Tensor], Tensor]] = {}
    biases: dict[str, Tensor] = {}
    last = resid_post(lens.n_layers - 1)
    for name in ("resid_pre.0", last):
        reduce[name] = _projector(along)
    for component in components:
        layer = component.layer
        if component.kind == "attention":
            reduce[f"attn_out.{layer}"] = _projector(along)
        elif component.kind == "mlp":
            reduce[f"mlp_out.{layer}"] = _projector(along)
        elif component.kind == "bias":
            weights = lens.attention_output(layer)
            biases[component.name] = (weights.b_O.to(device).double() @ along).cpu()
            readers = weights.W_O.to(device).double() @ along
            reduce[f"attn_z.{layer}"] = _head_projector(readers)
    batch = pad([probe.ids for probe in probes])
    gather = Gather(torch.tensor([row for row, _ in rows]), torch.tensor([p for _, p in rows]))
    kept = lens.capture(batch.ids, batch.mask, list(reduce), gather, reduce=reduce)
    return (
        torch.stack([_of(component, kept, biases) for component in components], dim=1).numpy(),
        kept[last].numpy(),
    )


def _projector(along: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(along) @ along


def _head_projector(readers: Float[Tensor, "head d_head direction"]) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.einsum(
        "nhk,hkd->nhd", z.to(readers).reshape(len(z), *readers.shape[:2]), readers
    )


def _of(
    component: Component, kept: Mapping[str, Tensor], biases: Mapping[str, Tensor]
) -> Float[Tensor, "row direction"]:
    layer = component.layer
    if component.kind == "embed":
        return kept["resid_pre.0"]
    if component.kind == "head":
        return kept[f"attn_z.{layer}"][:, int(component.name.rsplit(".", 1)[1])]
    if component.kind == "bias":
        return biases[component.name].expand(len(kept["resid_pre.0"]), -1)
    return kept[f"{'attn_out' if component.kind == 'attention' else 'mlp_out'}.{layer}"]
