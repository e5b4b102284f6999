"""Believable tables with every column of the real ones, from one seed and no model."""

from __future__ import annotations

import numpy as np
import pandas as pd

KINDS = ("last_prompt", "divergence", "response")


def site_names(layers: int = 8) -> list[str]:
    return [f"resid_post.{layer}" for layer in range(layers)] + ["h"]


def _interval(values: np.ndarray, width: np.ndarray | float) -> dict[str, np.ndarray]:
    return {"ci_low": values - width, "ci_high": values + width}


def _stack(parts: list[dict[str, object]]) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)


def geometry(
    seed: int = 0, state_norm: float = 16.0, chosen: str = " happy", rejected: str = " sad\n"
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    dimension = 192
    e = rng.normal(size=(2, dimension)) * 0.09
    e[1] += 0.5 * e[0]
    v = e[0] - e[1]
    h = rng.normal(size=dimension)
    h = h / np.linalg.norm(h) * state_norm + v * 0.12 * state_norm
    policy = h + v / np.linalg.norm(v) * 0.16 * state_norm + rng.normal(size=dimension) * 0.06
    basis: list[np.ndarray] = []
    for vector in (e[0], e[1], h):
        rest = vector - sum((vector @ b) * b for b in basis)
        basis.append(rest / np.linalg.norm(rest))
    frame = np.stack(basis)
    unit = v / np.linalg.norm(v)
    vectors = {
        "h_base": h,
        "h_policy": policy,
        "e_chosen": e[0],
        "e_rejected": e[1],
        "v": v,
        "projection_base": (h @ unit) * unit,
        "projection_policy": (policy @ unit) * unit,
    }
    return pd.DataFrame(
        [
            {
                "name": name,
                **dict(zip("xyz", frame @ vector, strict=True)),
                "chosen_token": chosen,
                "rejected_token": rejected,
            }
            for name, vector in vectors.items()
        ]
    )


def projections(seed: int = 1, pairs: int = 180) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    base = rng.normal(0.4, 2.0, pairs)
    random = rng.normal(0.0, 1.3, pairs)
    return _stack(
        [
            {
                "pair": np.arange(pairs),
                "vector": "preference",
                "base": base,
                "policy": base + rng.normal(1.4, 0.9, pairs),
            },
            {
                "pair": np.arange(pairs),
                "vector": "random",
                "base": random,
                "policy": random + rng.normal(0.02, 0.3, pairs),
            },
        ]
    )


def logit_lens(seed: int = 2, layers: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    sites = site_names(layers)
    depth = np.linspace(0, 1, len(sites))
    parts = []
    for vector, rise in (("preference", 1.3), ("random", 0.04)):
        share = 0.5 + (
            0.44 * depth**2 if vector == "preference" else rng.normal(0, 0.03, len(sites))
        )
        for model in ("base", "policy"):
            value = (0.5 * depth if vector == "preference" else 0.05 * depth) + rng.normal(
                0, 0.02, len(sites)
            )
            value = value + (rise * depth**3 if model == "policy" else 0)
            parts.append(
                {
                    "site": sites,
                    "model": model,
                    "vector": vector,
                    "projection": value,
                    **_interval(value, 0.08 + 0.12 * depth),
                    "share_rising": share,
                    "n": 180,
                }
            )
    return _stack(parts)


def gradients(seed: int = 3, pairs: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for site in ("resid_post.6", "h"):
        for kind, mean, spread in (("divergence", 1.0, 1e-7), ("later", 0.13, 0.22)):
            parts.append(
                {
                    "pair": np.arange(pairs),
                    "site": site,
                    "position_kind": kind,
                    "cos": np.clip(rng.normal(mean, spread, pairs), -1, 1),
                    "cos_shuffled": np.clip(rng.normal(0.05, 0.2, pairs), -1, 1),
                    "norm": rng.gamma(4, 0.02, pairs),
                }
            )
    return _stack(parts)


def gradient_field(seed: int = 4, points: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    grid = np.linspace(-4, 4, points)
    x, y, z = (axis.ravel() for axis in np.meshgrid(grid, grid, grid, indexing="ij"))
    v = np.array([0.75, 0.4, 0.35])
    parts = [
        {
            "panel": "axis",
            "site": "h",
            **{key: [0.0] for key in "xyz"},
            **{key: [value] for key, value in zip("uvw", -v, strict=True)},
            "cos": [1.0],
        }
    ]
    for panel in ("divergence", "later"):
        direction = np.tile(-v, (len(x), 1))
        cosine = np.ones(len(x))
        if panel == "later":
            swirl = np.stack([-y, x, 0.5 * z], axis=1) / 5
            direction = 0.25 * direction + swirl + rng.normal(0, 0.15, direction.shape)
            cosine = direction @ -v / np.linalg.norm(direction, axis=1) / np.linalg.norm(v)
        direction = direction * (0.02 + 0.01 / (1 + np.exp(0.4 * (x + y + z))))[:, None]
        parts.append(
            {
                "panel": panel,
                "site": "h",
                "x": x,
                "y": y,
                "z": z,
                **dict(zip("uvw", -direction.T, strict=True)),
                "cos": cosine,
            }
        )
    return _stack(parts)


def clouds(seed: int = 5, prompts: int = 250) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(prompts, 3)) * [3.0, 2.2, 1.6]
    v = np.array([6.0, 3.0, 1.5])
    policy = base + v + rng.normal(size=(prompts, 3)) * 0.7
    states = {"base": base, "policy": policy, "interpolated": base + v, "inverted": policy - v}
    return _stack(
        [
            {
                "state": state,
                "prompt": np.arange(prompts),
                **{f"pc{i + 1}": values[:, i] for i in range(3)},
            }
            for state, values in states.items()
        ]
    )


def cosines(seed: int = 6, prompts: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for site in ("resid_post.7", "h"):
        for kind, mean, spread in (
            ("last_prompt", 0.94, 0.02),
            ("divergence", 0.71, 0.09),
            ("response", 0.53, 0.12),
        ):
            value = np.clip(rng.normal(mean, spread, prompts), -1, 0.995)
            parts.append(
                {
                    "site": site,
                    "position_kind": kind,
                    "prompt": np.arange(prompts),
                    "cos": value + 0.002,
                    "cos_loo": value,
                }
            )
    return _stack(parts)


def cosine_nulls(seed: int = 7, draws: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for site in ("resid_post.7", "h"):
        for kind in KINDS:
            for null, mean, spread in (
                ("sign_flip", 0.0, 0.08),
                ("random_weights", 0.42, 0.13),
                ("centred_pairs", 0.0, 0.2),
            ):
                parts.append(
                    {
                        "site": site,
                        "position_kind": kind,
                        "null": null,
                        "cos": np.clip(rng.normal(mean, spread, draws), -1, 1),
                    }
                )
    return _stack(parts)


def entropy(seed: int = 8, layers: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    sites = site_names(layers)
    depth = np.linspace(0, 1, len(sites))
    parts = []
    for kind in KINDS:
        base = 1.2 + 0.9 * depth + rng.normal(0, 0.02, len(sites))
        curves = {
            "base": base,
            "policy": base - 0.35 / (1 + np.exp(-14 * (depth - 0.7))),
            "shift": 2.6 - 1.7 * depth,
            "random_weights": base + rng.normal(0, 0.02, len(sites)),
        }
        curves["policy_minus_base"] = curves["policy"] - base
        for matrix, value in curves.items():
            parts.append(
                {
                    "site": sites,
                    "position_kind": kind,
                    "matrix": matrix,
                    "entropy": value,
                    **_interval(value, 0.07),
                }
            )
    return _stack(parts)


def spectra(seed: int = 9, layers: int = 8, top: int = 32) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    index = np.arange(1, top + 1)
    for kind in KINDS:
        for place, site in enumerate(site_names(layers)):
            depth = place / layers
            for matrix, size, decay in (
                ("base", 6 + 10 * depth, 0.9),
                ("policy", 6 + 10 * depth, 0.9 + 0.3 * depth),
                ("shift", 0.2 + 3.5 * depth**2, 1.0 + 1.2 * depth),
                ("shift_centred", 0.1 + 0.8 * depth**2, 0.6),
                ("random_weights", 0.2 + 3.5 * depth**2, 0.5),
            ):
                value = size * index**-decay * np.exp(rng.normal(0, 0.03, top))
                value = np.sort(value)[::-1]
                parts.append(
                    {
                        "site": site,
                        "position_kind": kind,
                        "matrix": matrix,
                        "index": index,
                        "singular_value": value,
                        "share": value**2 / (value**2).sum(),
                    }
                )
    return _stack(parts)


def shifts(seed: int = 10, layers: int = 8, kinds: tuple[str, ...] = KINDS) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    sites = site_names(layers)
    depth = np.linspace(0, 1, len(sites))
    parts = []
    for order, kind in enumerate(kinds):
        cosine = 0.94 - 0.2 * order - 0.2 * (1 - depth)
        parts.append(
            {
                "site": sites,
                "position_kind": kind,
                "n": (200, 200, 4812)[order],
                "cos_mean": cosine,
                "cos_sd": 0.02 + 0.05 * order,
                "cos_loo_mean": cosine - 0.002,
                "sigma_ratio": 0.12 + 0.2 * order + 0.15 * (1 - depth),
                "sigma_ratio_centred": 0.75 + rng.normal(0, 0.03, len(sites)),
                "u1_v_cos": 0.99,
                "v_norm": 0.3 + 5 * depth**2,
                "relative_norm": 0.02 + 0.25 * depth**2 / (1 + order),
                "pc1_share_centred": 0.12,
                "effective_rank": 9.0,
                "entropy_shift": 1.0,
                "entropy_base": 2.0,
                "entropy_policy": 1.8,
            }
        )
    return _stack(parts)


def nulls(seed: int = 11, layers: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    sites = site_names(layers)
    parts = []
    for statistic, level in (("sigma_ratio", 0.3), ("sigma_ratio_centred", 0.95)):
        for kind in KINDS:
            for null in ("gaussian_matched", "permutation", "random_weights"):
                value = (
                    level + rng.normal(0, 0.02, len(sites)) + 0.02 * (null == "gaussian_matched")
                )
                parts.append(
                    {
                        "statistic": statistic,
                        "site": sites,
                        "position_kind": kind,
                        "null": null,
                        "value": value,
                        **_interval(value, np.nan if null == "random_weights" else 0.03),
                        "draws": 1 if null == "random_weights" else 100,
                    }
                )
    return _stack(parts)


def mass() -> pd.DataFrame:
    component = np.arange(1, 11)
    parts = []
    for site in ("resid_post.7", "h"):
        for order, kind in enumerate(KINDS):
            for centred in (False, True):
                share = np.exp(-component * (0.25 if centred else 1.4 - 0.4 * order))
                share = 0.9 * share / share.sum()
                null = np.exp(-component * (0.2 if centred else 1.2))
                parts.append(
                    {
                        "site": site,
                        "position_kind": kind,
                        "component": component,
                        "centred": centred,
                        "mass": share,
                        **_interval(share, 0.1 * share),
                        "null": 0.85 * null / null.sum(),
                    }
                )
    return _stack(parts)


def kl_recovery(kinds: tuple[str, ...] = KINDS) -> pd.DataFrame:
    parts = []
    for direction in ("interpolate", "invert"):
        coefficient = np.linspace(0, 1.5, 7) if direction == "invert" else np.linspace(-1, 2, 13)
        for order, kind in enumerate(kinds):
            for vector, best, peak in (
                ("v_star", 0.86 - 0.27 * order, 1.0),
                ("random", 0.0, 0.0),
                ("permuted", 0.05, 0.2),
                ("logit_bias", 0.6 - 0.2 * order, 0.9),
                ("mean_preference", 0.3 - 0.1 * order, 0.5),
            ):
                curve = best - best * (coefficient - peak) ** 2 / max(peak, 1e-9) ** 2
                if vector == "random":
                    curve = -0.4 * coefficient**2
                parts.append(
                    {
                        "site": "h",
                        "position_kind": kind,
                        "vector": vector,
                        "coefficient": coefficient,
                        "direction": direction,
                        "kl": 0.08 * (1 - curve),
                        "recovered": curve,
                        **_interval(curve, 0.05),
                        "n": 200,
                    }
                )
    return _stack(parts)


def rank_recovery() -> pd.DataFrame:
    rank = np.array([0, 1, 2, 4, 8, 16, 32, 64])
    parts = []
    for order, kind in enumerate(KINDS):
        for basis, rate in (("svd", 0.5), ("svd_centred", 0.25), ("random", 0.005)):
            value = 1 - np.exp(-rate * rank / (1 + order))
            parts.append(
                {
                    "site": "h",
                    "position_kind": kind,
                    "rank": rank,
                    "basis": basis,
                    "recovered": value,
                    **_interval(value, 0.04),
                    "n": 200,
                }
            )
    return _stack(parts)


def patching(seed: int = 12, layers: int = 8, kinds: tuple[str, ...] = KINDS[:2]) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    sites = site_names(layers)
    depth = np.linspace(0, 1, len(sites))
    parts = []
    for kind in kinds:
        for source in ("policy", "random"):
            value = (
                depth**1.5
                if source == "policy"
                else -0.15 * depth + rng.normal(0, 0.02, len(sites))
            )
            parts.append(
                {
                    "site": sites,
                    "position_kind": kind,
                    "source": source,
                    "kl": 0.08 * (1 - value),
                    "recovered": value,
                    **_interval(value, 0.05),
                    "n": 96,
                }
            )
    return _stack(parts)


def training(seed: int = 13, steps: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    step = np.arange(1, steps + 1) * 2
    part = step / step[-1]
    curves = {
        "loss": 0.69 - 0.35 * part + rng.normal(0, 0.03, steps),
        "rewards/chosen": 0.4 * part + rng.normal(0, 0.05, steps),
        "rewards/rejected": -0.7 * part + rng.normal(0, 0.05, steps),
        "rewards/margins": 1.1 * part + rng.normal(0, 0.05, steps),
        "rewards/accuracies": np.clip(0.5 + 0.42 * part + rng.normal(0, 0.05, steps), 0, 1),
        "grad_norm": rng.gamma(4, 1, steps),
    }
    parts = [
        {"step": step, "epoch": 2 * part, "name": name, "value": value}
        for name, value in curves.items()
    ]
    parts.append(
        {
            "step": step[9::10],
            "epoch": 2 * part[9::10],
            "name": "eval_loss",
            "value": 0.7 - 0.28 * part[9::10],
        }
    )
    return _stack(parts)


def formation(layers: int = 8) -> pd.DataFrame:
    step = np.arange(0, 81, 8)[1:]
    part = step / step[-1]
    parts = []
    for place, site in enumerate(site_names(layers)):
        depth = place / layers
        parts.append(
            {
                "step": step,
                "site": site,
                "cos_to_final": 1 - (0.6 - 0.3 * depth) * (1 - part) ** 2,
                "cos_sd": 0.08 * (1 - part),
                "sigma_ratio": 0.2 + 0.4 * (1 - part) * (1 - 0.5 * depth),
                "v_norm": part * (0.5 + 5 * depth),
                "chosen_logp": -62 - 6 * part,
                "rejected_logp": -64 - 22 * part,
                "margin": 2 + 16 * part,
            }
        )
    return _stack(parts)


def tokens(seed: int = 14) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    words = {
        ("v_star", "promoted"): ' happy| smiled| love|!\n| friend| sun| play|"| yay|<b>bold</b>',
        ("v_star", "suppressed"): " sad| cried| died|\n\n| angry|</script>| hurt|$x^2$| alone|\t",
        ("random", "promoted"): " the|ing| Z| of|ably| 7|&amp;| müde| 猫|\u200b",
        ("random", "suppressed"): " box| ran|ed|.| to|über|antidisestablishmentarianism| a|…| q",
    }
    rows = []
    for (vector, effect), text in words.items():
        size = np.sort(np.abs(rng.normal(2.5 if vector == "v_star" else 0.9, 0.5, 10)))[::-1]
        for rank, token in enumerate(text.split("|"), start=1):
            value = float(size[rank - 1])
            rows.append(
                {
                    "vector": vector,
                    "effect": effect,
                    "rank": rank,
                    "token_id": 100 + rank,
                    "token": token,
                    "value": value if effect == "promoted" else -value,
                }
            )
    return pd.DataFrame(rows)
