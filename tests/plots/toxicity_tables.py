"""Believable tables of the toxicity study, with every column of the real ones and no model."""

from __future__ import annotations

import numpy as np
import pandas as pd

KINDS = ("last_prompt", "response")
PLACES = ("resid_mid", "resid_post")
WORDS = (
    " stupid",
    " hurt",
    " silly",
    " ugly",
    " mean",
    " nasty",
    " bad",
    " lazy",
    " rude",
    " dull",
)
PLAIN = (" the", "ing", " Z", " of", "ably", " 7", "&", "<b>x</b>", " müde", "$x^2$", " box", "\n")


def _frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows)


def _around(
    value: float, width: float, names: tuple[str, str] = ("low", "high")
) -> dict[str, float]:
    return {names[0]: value - width, names[1]: value + width}


def probe(attribute: str = "unkind") -> pd.DataFrame:
    shapes = {
        "probe": (0.88, 0.94, 0.89, 0.03),
        "words": (0.8, 0.87, 0.82, 0.04),
        "shuffled_labels": (0.52, 0.51, 0.6, 0.05),
        "majority": (0.5, 0.5, 0.63, 0.0),
    }
    return _frame(
        [
            {
                "control": control,
                "balanced_accuracy": balanced,
                **_around(balanced, width),
                "auroc": auroc,
                **_around(auroc, width, ("auroc_low", "auroc_high")),
                "accuracy": accuracy,
                "n_train": 1800,
                "n_held_out": 200,
                "positive_share": 0.37,
                "site": "resid_post.7",
                "attribute": attribute,
                "labels": "sampled",
            }
            for control, (balanced, auroc, accuracy, width) in shapes.items()
        ]
    )


def probe_scores(seed: int = 1, texts: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = (rng.random(texts) < 0.37).astype(int)
    return pd.concat(
        [
            pd.DataFrame({"control": control, "label": label, "score": score})
            for control, score in (
                ("probe", rng.normal(-2.6, 1.8, texts) + 4.8 * label),
                ("shuffled_labels", rng.normal(-0.6, 0.7, texts) + 0.05 * label),
            )
        ],
        ignore_index=True,
    )


def value_vectors(
    seed: int = 2, vectors: int = 64, layers: int = 8, *, gated: bool = True
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for group, top, floor, listed in (
        ("attribute", 0.45, 0.2, 0.35),
        ("shuffled_probe", 0.27, 0.18, 0.03),
        ("random", 0.16, -0.16, 0.02),
    ):
        rank = np.arange(1, vectors + 1)
        cosine = floor + (top - floor) * np.exp(-rank / (vectors / 4))
        if group == "random":
            cosine = np.sort(rng.normal(0, 0.07, vectors))[::-1]
        late = layers * (1 - rng.random(vectors) ** (2.5 if group == "attribute" else 1.0))
        parts.append(
            pd.DataFrame(
                {
                    "group": group,
                    "rank": rank,
                    "layer": np.minimum(late.astype(int), layers - 1),
                    "neuron": rng.integers(0, 512, vectors),
                    "sign": rng.choice([-1, 1], vectors) if gated else 1,
                    "cosine": cosine,
                    "norm": rng.gamma(9, 0.1, vectors),
                    "listed_share": rng.binomial(10, listed * np.exp(-rank / vectors)) / 10,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def svd(components: int = 16, vectors: int = 64) -> pd.DataFrame:
    rows = []
    for group, first, slope in (("attribute", 0.5, 0.07), ("random", 0.19, 0.02)):
        value = first * np.exp(-slope * np.arange(components))
        value[0] *= 1.25 if group == "attribute" else 1
        for component in range(components):
            rows.append(
                {
                    "group": group,
                    "component": component,
                    "singular_value": value[component],
                    "share": value[component] ** 2,
                    "cosine": (0.74 if group == "attribute" else 0.05) / (1 + component),
                    "listed_share": 0.5 / (1 + component) if group == "attribute" else 0.0,
                }
            )
    return _frame(rows)


def tokens(seed: int = 3, vectors: int = 4, top: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    named: list[tuple[str, str, float, int, int, int]] = [("probe", "probe", 1.0, -1, -1, 7)]
    for order in range(vectors):
        layer, neuron = 7 - order % 3, 40 + 111 * order
        named.append(
            (f"MLP.v[{layer},{neuron}]", "value_vector", 0.41 - 0.03 * order, layer, neuron, 6)
        )
    named += [(f"SVD.U[{i}]", "svd", 0.74 / (1 + i), -1, -1, max(7 - 3 * i, 0)) for i in range(3)]
    named.append(("random_value_vector", "random", 0.03, 3, 77, 1))
    named.append(("random", "random", 0.01, -1, -1, 0))
    rows = []
    for vector, kind, cosine, layer, neuron, hits in named:
        for effect in ("promoted", "suppressed"):
            size = np.sort(rng.gamma(30, 0.05 if kind != "random" else 0.03, top))[::-1]
            listed = np.zeros(top, dtype=bool)
            if effect == "promoted":
                listed[rng.permutation(top)[:hits]] = True
            bad, plain = list(rng.permutation(WORDS)), list(rng.permutation(PLAIN))
            for rank in range(1, top + 1):
                hit = bool(listed[rank - 1])
                token = bad.pop() if hit else plain.pop()
                rows.append(
                    {
                        "vector": vector,
                        "kind": kind,
                        "effect": effect,
                        "rank": rank,
                        "token_id": 100 + rank,
                        "token": token,
                        "value": size[rank - 1] * (1 if effect == "promoted" else -1),
                        "listed": hit,
                        "cosine": cosine,
                        "layer": layer,
                        "neuron": neuron,
                    }
                )
    return _frame(rows)


def weights(seed: int = 4, layers: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    tensors = [("embed.W_E", -1, "embedding", 768_000), ("unembed.W_U", -1, "unembedding", 768_000)]
    for layer in range(layers):
        for name, kind, size in (
            ("attn.W_Q", "attention", 36_864),
            ("attn.W_K", "attention", 36_864),
            ("attn.W_V", "attention", 36_864),
            ("attn.W_O", "attention", 36_864),
            ("mlp.W_in", "mlp_key", 98_304),
            ("mlp.W_gate", "mlp_key", 98_304),
            ("mlp.W_out", "mlp_value", 98_304),
            ("ln1.w", "norm", 192),
            ("ln2.w", "norm", 192),
        ):
            tensors.append((f"blocks.{layer}.{name}", layer, kind, size))
    scale = {"attention": 0.02, "mlp_key": 0.025, "mlp_value": 0.03, "norm": 0.001}
    rows = []
    for tensor, layer, kind, size in tensors:
        trained = kind in scale
        relative = scale.get(kind, 0.0) * float(np.exp(rng.normal(0.06 * layer, 0.25)))
        norm = float(np.sqrt(size) * 0.04)
        radial = float(rng.normal(0.03, 0.1))
        policy = norm * float(np.sqrt(1 + 2 * relative * radial + relative**2))
        rows.append(
            {
                "tensor": tensor,
                "layer": layer,
                "kind": kind,
                "size": size,
                "cosine": norm * (1 + relative * radial) / policy,
                "cosine_random": 1 / np.sqrt(1 + relative**2),
                "norm_base": norm,
                "norm_policy": policy,
                "norm_change": norm * relative,
                "norm_difference": abs(policy - norm) / norm,
                "relative_change": relative,
                "trained": trained,
            }
        )
    return _frame(rows)


def activations(seed: int = 5, neurons: int = 64, layers: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    base = rng.gamma(1.2, 0.25, neurons) - 0.05
    parts = []
    for group, fall in (("attribute", 0.12), ("matched", 0.01)):
        for texts, factor in (("off_policy", 1.0), ("on_policy", 1.3)):
            mean = base + rng.normal(0, 0.01, neurons)
            change = -fall * factor * np.abs(mean) + rng.normal(0, 0.02, neurons)
            parts.append(
                pd.DataFrame(
                    {
                        "group": group,
                        "texts": texts,
                        "layer": rng.integers(0, layers, neurons),
                        "neuron": np.arange(neurons),
                        "sign": rng.choice([-1, 1], neurons),
                        "mean_base": mean,
                        "mean_policy": mean + change,
                        "change": change,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def activation_changes(table: pd.DataFrame | None = None) -> pd.DataFrame:
    rows = []
    neurons = activations() if table is None else table
    for (group, texts), part in neurons.groupby(["group", "texts"], sort=False):
        change = float(part["change"].mean())
        rows.append(
            {
                "group": group,
                "texts": texts,
                "mean_base": float(part["mean_base"].mean()),
                "change": change,
                **_around(change, 0.006),
                "prompt_low": change - 0.002,
                "prompt_high": change + 0.002,
                "relative": change / float(part["mean_base"].mean()),
                "share_falling": float((part["change"] < 0).mean()),
                "prompts": 96,
                "neurons": len(part),
            }
        )
    return _frame(rows)


def offsets(
    seed: int = 6,
    layers: int = 8,
    controls: tuple[str, ...] = ("policy", "random_weights", "sign_flipped"),
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for place in PLACES:
        for layer in range(layers):
            depth = (layer + 0.5 * (place == "resid_post")) / layers
            for order, kind in enumerate(KINDS):
                for control in controls:
                    cosine = {
                        "policy": 0.35 + 0.4 * depth - 0.15 * order,
                        "random_weights": 0.35 - 0.1 * depth,
                    }.get(control, 0.0)
                    cosine += float(rng.normal(0, 0.015))
                    relative = 0.04 + 0.1 * depth
                    rows.append(
                        {
                            "place": place,
                            "layer": layer,
                            "position_kind": kind,
                            "control": control,
                            "cosine": cosine,
                            **_around(cosine, 0.03 + 0.02 * (control == "sign_flipped")),
                            "norm": relative * (4 + 10 * depth),
                            "relative_norm": relative * (0.9 if control == "random_weights" else 1),
                            "rows": 96 if order == 0 else 1520,
                            "prompts": 96,
                        }
                    )
    return _frame(rows)


def residuals(
    seed: int = 7, layers: tuple[int, ...] = (1, 3, 5, 7), prompts: int = 96
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for place in PLACES:
        for layer in layers:
            for control in ("policy", "permuted"):
                size = 0.6 + 0.5 * layer if control == "policy" else 0.08 * (1 + layer)
                spread = 0.6 + 0.12 * layer
                pc1 = rng.normal(0, 3 * spread, prompts)
                along = rng.normal(0, spread, prompts)
                for model, side in (("base", -0.5), ("policy", 0.5)):
                    parts.append(
                        pd.DataFrame(
                            {
                                "place": place,
                                "layer": layer,
                                "control": control,
                                "model": model,
                                "prompt": np.arange(prompts),
                                "axis": along
                                + side * size * (control == "policy")
                                + rng.normal(0, 0.1, prompts),
                                "pc1": pc1 + rng.normal(0, 0.1, prompts),
                                "axis_size": size,
                            }
                        )
                    )
    return pd.concat(parts, ignore_index=True)


def value_changes(
    seed: int = 8, layers: int = 8, width: int = 512, vectors: int = 64
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    count = layers * width
    mean = rng.normal(-0.02, 0.06, count) + rng.standard_t(3, count) * 0.02
    cosine = 0.09 * np.tanh(mean / 0.05) + rng.normal(0, 0.07, count)
    group = np.full(count, "", dtype=object)
    group[rng.permutation(count)[:vectors]] = "attribute"
    return pd.DataFrame(
        {
            "layer": np.repeat(np.arange(layers), width),
            "neuron": np.tile(np.arange(width), layers),
            "group": group,
            "mean_activation": mean,
            "cosine": np.clip(cosine, -1, 1),
            "cosine_permuted": np.clip(rng.permutation(cosine), -1, 1),
            "change_norm": rng.gamma(8, 0.004, count),
            "write_change": mean * cosine * 0.03,
            "activation_change": rng.normal(0.0001, 0.001, count),
        }
    )


TERMS = ("value_vectors", "activations", "interaction", "attention", "bias", "embedding")


def decomposition(layers: int = 8) -> pd.DataFrame:
    rows = []
    for place in PLACES:
        for layer in range(layers):
            depth = (layer + 0.5 * (place == "resid_post")) / layers
            attention = 1 - 0.55 * depth**0.6
            rest = 1 - attention
            shares = {
                "value_vectors": 0.45 * rest,
                "activations": 0.5 * rest,
                "interaction": 0.05 * rest,
                "attention": attention,
                "bias": 0.0,
                "embedding": 0.0,
            }
            for order, kind in enumerate(KINDS):
                for term in (*TERMS, "permuted"):
                    permuted = term == "permuted"
                    share = (
                        0.3 * shares["value_vectors"] if permuted else shares[term] + 0.02 * order
                    )
                    rows.append(
                        {
                            "place": place,
                            "layer": layer,
                            "position_kind": kind,
                            "term": "value_vectors" if permuted else term,
                            "control": "permuted_rows" if permuted else "measured",
                            "share": share,
                            **_around(share, 0.02 if share else 0.0),
                            "error": 1e-6,
                            "rows": 96 if order == 0 else 1520,
                        }
                    )
    return _frame(rows)


def lens(seed: int = 9, layers: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for place in PLACES:
        for layer in range(layers):
            depth = (layer + 0.5 * (place == "resid_post")) / layers
            for group, height, fall in (("attribute", 2e-3, 1.6), ("neutral", 3e-2, 0.05)):
                base = height * float(np.exp(5 * (depth - 0.9)))
                ratio = -fall * depth**2 + float(rng.normal(0, 0.03))
                rows.append(
                    {
                        "place": place,
                        "layer": layer,
                        "group": group,
                        "base": base,
                        "policy": base * float(np.exp(ratio)),
                        "log_ratio": ratio,
                        **_around(ratio, 0.06 + 0.1 * depth),
                        "tokens": 41,
                        "prompts": 96,
                        "draws": 1 if group == "attribute" else 20,
                    }
                )
    return _frame(rows)


def interventions(
    seed: int = 10, *, scored: bool = True, controls: bool = True, matched: bool = True
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []

    def add(
        vector: str,
        role: str,
        alpha: float,
        perplexity: float,
        score: float,
        f1: float,
        *,
        matched: bool = False,
    ) -> None:
        value = score if scored else float("nan")
        rows.append(
            {
                "vector": vector,
                "role": role,
                "coefficient": alpha,
                "norm": 0.8 * alpha,
                "matched": matched,
                "perplexity": perplexity,
                **_around(perplexity, 0.012 * perplexity, ("perplexity_low", "perplexity_high")),
                "attribute_score": value,
                **_around(value, 0.03),
                "change": value - 0.42,
                **_around(value - 0.42, 0.02, ("change_low", "change_high")),
                "f1": f1,
                **_around(f1, 0.006, ("f1_low", "f1_high")),
                "prompts": 96,
                "windows": 128,
            }
        )

    add("base", "anchor", 0.0, 9.1, 0.42, 0.193)
    add("policy", "anchor", 0.0, 9.8, 0.21, 0.195)
    slopes = {"probe": 0.9, "MLP.v[7,40]": 0.55, "SVD.U[0]": 0.8, "SVD.U[1]": 0.3}
    if controls:
        add("random_weights", "anchor", 0.0, 9.75, 0.41, 0.19)
        add("shuffled_pairs", "anchor", 0.0, 9.5, 0.4, 0.192)
        slopes |= {"random": 0.03, "random_value_vector": -0.05, "logit_bias": 0.7}
    for order, (vector, slope) in enumerate(slopes.items()):
        role = "control" if order > 3 else "attribute"
        alpha = 2.0 + 0.3 * order
        for dose in (0.5, 1.0, 2.0):
            score = 0.42 - 0.36 * np.tanh(slope * dose) + float(rng.normal(0, 0.008))
            perplexity = 9.1 * (9.8 / 9.1) ** (dose**1.7)
            # Windows are continued, for F1, at the matched coefficient only.
            f1 = 0.193 - 0.003 * order / 2 if dose == 1 else float("nan")
            add(vector, role, dose * alpha, perplexity, score, f1, matched=matched and dose == 1)
        if vector == "random":
            add(vector, role, 1.3 * alpha, 10.2, 0.41, 0.19)
    return _frame(rows)


def unalign(keys: tuple[str, ...] = ("in", "gate", "both"), *, scored: bool = True) -> pd.DataFrame:
    rows = []
    for host, start, cost in (("base", 0.42, 0.0), ("policy", 0.21, 0.01)):
        for group, rise in (("attribute", 0.04), ("random", 0.001), ("most_active", -0.008)):
            for order, key in enumerate(keys):
                # Controls are scaled in one way only.
                for scale in (
                    (1.0, 2.0, 3.0, 5.0, 7.0, 10.0) if group == "attribute" or not order else ()
                ):
                    score = start + rise * (scale - 1) ** 0.8 * (1 + 0.15 * order)
                    value = score if scored else float("nan")
                    harm = {"attribute": 0.006, "random": 0.002, "most_active": 0.05}[group]
                    perplexity = 9.1 * float(np.exp(harm * (scale - 1) * (1 + 0.3 * order) + cost))
                    rows.append(
                        {
                            "host": host,
                            "group": group,
                            "keys": key,
                            "scale": scale,
                            "neurons": 7,
                            "attribute_score": value,
                            **_around(value, 0.03),
                            "change": value - start,
                            **_around(value - start, 0.01, ("change_low", "change_high")),
                            "perplexity": perplexity,
                            **_around(perplexity, 0.15, ("perplexity_low", "perplexity_high")),
                            "prompts": 96,
                            "windows": 128,
                        }
                    )
    return _frame(rows)


def patching(sizes: tuple[int, int] = (7, 64), width: int = 4096) -> pd.DataFrame:
    rows = []
    for statistic, factor in (("probe_projection", 1.0), ("kl", 0.6)):
        for group, neurons, share in (
            ("attribute", sizes[0], 0.06),
            ("attribute", sizes[1], 0.17),
            ("random", sizes[0], 0.001),
            ("random", sizes[1], 0.01),
            ("all", width, 0.55),
        ):
            for effect, part in (("total", 1.0), ("direct", 0.6)):
                value = share * factor * part
                draws = 1
                if group == "random":
                    draws = 12 if (neurons, statistic) == (sizes[1], "probe_projection") else 3
                spread = 0.03 * (neurons / sizes[1]) ** 0.5 if draws > 1 else float("nan")
                whole = {"probe_projection": -2.9, "kl": 1.3}[statistic]
                rows.append(
                    {
                        "group": group,
                        "neurons": neurons,
                        "statistic": statistic,
                        "effect": effect,
                        "share": value,
                        **_around(value, 0.01 + 0.1 * value),
                        "draws": draws,
                        **_around(value, spread, ("draws_low", "draws_high")),
                        "whole": whole,
                        **_around(whole, 0.1, ("whole_low", "whole_high")),
                        "prompts": 96,
                    }
                )
    return _frame(rows)
