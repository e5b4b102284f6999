"""Logit geometry: tables identity, projections, logit_lens, geometry, tokens, directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from dsteer_tl.capture import ShiftSet
from dsteer_tl.controls import bootstrap_mean, random_like, random_token_pairs
from dsteer_tl.cosines import cosine, mean_shift, pairwise_cosine_mean
from dsteer_tl.directions import preference_directions
from dsteer_tl.errors import ShapeError
from dsteer_tl.lens import projections_by_site, promoted_and_suppressed
from dsteer_tl.lens_model import LensModel, pad
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe
from dsteer_tl.preferences import EncodedPair, divergence_position
from dsteer_tl.projection3d import geometry_coordinates
from dsteer_tl.sites import FINAL
from dsteer_tl.spectra import spectrum

#: Later tokens of a response at which the identity is tried beyond its reach.
_LATER = 8
_TOKENS_SHOWN = 12


def divergence_directions(
    pair: ModelPair, probes: Sequence[Probe]
) -> Float[np.ndarray, "pair d_model"]:
    """Per diverging pair v⁽ⁱ⁾ = e_w − e_l, in the order of the captured divergence rows."""
    diverging = [probe for probe in probes if probe.positions.get("divergence")]
    if not diverging:
        raise ShapeError("no pair diverges: chosen and rejected are prefixes of each other")
    return preference_directions(
        pair.base.readout,
        [int(probe.chosen_token or 0) for probe in diverging],
        [int(probe.rejected_token or 0) for probe in diverging],
    )


def identity_table(pair: ModelPair, encoded: Sequence[EncodedPair]) -> pd.DataFrame:
    """The table ``identity`` (claim 1): error of Δlog p = ⟨h, e_w − e_l⟩ + (b_w − b_l), in nats.

    At the divergence position both log-probabilities come from one h, so that their difference is
    linear in it. At later positions the two contexts differ and the same formula, with the chosen
    context's h, is wrong by whole nats: the control.
    """
    rows = []
    for index, item in enumerate(encoded):
        divergence = divergence_position(item)
        if divergence is None:
            continue
        for name, model in (("base", pair.base), ("policy", pair.policy)):
            chosen, rejected = (
                _forward_with_h(model, (*item.prompt_ids, *response))
                for response in (item.chosen_ids, item.rejected_ids)
            )
            last = min(len(chosen[2]), len(rejected[2])) - 2
            for position in range(divergence.position, min(last, divergence.position + _LATER) + 1):
                w, l = chosen[2][position + 1], rejected[2][position + 1]  # noqa: E741
                difference = chosen[1][position, w] - rejected[1][position, l]
                readout = model.readout
                z = readout.invert_transform(readout(chosen[0][position]))
                # With a soft-cap or a scale it holds for the logits before them.
                transformed = (readout.softcap, readout.scale) != (None, 1.0)
                if transformed and position == divergence.position:
                    raw = readout.invert_transform(chosen[3][position])
                    difference = raw[w] - raw[l]
                rows.append(
                    {
                        "pair": index,
                        "model": name,
                        "position_kind": "divergence"
                        if position == divergence.position
                        else "later",
                        "offset": position - divergence.position,
                        "error": float((difference - (z[w] - z[l])).abs()),
                        "difference": float(difference),
                    }
                )
    return pd.DataFrame(rows)


def _forward_with_h(
    model: LensModel, ids: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...], torch.Tensor]:
    """Final hidden states, log-probabilities, ids and logits of one sequence."""
    batch = pad([ids])
    with torch.inference_mode(), model.reading([FINAL]) as store:
        logits = model.forward(batch.ids, batch.mask)[0].float()
    return store[FINAL][0].float(), logits.double().log_softmax(-1), ids, logits


def projection_table(
    pair: ModelPair,
    shift_set: ShiftSet,
    probes: Sequence[Probe],
    configuration: MeasurementConfiguration,
) -> pd.DataFrame:
    """The table ``projections``: ⟨h, v⁽ⁱ⁾⟩ per held-out pair before and after (claim 4).

    The control replaces v⁽ⁱ⁾ by a random vector of the same norm.
    """
    vectors = {"preference": divergence_directions(pair, probes)}
    vectors["random"] = _random_rows(vectors["preference"], configuration.seed)
    base, policy = (
        shift_set.residuals(name, FINAL, "divergence").astype(np.float64)
        for name in ("base", "policy")
    )
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "pair": shift_set.prompts("divergence"),
                    "vector": name,
                    "base": np.einsum("ij,ij->i", base, found),
                    "policy": np.einsum("ij,ij->i", policy, found),
                }
            )
            for name, found in vectors.items()
        ],
        ignore_index=True,
    )


def _random_rows(
    rows: Float[np.ndarray, "row d_model"], seed: int
) -> Float[np.ndarray, "row d_model"]:
    return np.stack([random_like(row, seed + index) for index, row in enumerate(rows)])


def logit_lens_table(
    pair: ModelPair,
    shift_set: ShiftSet,
    probes: Sequence[Probe],
    configuration: MeasurementConfiguration,
) -> pd.DataFrame:
    """The table ``logit_lens``: projection on v⁽ⁱ⁾ through the final norm, layer by layer.

    Each model's residual goes through its own final norm; v⁽ⁱ⁾ comes from the base's unembedding,
    the fixed reference (D-STEER Figure 1a).
    """
    preference = divergence_directions(pair, probes)
    vectors = {"preference": preference, "random": _random_rows(preference, configuration.seed)}
    prompts = shift_set.prompts("divergence")
    rows = []
    for vector, found in vectors.items():
        values = {
            name: projections_by_site(model, shift_set, name, "divergence", found)
            for name, model in (("base", pair.base), ("policy", pair.policy))
        }
        for site in shift_set.sites:
            rising = float(np.mean(values["policy"][site] > values["base"][site]))
            for name in ("base", "policy"):
                interval = bootstrap_mean(
                    values[name][site], prompts, draws=configuration.draws, seed=configuration.seed
                )
                rows.append(
                    {
                        "site": site,
                        "model": name,
                        "vector": vector,
                        "projection": interval.value,
                        "ci_low": interval.low,
                        "ci_high": interval.high,
                        "share_rising": rising,
                        "n": len(found),
                    }
                )
    return pd.DataFrame(rows)


def geometry_table(pair: ModelPair, shift_set: ShiftSet, probes: Sequence[Probe]) -> pd.DataFrame:
    """The table ``geometry``: one pair in three dimensions (D-STEER Figure 1a).

    The pair shown is the one whose change of ⟨h, v⟩ is the median over all pairs, so that it is
    typical and not picked by hand.
    """
    diverging = [probe for probe in probes if probe.positions.get("divergence")]
    directions = divergence_directions(pair, probes)
    base, policy = (
        shift_set.residuals(name, FINAL, "divergence").astype(np.float64)
        for name in ("base", "policy")
    )
    change = np.einsum("ij,ij->i", policy - base, directions)
    index = int(np.argsort(change)[len(change) // 2])
    probe = diverging[index]
    W_U = pair.base.W_U.detach().cpu().double().numpy()
    geometry = geometry_coordinates(
        base[index], policy[index], W_U[:, probe.chosen_token], W_U[:, probe.rejected_token]
    )
    tokens = [
        pair.tokenizer.decode([int(token or 0)])
        for token in (probe.chosen_token, probe.rejected_token)
    ]
    return pd.DataFrame(
        [
            {
                "name": name,
                "x": float(point[0]),
                "y": float(point[1]),
                "z": float(point[2]),
                "chosen_token": tokens[0],
                "rejected_token": tokens[1],
            }
            for name, point in geometry.coordinates.items()
        ]
    )


def direction_table(
    pair: ModelPair,
    shift_set: ShiftSet,
    probes: Sequence[Probe],
    configuration: MeasurementConfiguration,
) -> pd.DataFrame:
    """The table ``directions``: is there one preference direction, and is it v*? (claims 3, 5).

    ``pairwise_cosine`` and ``pc1_share`` are of the v⁽ⁱ⁾ = e_w − e_l; nulls are differences of
    random tokens, and chosen and rejected tokens re-paired at random. ``v_star_cosine`` is
    cos(v*, mean v⁽ⁱ⁾) at h, at the divergence position.
    """
    preference = divergence_directions(pair, probes)
    diverging = [probe for probe in probes if probe.positions.get("divergence")]
    chosen = [int(probe.chosen_token or 0) for probe in diverging]
    rejected = [int(probe.rejected_token or 0) for probe in diverging]
    seed = configuration.seed
    random_pairs = random_token_pairs(len(chosen), pair.base.d_vocab, seed)
    generator = np.random.default_rng(seed)
    swapped = generator.random(len(chosen)) < 0.5
    families = {
        "preference": preference,
        "random_tokens": preference_directions(
            pair.base.readout, random_pairs[:, 0].tolist(), random_pairs[:, 1].tolist()
        ),
        # Re-pairing at random within the same tokens, with the side drawn by a coin.
        "shuffled": preference_directions(
            pair.base.readout, chosen, generator.permutation(rejected).tolist()
        )
        * np.where(swapped, -1.0, 1.0)[:, None],
    }
    v_star = mean_shift(shift_set.shifts(FINAL, "divergence"))
    rows = []
    for family, vectors in families.items():
        kept = vectors[np.linalg.norm(vectors, axis=1) > 0]
        for statistic, value in (
            ("pairwise_cosine", pairwise_cosine_mean(kept)),
            ("pc1_share", float(spectrum(kept).share[0])),
            ("v_star_cosine", cosine(v_star, kept.mean(axis=0))),
        ):
            rows.append({"family": family, "statistic": statistic, "value": value, "n": len(kept)})
    return pd.DataFrame(rows)


def token_table(
    pair: ModelPair, shift_set: ShiftSet, configuration: MeasurementConfiguration
) -> pd.DataFrame:
    """The table ``tokens``: what v* at h promotes and suppresses, beside a random vector."""
    kind = "last_prompt" if "last_prompt" in shift_set.kinds else shift_set.kinds[0]
    v_star = mean_shift(shift_set.shifts(FINAL, kind))
    frames = [
        promoted_and_suppressed(pair.base, pair.tokenizer, vector, _TOKENS_SHOWN).assign(
            vector=name
        )
        for name, vector in (
            ("v_star", v_star),
            ("random", random_like(v_star, configuration.seed)),
        )
    ]
    columns = ["vector", "effect", "rank", "token_id", "token", "value"]
    return pd.concat(frames, ignore_index=True)[columns]
