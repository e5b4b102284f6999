"""A small run directory from one seed, whose texts try to run scripts."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from dsteer_tl import plots
from dsteer_tl.claims import LEDGER, ClaimResult, Verdict
from dsteer_tl.files import hash_file, write_json
from tests.plots import behavior_tables, synthetic_tables

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "javascript:document.title='owned'",
    "</pre></td></table></section>",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt;",
    "<!--",
    "\u202e\u2028",
)
BAD = " ".join(HOSTILE)


def png(
    width: int = 8, height: int = 6, channels: int = 4, filters: tuple[int, ...] = (0,)
) -> bytes:
    """A PNG of random colours, its rows filtered in turn as asked."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    if channels == 4:
        pixels[..., 3] = 255
    rows = []
    for place in range(height):
        kind = filters[place % len(filters)]
        above = pixels[place - 1] if place and kind == 2 else np.zeros_like(pixels[0])
        left = np.zeros_like(pixels[0])
        if kind == 1:
            left[1:] = pixels[place, :-1]
        rows.append(bytes([kind]) + (pixels[place] - above - left).tobytes())
    kind = {3: 2, 4: 6}[channels]
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )


@cache
def run_tables() -> dict[str, pd.DataFrame]:
    """Tables of the core and of a sweep, of choices and of two stress tests."""
    names = ("geometry", "projections", "logit_lens", "gradients", "gradient_field", "clouds")
    names += ("cosines", "cosine_nulls", "shifts", "nulls", "kl_recovery")
    tables = {name: getattr(synthetic_tables, name)() for name in names}
    completions = behavior_tables.completions(prompts=7, coefficients=(-1.0, 0.0, 0.5, 1.0, 3.0))
    tables["completions"] = completions.assign(prompt_text=BAD, completion=BAD)
    columns = ["id", "dimension", "choice", "default", "verdict", "applies", "reason"]
    choices = pd.DataFrame(
        [
            (6, "site", "h", True, "PARTIAL", True, ""),
            (6, "site", "resid_post", False, "FAILED", True, BAD),
            (6, "null", "sign_flip", False, "PARTIAL", True, ""),
            (6, "position", "response", False, "NOT RUN", False, "no such rows"),
            (7, "site", "h", True, "TRIVIAL", True, ""),
        ],
        columns=columns,
    )
    numbers = {"measured": 0.5, "ci_low": 0.4, "ci_high": 0.6, "null": 0.1, "n": 64}
    tables["multiverse"] = choices.assign(**numbers, flips=choices["verdict"] == "FAILED")
    rows = [
        (condition, site, statistic, value, value - 0.1, value + 0.1)
        for condition, value in (("sigmoid", 0.7), ("ipo", 0.6))
        for site in ("h", "resid_post.3")
        for statistic in ("cos_loo_mean", "sigma_ratio", "difference:sigma_ratio")
    ]
    names = ("condition", "site", "statistic", "value", "low", "high")
    tables["stress_losses"] = pd.DataFrame(rows, columns=list(names)).assign(
        test="losses", role="measured", position_kind="last_prompt", n=64
    )
    tables["stress_turns"] = pd.DataFrame(
        {"turn": [1, 2], "said": [BAD, "b"], "cos": [0.5, 0.25], "cos_low": [0.4, 0.2],
         "cos_high": [0.6, 0.3], "n": [8, 8]}
    )  # fmt: skip
    return tables


def run_figures(tables: Mapping[str, pd.DataFrame], clouds: int = 0) -> dict[str, go.Figure]:
    """Figures of the tables, one that is not known, and as many more of three dimensions."""
    figures = {
        "figure_1a_logit_geometry": plots.logit_geometry(tables["geometry"], tables["projections"]),
        "figure_1b_gradient_field": plots.gradient_field(
            tables["gradient_field"], tables["gradients"]
        ),
        "figure_3_cosines": plots.cosine_histogram(tables["cosines"], tables["cosine_nulls"]),
        "sigma_ratio": plots.sigma_ratio(tables["shifts"], tables["nulls"]),
        "unheard_of": go.Figure(go.Bar(x=["a"], y=[1]), {"title": {"text": "<b>An</b> own one"}}),
    }
    for place in range(clouds):
        points = go.Scatter3d(x=[0, 1, place], y=[0, 1, 1], z=[0, 1, 0], mode="markers")
        figures[f"cloud_{place:02d}"] = go.Figure(points, {"height": 300})
    return figures


def run_claims() -> list[ClaimResult]:
    """Every row of the ledger, the verdicts in turn."""
    results = []
    for place, claim in enumerate(LEDGER):
        verdict = list(Verdict)[place % len(Verdict)]
        ran = verdict is not Verdict.NOT_RUN
        results.append(
            ClaimResult(
                id=claim.id, statement=claim.statement, source=claim.source,
                published=claim.published, target=claim.target, figure=claim.figure,
                verdict=verdict, measured=0.5 + place / 100 if ran else None,
                ci=(0.4, 0.9) if ran and place % 2 else None, null=0.1 if ran else None,
                null_name="random vector" if ran else "", unit="cosine", n=64 if ran else 0,
                site="h" if ran else "", position_kind="last_prompt" if ran else "",
                reason=f"why {place}" if ran else f"no table number_{place}",
            )
        )  # fmt: skip
    return results


def write_run(folder: Path, *, clouds: int = 0) -> Path:
    """Write the run.

    Args:
        folder: Is made.
        clouds: More figures of three dimensions.
    """
    tables = run_tables()
    for name in ("tables", "figures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(folder / "tables" / f"{name}.parquet", index=False)
    for name, figure in run_figures(tables, clouds).items():
        (folder / "figures" / f"{name}.json").write_text(pio.to_json(figure), "utf-8")
        if name != "sigma_ratio":
            (folder / "figures" / f"{name}.png").write_bytes(png(64, 40))
    (folder / "figures" / "text_browser.html").write_text("<title>all</title>", "utf-8")
    claims = [result.to_json() for result in run_claims()]
    claims[3]["reason"] = claims[3]["unit"] = claims[3]["null_name"] = BAD
    write_json(folder / "claims.json", claims)
    (folder / "config.yaml").write_text(f"name: tiny\ndescription: {BAD}\n", "utf-8")
    write_json(folder / "preferences.dropped.json", {"name": "x", "dropped": {BAD: 3}})
    outputs = {
        "claims": ["claims.json"],
        "figures": sorted(f"figures/{path.name}" for path in folder.glob("figures/*")),
        **{f"tables/{name}": [f"tables/{name}.parquet"] for name in tables},
    }
    manifest = {
        "format": 1,
        "name": f"tiny {BAD}",
        "models": {"base": {"source": BAD}},
        "versions": {"python": "3.11"},
        "hardware": {"cpu_cores": 2},
        "seeds": {"training": 0},
        "preflight": [{"name": "W_U", "passed": False, "detail": BAD}],
        "stages": {
            stage: {
                "key": "0",
                "seconds": 1.5,
                "outputs": {name: hash_file(folder / name) for name in files},
            }
            for stage, files in outputs.items()
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder
