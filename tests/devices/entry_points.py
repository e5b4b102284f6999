"""What a pair is used for, each as one array: the same on any device and in any dtype."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from dsteer_tl.attribution.component_patching import component_patches, patch_components
from dsteer_tl.attribution.contributions import direct_contributions
from dsteer_tl.attribution.layers import patch_sites
from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.lens import lens_logits, normed
from dsteer_tl.lens_model import Gather, pad
from dsteer_tl.pair import ModelPair
from dsteer_tl.sites import FINAL
from dsteer_tl.steering.interventions import Intervention, Positions
from dsteer_tl.steering.packed_generation import generate_rows
from dsteer_tl.steering.scored import TokenSequence, token_log_probabilities
from dsteer_tl.steering.teacher_forced import Engine, Setting, score_sequences
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.steering.vectors import build_interventions
from dsteer_tl.toxicity.neuron_edits import mean_contributions, scale_keys
from dsteer_tl.toxicity.perplexity import LastLayerWindows, window_losses
from dsteer_tl.toxicity.types import Neurons
from dsteer_tl.toxicity.value_vectors import probe_cosines
from tests.tiny_pairs import encoded_pairs, probes

Array = np.ndarray
KIND = "last_prompt"
_COEFFICIENTS = (0.0, 0.5, 1.0)
_PROBES = probes()[:3]
_ENCODED = encoded_pairs()[:3]
_SEQUENCES = [TokenSequence(tuple(e.prompt_ids), tuple(e.chosen_ids)) for e in _ENCODED]
_WINDOWS = [(*e.prompt_ids, *e.chosen_ids) for e in _ENCODED]
_NEURONS = Neurons(
    group="two", layers=np.array([0, 1]), neurons=np.array([3, 5]), signs=np.array([1, 1])
)


def captured(pair: ModelPair) -> ShiftSet:
    return capture_shifts(pair, _PROBES, configuration=CaptureConfiguration(progress=False))


def shifts(pair: ModelPair) -> Array:
    found = captured(pair)
    return np.concatenate([found.shifts(site, KIND) for site in found.sites])


def _interventions(
    pair: ModelPair, site: str, positions: Positions = "all", *names: str
) -> list[Intervention]:
    found = captured(pair)
    return build_interventions(
        pair, found, site, names or ("v_star",), position_kind=KIND, positions=positions
    )


def sweep(engine: Engine, site: str, positions: Positions, pair: ModelPair) -> Array:
    """KL from the policy to the steered base, and the log-probabilities of its tokens."""
    names = ("v_star", "logit_bias") if site == FINAL else ("v_star",)
    settings = [
        Setting.by_norm(item, _COEFFICIENTS)
        for item in _interventions(pair, site, positions, *names)
    ]
    found = score_sequences(
        pair, settings, _SEQUENCES, "interpolate", engine=engine, progress=False
    )
    return np.concatenate([np.stack([x.kl_policy, x.log_probability]) for x in found])


def generation(site: str, decoding: Decoding, pair: ModelPair) -> Array:
    """Log-probabilities of what is written, and the tokens."""
    names = ("v_star", "logit_bias") if site == FINAL else ("v_star",)
    settings = [(item, c) for item in _interventions(pair, site, "all", *names) for c in (0.0, 1.0)]
    rows = generate_rows(pair.base, [e.prompt_ids for e in _ENCODED], settings, decoding)
    return np.concatenate(
        [np.stack([c.tokens, c.log_probabilities]).ravel() for found in rows for c in found]
    )


def log_probabilities(pair: ModelPair) -> Array:
    return np.concatenate(token_log_probabilities(pair.policy, _SEQUENCES))


def lens(pair: ModelPair) -> Array:
    """Logits of every layer by the logit lens, and the normed residuals."""
    found, rows = captured(pair), []
    for site in found.sites[:-1]:
        residuals = found.residuals("policy", site, KIND)
        rows += [block.cpu().numpy() for block in lens_logits(pair.policy, torch.tensor(residuals))]
        rows.append(normed(pair.policy, residuals))
    return np.concatenate([array.ravel() for array in rows])


def readout(pair: ModelPair) -> Array:
    """Logits of h, on the device of the model and from the CPU."""
    h = torch.from_numpy(captured(pair).residuals("base", FINAL, KIND))
    there = pair.base.readout(h.to(pair.base.device))
    return np.stack([there.cpu().numpy(), pair.base.readout(h).numpy()])


def component_contributions(pair: ModelPair) -> Array:
    found = direct_contributions(
        pair, _PROBES, captured(pair), token_budget=300, seed=0, progress=False
    )
    return np.concatenate([np.concatenate([found[KIND].base, found[KIND].policy]).ravel()])


def layer_patching(pair: ModelPair) -> Array:
    found = patch_sites(
        pair, _PROBES, pair.base.sites[:-1], token_budget=300, seed=0, progress=False
    )
    return np.concatenate([item.kl for item in found])


def patched_components(pair: ModelPair) -> Array:
    patches = component_patches(pair.base.n_layers, responses=False)
    found = patch_components(
        pair, _PROBES, _ENCODED, patches, token_budget=300, seed=0, progress=False
    )
    return np.concatenate([np.asarray(item.kl).ravel() for item in found.values()])


def neurons(pair: ModelPair) -> Array:
    """How much each neuron writes, and its cosine with a direction."""
    direction = np.linspace(-1, 1, pair.base.d_model)
    written = mean_contributions(pair.base, _WINDOWS, token_budget=300, progress=False)
    return np.stack([written, probe_cosines(pair.base, direction)])


def perplexity(pair: ModelPair) -> Array:
    """Losses of texts, plain, with keys scaled, and from the last layer's rows."""
    edits = scale_keys(pair.policy, _NEURONS, 3.0)
    direction = np.linspace(-1, 1, pair.base.d_model)
    return np.stack(
        [
            window_losses(pair.policy, _WINDOWS).nats,
            window_losses(pair.policy, _WINDOWS, edits=edits).nats,
            LastLayerWindows(pair.policy, _WINDOWS).losses(0.5, vector=direction).nats,
        ]
    )


def places(pair: ModelPair) -> Array:
    """The tests that a block's places are what they are named, and what is found there."""
    model = pair.policy
    model.check_block_outputs()
    model.check_attention_outputs()
    model.check_value_vectors()
    batch = pad(_WINDOWS)
    names = [f"{kind}.{layer}" for layer in range(2) for kind in ("attn_out", "mlp_out")]
    gather = Gather(torch.tensor([0, 1]), torch.tensor([2, 3]))
    found = model.capture(batch.ids, batch.mask, names, gather)
    return np.stack([found[name].numpy() for name in names])


WORK: dict[str, Callable[[ModelPair], Array]] = {
    "shifts": shifts,
    **{
        f"{engine} at {site}, {positions}": partial(sweep, engine, site, positions)
        for engine, site, positions in (
            ("algebra", FINAL, "all"),
            ("algebra", FINAL, "prompt"),
            ("hooks", FINAL, "response"),
            ("replay", "resid_post.0", "all"),
            ("replay", "resid_post.0", "response"),
            ("hooks", "resid_post.0", "prompt"),
        )
    },
    "greedy generation at h": partial(generation, FINAL, Decoding(max_new_tokens=3)),
    "sampled generation at a layer": partial(
        generation, "resid_post.0", Decoding(max_new_tokens=3, temperature=0.8, top_p=0.9)
    ),
    "log-probabilities": log_probabilities,
    "lens": lens,
    "readout": readout,
    "contributions": component_contributions,
    "layer patching": layer_patching,
    "component patching": patched_components,
    "neurons": neurons,
    "perplexity": perplexity,
    "places": places,
}
