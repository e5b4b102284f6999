"""Tables in which the truth is known."""

from __future__ import annotations

import pandas as pd

from dsteer_tl.capture import ShiftSet
from dsteer_tl.claims import LEDGER, ClaimResult, judge
from dsteer_tl.measurements.shift_statistics import (
    cosine_table,
    mass_table,
    null_table,
    shift_table,
)
from dsteer_tl.measurements.spectral import entropy_table
from tests.measurements.synthetic import QUICK

LAYERS = tuple(f"resid_post.{layer}" for layer in range(6))


def shift_tables(found: ShiftSet) -> dict[str, pd.DataFrame]:
    return {
        "shifts": shift_table(found),
        "cosines": cosine_table(found),
        "nulls": null_table(found, QUICK),
        "mass": mass_table(found, QUICK),
        "entropy": entropy_table(found, QUICK),
    }


def row(number: int, tables: dict[str, pd.DataFrame], **more: object) -> ClaimResult:
    return next(found for found in judge(tables, **more) if found.id == number)  # type: ignore[arg-type]


def identity(here: float, later: float) -> dict[str, pd.DataFrame]:
    rows = [
        {"pair": i, "position_kind": kind, "error": error}
        for i in range(5)
        for kind, error in (("divergence", here), ("later", later))
    ]
    return {"identity": pd.DataFrame(rows)}


def gradients(here: float, later: float, shuffled: float = 0.0) -> dict[str, pd.DataFrame]:
    rows = [
        {
            "pair": i,
            "site": site,
            "position_kind": kind,
            "cos": cos,
            "cos_shuffled": shuffled,
        }
        for i in range(6)
        for site in ("resid_post.1", "h")
        for kind, cos in (("divergence", here), ("later", later))
    ]
    return {"gradients": pd.DataFrame(rows)}


def directions(
    share: float, null: float, v_star: float = 0.0, cosine: float = 0.1
) -> dict[str, pd.DataFrame]:
    values = {
        ("preference", "pc1_share"): share,
        ("random_tokens", "pc1_share"): null,
        ("shuffled", "pc1_share"): null / 2,
        ("preference", "pairwise_cosine"): cosine,
        ("random_tokens", "pairwise_cosine"): 0.0,
        ("preference", "v_star_cosine"): v_star,
        ("shuffled", "v_star_cosine"): -null,
    }
    return {
        "directions": pd.DataFrame(
            [
                {"family": family, "statistic": statistic, "value": value, "n": 9}
                for (family, statistic), value in values.items()
            ]
        )
    }


def projections(rising: float, random: float) -> dict[str, pd.DataFrame]:
    rows = [
        {"pair": i, "vector": vector, "base": 0.0, "policy": 1.0 if i < 100 * share else -1.0}
        for vector, share in (("preference", rising), ("random", random))
        for i in range(100)
    ]
    return {"projections": pd.DataFrame(rows)}


def patching(early: float, random: float = 0.0) -> dict[str, pd.DataFrame]:
    """``early`` of the effect is recovered below the last third of six layers."""
    rows = [
        {
            "site": site,
            "position_kind": "last_prompt",
            "source": source,
            "recovered": value,
            "ci_low": value - 0.02,
            "ci_high": value + 0.02,
            "n": 20,
        }
        for site in LAYERS
        for source, value in (("policy", early if site != LAYERS[-1] else 1.0), ("random", random))
    ]
    norms = [
        {"site": site, "position_kind": "last_prompt", "relative_norm": 0.1 * i, "n": 20}
        for i, site in enumerate((*LAYERS, "h"))
    ]
    return {"patching": pd.DataFrame(rows), "shifts": pd.DataFrame(norms)}


def recovery(v_star: float, bias: float, random: float = 0.0) -> dict[str, pd.DataFrame]:
    values = {"v_star": v_star, "random": random, "logit_bias": bias, "logit_bias_fitted": bias / 2}
    rows = [
        {
            "site": "h",
            "position_kind": kind,
            "vector": vector,
            "coefficient": coefficient,
            "direction": direction,
            "recovered": value if coefficient == 1 and direction == "invert" else -5.0,
            "ci_low": value - 0.05,
            "ci_high": value + 0.05,
            "n": 12,
        }
        for kind in ("last_prompt", "response")
        for vector, value in values.items()
        for coefficient in (0.5, 1.0)
        for direction in ("interpolate", "invert")
    ]
    return {"kl_recovery": pd.DataFrame(rows)}


ALL_IDS = [claim.id for claim in LEDGER]
