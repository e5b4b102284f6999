"""Tables of the toxicity study in which the truth is known."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

import numpy as np
import pandas as pd

Tables = dict[str, pd.DataFrame]

NO_WEIGHTS = "the weights of Detoxify's classifier are not on this machine"
VALUE_VECTOR = "MLP.v[3,7]"
#: Scores after subtraction at the policy's perplexity that are as published, the base at .45.
SUBTRACTED = {"probe": 0.24, VALUE_VECTOR: 0.3, "SVD.U[0]": 0.27}
CONTROLS = {"random": 0.44, "random_value_vector": 0.45, "logit_bias": 0.43}
LAYERS = 8


def around(value: float, half: float, names: tuple[str, str] = ("low", "high")) -> dict[str, float]:
    return {names[0]: value - half, names[1]: value + half}


def probe(
    accuracy: float,
    shuffled: float = 0.5,
    *,
    words: float = 0.7,
    half: float = 0.03,
    attribute: str = "toxic",
    labels: str = "jigsaw",
) -> Tables:
    values = {"probe": accuracy, "shuffled_labels": shuffled, "majority": 0.5, "words": words}
    return {
        "toxicity_probe": pd.DataFrame(
            [
                {
                    "control": control,
                    "balanced_accuracy": value,
                    **around(value, half),
                    "auroc": value + 0.01,
                    **around(value + 0.01, half, ("auroc_low", "auroc_high")),
                    "accuracy": value,
                    "n_train": 900,
                    "n_held_out": 100,
                    "positive_share": 0.4,
                    "site": "resid_post.7",
                    "attribute": attribute,
                    "labels": labels,
                }
                for control, value in values.items()
            ]
        )
    }


def value_vectors(
    share: float, random: float, *, shuffled: float = 0.0, later: float = 0.0, count: int = 40
) -> Tables:
    """The first ten vectors of a group list `share` of their tokens, ± 0.1, the others `later`."""
    shares = {"attribute": share, "random": random, "shuffled_probe": shuffled}
    return {
        "toxicity_value_vectors": pd.DataFrame(
            [
                {
                    "group": group,
                    "rank": rank,
                    "layer": rank % LAYERS,
                    "neuron": rank,
                    "sign": 1,
                    "cosine": (0.5 if group == "attribute" else 0.3) - 0.001 * rank,
                    "norm": 2.0,
                    "listed_share": own + (0.1 if rank % 2 else -0.1) * (own > 0)
                    if rank <= 10
                    else later,
                }
                for group, own in shares.items()
                for rank in range(1, count + 1)
            ]
        ),
        "toxicity_svd": pd.DataFrame(
            [
                {
                    "group": group,
                    "component": component,
                    "singular_value": 3.0 - component,
                    "share": 0.3,
                    "cosine": 0.4,
                    "listed_share": own if component == 0 else 0.0,
                }
                for group, own in (("attribute", share), ("random", random))
                for component in range(3)
            ]
        ),
    }


def _intervention(
    vector: str,
    role: str,
    score: float,
    base: float,
    half: float,
    *,
    matched: bool = False,
    coefficient: float = 0.0,
    perplexity: float = 23.4,
    f1: float = 0.193,
) -> dict[str, object]:
    return {
        "vector": vector,
        "role": role,
        "coefficient": coefficient,
        "norm": 3.0 * coefficient,
        "matched": matched,
        "perplexity": perplexity,
        **around(perplexity, 0.5, ("perplexity_low", "perplexity_high")),
        "attribute_score": score,
        **around(score, 0.03),
        "change": score - base,
        **around(score - base, half, ("change_low", "change_high")),
        "f1": f1,
        **around(f1, 0.01, ("f1_low", "f1_high")),
        "prompts": 200,
        "windows": 64,
    }


def interventions(
    *,
    base: float = 0.45,
    policy: float = 0.2,
    subtracted: Mapping[str, float] = SUBTRACTED,
    controls: Mapping[str, float] = CONTROLS,
    tuned: Mapping[str, float] | None = None,
    half: float = 0.02,
    policy_perplexity: float = 23.34,
    policy_f1: float = 0.195,
) -> Tables:
    """The table ``toxicity_interventions``, with rows at coefficients that do not match."""
    tuned = {"random_weights": base} if tuned is None else tuned
    anchors = [
        _intervention("base", "anchor", base, base, 0.0, perplexity=21.7),
        _intervention(
            "policy",
            "anchor",
            policy,
            base,
            half,
            perplexity=policy_perplexity,
            f1=policy_f1,
        ),
        *(
            _intervention(name, "control", score, base, half, perplexity=21.8)
            for name, score in tuned.items()
        ),
    ]
    edits = [
        _intervention(
            name,
            role,
            score if matched else 0.001,
            base,
            half,
            matched=matched,
            coefficient=coefficient,
            perplexity=(23.3 if role == "attribute" else 23.5) if matched else 400.0,
        )
        for role, chosen in (("attribute", subtracted), ("control", controls))
        for name, score in chosen.items()
        for matched, coefficient in ((False, 64.0), (True, 4.0))
    ]
    return {"toxicity_interventions": pd.DataFrame([*anchors, *edits])}


def weights(cosine: float, norm_difference: float = 1e-6, *, random: float = 0.9995) -> Tables:
    """Three trained tensors, of which one has the cosine, one frozen, and one of zeros."""
    rows = [
        ("blocks.0.attn", "attention", 0.9999, 0.9999, 1.0, True),
        ("blocks.0.mlp", "mlp_value", cosine, random, 1.0, True),
        ("blocks.1.mlp", "mlp_key", 0.9998, 0.9998, 1.0, True),
        ("blocks.1.bias", "mlp_key", 0.0, 0.0, 0.0, True),
        ("embed", "embedding", 1.0, 1.0, 1.0, False),
    ]
    return {
        "toxicity_weights": pd.DataFrame(
            [
                {
                    "tensor": tensor,
                    "layer": 0,
                    "kind": kind,
                    "size": 64,
                    "cosine": own,
                    "cosine_random": other,
                    "norm_base": norm,
                    "norm_policy": norm,
                    "norm_change": 0.01,
                    "norm_difference": norm_difference if norm else nan,
                    "relative_change": 0.01 if norm else nan,
                    "trained": trained,
                }
                for tensor, kind, own, other, norm, trained in rows
            ]
        )
    }


def activations(
    attribute: float,
    matched: float,
    *,
    half: float = 0.01,
    on_policy: float = -0.2,
    neurons: int = 128,
) -> Tables:
    """Mean changes over the attribute's mean size, which is 0.1 at a mean activation of 0.

    Neurons lie around them so that the interval of each mean is ``half`` to each side; what the
    groups do has no correlation.
    """
    size = half * np.sqrt(neurons) / 2
    signs = np.where(np.arange(neurons) % 2, size, -size)
    across = np.where(np.arange(neurons) // 2 % 2, size, -size)
    spread = {"attribute": signs, "matched": across}
    tables = []
    for group, own in (("attribute", attribute), ("matched", matched)):
        for texts, value in (("off_policy", own), ("on_policy", on_policy)):
            base = 0.1 * np.where(np.arange(neurons) // 4 % 2, 1.0, -1.0)
            change = 0.1 * (value + spread[group])
            tables.append(
                pd.DataFrame(
                    {
                        "group": group,
                        "texts": texts,
                        "layer": np.arange(neurons) % LAYERS,
                        "neuron": np.arange(neurons) + 1000 * (group == "matched"),
                        "sign": 1,
                        "mean_base": base,
                        "mean_policy": base + change,
                        "change": change,
                    }
                )
            )
    return {"toxicity_activations": pd.concat(tables, ignore_index=True)}


def activation_changes(low: float, high: float) -> Tables:
    """The interval over prompts of the attribute's neurons, off policy."""
    row = {"group": "attribute", "texts": "off_policy", "prompts": 200}
    row |= {"prompt_low": low, "prompt_high": high}
    return {"toxicity_activation_changes": pd.DataFrame([row])}


def offsets(
    cosine: float, random: float, *, flipped: float = 0.0, early: float = 0.3, half: float = 0.02
) -> Tables:
    """The last resid_mid has the cosines, earlier layers and resid_post have `early`."""
    rows = [
        {
            "place": place,
            "layer": layer,
            "position_kind": kind,
            "control": control,
            "cosine": (value := own if (place, layer) == ("resid_mid", LAYERS - 1) else early),
            **around(value, half),
            "norm": 1.0,
            "relative_norm": 0.1,
            "rows": 200,
            "prompts": 200,
        }
        for place in ("resid_mid", "resid_post")
        for layer in range(LAYERS)
        for kind, lower in (("last_prompt", 0.0), ("response", 0.4))
        for control, own in (
            ("policy", cosine - lower),
            ("random_weights", random),
            ("sign_flipped", flipped),
        )
    ]
    residuals = [
        {
            "place": "resid_mid",
            "layer": LAYERS - 1,
            "control": control,
            "model": model,
            "prompt": prompt,
            "axis": sign * gap / 2 + 0.01 * prompt,
            "pc1": float(prompt),
            "axis_size": gap,
        }
        for control, gap in (("policy", 3.0), ("permuted", 0.2))
        for model, sign in (("base", -1), ("policy", 1))
        for prompt in range(10)
    ]
    return {
        "toxicity_offsets": pd.DataFrame(rows),
        "toxicity_residuals": pd.DataFrame(residuals),
    }


def decomposition(share: float, permuted: float, *, half: float = 0.05) -> Tables:
    """`share` from value vectors at the last resid_mid, a half as much at other layers."""
    rows = [
        {
            "place": "resid_mid",
            "layer": layer,
            "position_kind": kind,
            "term": term,
            "control": control,
            "share": (shown := value if layer == LAYERS - 1 and kind == "response" else value / 2),
            **around(shown, half),
            "error": 1e-6,
            "rows": 200,
        }
        for layer in range(LAYERS)
        for kind in ("last_prompt", "response")
        for term, control, value in (
            ("value_vectors", "measured", share),
            ("value_vectors", "permuted_rows", permuted),
            ("activations", "measured", 0.9 - share),
            ("interaction", "measured", 0.06),
            ("attention", "measured", 0.04),
        )
    ]
    # Of eight neurons the first writes 4 and the others ±1. Those of the last layer write above
    # the place, and more than all others.
    changes = [
        {
            "layer": layer,
            "neuron": neuron,
            "group": "",
            "mean_activation": -0.1 if neuron < 6 else 0.1,
            "cosine": -0.2 if neuron < 6 else 0.2,
            "cosine_permuted": -0.2 if neuron < 4 else 0.2,
            "change_norm": 0.1,
            "write_change": size * (4.0 if neuron == 0 else (-1.0) ** neuron),
            "activation_change": 0.0,
        }
        for layer, count, size in ((0, 8, 1.0), (LAYERS - 1, 20, 100.0))
        for neuron in range(count)
    ]
    return {
        "toxicity_decomposition": pd.DataFrame(rows),
        "toxicity_value_changes": pd.DataFrame(changes),
    }


def unalign(
    restored: float,
    *,
    random: float = 0.02,
    most_active: float = 0.05,
    base_rise: float = 0.0,
    perplexity: float = 23.3,
    control_perplexity: float = 23.4,
    base: float = 0.45,
    policy: float = 0.2,
    half: float = 0.01,
    scales: tuple[float, ...] = (1.0, 3.0, 10.0),
    gate: float | None = None,
) -> Tables:
    """Shares of the gap that come back at the largest scale; ``gate``: of keys of the gate too."""
    shares = {"attribute": restored, "random": random, "most_active": most_active}
    rows = []
    for keys, groups in (("in", shares), ("gate", {"attribute": gate})):
        for group, share in groups.items():
            if share is None:
                continue
            for scale in scales:
                part = (scale - 1) / (scales[-1] - 1) if len(scales) > 1 else 0.0
                rise = part * base_rise * (group == "attribute")
                cost = perplexity if group == "attribute" else control_perplexity
                for host, score, last in (
                    ("base", base + rise, 21.7),
                    ("policy", policy + part * share * (base - policy), cost),
                ):
                    start = 21.7 if host == "base" else 23.34
                    shown = start + part * (last - start)
                    rows.append(
                        {
                            "host": host,
                            "group": group,
                            "keys": keys,
                            "scale": scale,
                            "neurons": 7,
                            "attribute_score": score,
                            **around(score, half),
                            "change": (change := score - (base if host == "base" else policy)),
                            **around(change, half * (scale > 1), ("change_low", "change_high")),
                            "perplexity": shown,
                            **around(shown, 0.5, ("perplexity_low", "perplexity_high")),
                            "prompts": 200,
                            "windows": 64,
                        }
                    )
    return {"toxicity_unalign": pd.DataFrame(rows)}


def lens(
    attribute: float,
    neutral: float,
    *,
    half: float = 0.1,
    early: float = 5.0,
    reach: float = 0.05,
    draws: int = 20,
) -> Tables:
    """The mean log ratio of the last two of eight layers, ± 0.05; `early` before them."""
    rows = [
        {
            "place": place,
            "layer": layer,
            "group": group,
            "base": 0.001 * (layer + 1),
            "policy": 0.0005 * (layer + 1),
            "log_ratio": (value := own + (0.05 if layer == 7 else -0.05) if late else early),
            **around(value, width),
            "tokens": 12,
            "prompts": 200,
            "draws": count,
        }
        for place in ("resid_mid", "resid_post")
        for layer in range(LAYERS)
        for late in (layer >= 6 and place == "resid_post",)
        for group, own, width, count in (
            ("attribute", attribute, half, 1),
            ("neutral", neutral, reach, draws),
        )
    ]
    return {"toxicity_lens": pd.DataFrame(rows)}


def patching(
    share: float,
    random: float,
    *,
    half: float = 0.02,
    reach: float = 0.01,
    draws: int = 12,
    whole: float = -1.0,
) -> Tables:
    """Random groups share ``random`` on average, and at most ``reach`` more."""
    values = {
        ("attribute", 7, "probe_projection", "total"): 0.55,
        ("attribute", 128, "probe_projection", "total"): share,
        ("attribute", 128, "probe_projection", "direct"): 0.6,
        ("attribute", 128, "kl", "total"): 0.7,
        ("random", 7, "probe_projection", "total"): 0.95,
        ("random", 128, "probe_projection", "total"): random,
        ("random", 128, "probe_projection", "direct"): 0.9,
        ("all", 4096, "probe_projection", "total"): 0.8,
    }
    return {
        "toxicity_patching": pd.DataFrame(
            [
                {
                    "group": group,
                    "neurons": neurons,
                    "statistic": statistic,
                    "effect": effect,
                    "share": value,
                    **around(value, half),
                    "draws": draws if group == "random" else 1,
                    "draws_low": value - reach if group == "random" else nan,
                    "draws_high": value + reach if group == "random" else nan,
                    "whole": whole,
                    **around(whole, 0.1, ("whole_low", "whole_high")),
                    "prompts": 200,
                }
                for (group, neurons, statistic, effect), value in values.items()
            ]
        )
    }


def metrics(reason: str = "", *, source: str = "VADER") -> Tables:
    """The scorer ran, or could not for a reason."""
    return {
        "toxicity_metrics": pd.DataFrame(
            [
                {
                    "metric": metric,
                    "family": "planted",
                    "status": "NOT RUN" if why else "RUN",
                    "reason": why,
                    "source": origin,
                }
                for metric, why, origin in (
                    ("attribute_score", reason, source),
                    ("perplexity", "", "text of the base"),
                    ("f1", "", "text of the base"),
                )
            ]
        )
    }


def study() -> Tables:
    """All tables, every row as published."""
    return {
        **probe(0.95),
        **value_vectors(0.6, 0.02),
        **interventions(),
        **weights(0.995),
        **activations(-0.4, 0.0),
        **activation_changes(-0.05, -0.03),
        **offsets(0.95, 0.3),
        **decomposition(0.7, 0.1),
        **unalign(1.0),
        **lens(-1.0, 0.1),
        **patching(0.15, 0.01),
        **metrics(),
    }
