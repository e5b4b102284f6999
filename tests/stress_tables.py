"""Synthetic tables of every stress test, for figures and scripts."""

from __future__ import annotations

import pandas as pd

from dsteer_tl.stress.columns import VARIANT_COLUMNS

STATISTICS = ("cos_loo_mean", "sigma_ratio", "effective_rank", "recovered", "cos_to_reference")


def rows(condition: str, role: str, *names: str, data: str = "run") -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for index, name in enumerate(names):
        for kind, n in (("last_prompt", 64), ("response", 1000)):
            value = 0.2 + 0.1 * index
            found.append(
                ("t", condition, role, data, "h", kind, name, value, value - 0.05, value + 0.1, n)
            )
    return found


def output(condition: str, role: str, name: str, value: float) -> tuple[object, ...]:
    place = ("output", "pair", name, value, value - 0.1, value + 0.1, 64)
    return ("t", condition, role, "run", *place)


def table(*entries: tuple[object, ...]) -> pd.DataFrame:
    return pd.DataFrame(list(entries), columns=list(VARIANT_COLUMNS))


def variants() -> pd.DataFrame:
    return table(
        *rows("as_run", "measured", *STATISTICS[:4]),
        output("as_run", "measured", "accuracy", 0.8),
        *rows("loss_<b>", "measured", *STATISTICS, "difference:cos_loo_mean"),
        *rows("data_hh", "measured", *STATISTICS, data="hh"),
        *rows("random_vector", "control", "cos_to_reference"),
    )


def axes() -> pd.DataFrame:
    entries = []
    for count in (1, 2, 4):
        name = f"axes_{count}"
        entries += rows(name, "measured", "effective_rank", "effective_rank_centred")
        entries += [output(name, "measured", f"accuracy:{axis}", 0.6) for axis in ("a", "b_c")]
        if count > 1:
            ratios = ("ratio:effective_rank", "ratio:effective_rank_centred")
            entries += rows(name, "measured", *ratios)
    entries += rows("axes_4_shuffled", "control", "ratio:effective_rank")
    entries.append(output("axes_1", "measured", "agreement:a:b_c", 0.4))
    return table(*entries)


def row(condition: str, statistic: str, value: float, *, site: str = "h") -> dict[str, object]:
    control = condition.startswith(("random", "shuffled", "other", "isotropic", "benign_halves"))
    control |= condition.endswith("random_weights")
    return {
        "test": "any",
        "condition": condition,
        "role": "control" if control else "measured",
        "site": site,
        "position_kind": "last_prompt",
        "statistic": statistic,
        "value": value,
        "low": value - 0.1,
        "high": value + 0.2,
        "n": 12,
    }


def encodings() -> pd.DataFrame:
    conditions = ("rot13", "morse<b>", "all", "random_tokens.rot13", "random_tokens.morse<b>")
    conditions += ("random_tokens", "other_half")
    rows = [row(name, "projection_ratio", 0.3 + 0.1 * i) for i, name in enumerate(conditions)]
    gaps = ("plain", "rot13", "morse<b>", "all", "random_tokens")
    return pd.DataFrame([*rows, *(row(name, "score_gap", 0.2, site="") for name in gaps)])


def turns() -> pd.DataFrame:
    return pd.DataFrame(
        [
            row(f"{name}.{turn}", statistic, turn + offset, site=site)
            for offset, name in enumerate(("dialogue", "shuffled", "random_prefix"))
            for turn in (1, 2, 3)
            for statistic, site in (("projection", "h"), ("cosine", "h"), ("kl", ""))
        ]
        + [row("dialogue", "projection_slope", 1.0)]
        + [row(f"dialogue.{turn}", "score_gap", 0.1, site="") for turn in (1, 2, 3)]
    )


def prompts() -> pd.DataFrame:
    sets = ("benign", "harmful", "random_tokens", "benign.random_weights")
    contrasts = ("harmful_to_benign", "random_tokens_to_benign", "benign_halves")
    return pd.DataFrame(
        [row(name, "relative_norm", 0.1 * i) for i, name in enumerate(sets, 1)]
        + [row(name, "null_space_share", 0.5) for name in (*sets, "isotropic")]
        + [row(name, "relative_norm_ratio", 1.5) for name in contrasts]
        + [row(name, "subspace_overlap_centred", 0.5) for name in contrasts]
        + [row("random_subspaces", "subspace_overlap", 0.05)]
    )


def models() -> tuple[pd.DataFrame, pd.DataFrame]:
    runs = ("tales", "a run with quite a long <name>")
    rows = [
        row(run, statistic, 0.1 + index)
        for index, run in enumerate(runs)
        for statistic in ("cos_loo_mean", "sigma_ratio", "recovered")
    ]
    verdicts = [
        {"run": run, "id": number, "verdict": verdict}
        for index, run in enumerate(runs)
        for number, verdict in ((1, "REPLICATED"), (6, ("PARTIAL", "NOT RUN")[index]))
    ]
    return pd.DataFrame(rows), pd.DataFrame(verdicts)


def every_table() -> dict[str, pd.DataFrame]:
    """Tables by name, as a run has them that was put to every test."""
    runs, verdicts = models()
    trained = dict.fromkeys(("embeddings", "causes", "losses", "sensitivity"), variants())
    tables = {"heterogeneous": axes(), "encodings": encodings(), "turns": turns()}
    tables |= {"prompts": prompts(), "models": runs, "model_verdicts": verdicts, **trained}
    return {f"stress_{name}": table for name, table in tables.items()}
