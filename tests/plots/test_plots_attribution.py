"""Figures of who writes v* show what their tables say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.component_patching import HELD, component_patching
from dsteer_tl.plots.contributions import contributions

LAYERS, HEADS = 4, 3


def contribution_rows(
    *, heads: bool = True, kinds: tuple[str, ...] = ("response",)
) -> pd.DataFrame:
    rows = []
    for kind in kinds:
        names = [("embed", "embed", -1)]
        for layer in range(LAYERS):
            names += [(f"attn.{layer}", "attention", layer), (f"mlp.{layer}", "mlp", layer)]
            if heads:
                names += [(f"head.{layer}.{head}", "head", layer) for head in range(HEADS)]
                names.append((f"attn_bias.{layer}", "bias", layer))
        for index, (component, group, layer) in enumerate(names):
            share = 0.0 if group == "bias" else 0.01 * index
            rows.append(
                {
                    "component": component,
                    "kind": group,
                    "layer": layer,
                    "position_kind": kind,
                    "base": 0.0,
                    "policy": share,
                    "change": share,
                    "share": share,
                    "low": share - 0.01,
                    "high": share + 0.01,
                    "null_low": -0.05,
                    "null_high": 0.05,
                    "n": 12,
                }
            )
    return pd.DataFrame(rows)


def patching_rows(*, margin: bool = True, some: bool = True) -> pd.DataFrame:
    rows = []
    groups = [("component", name, "all") for name in ("attn_out", "mlp_out")]
    groups += [("from", "both", "all"), ("upto", "both", "all")]
    groups += [("from", "both", name) for name in ("last_prompt", "response") if some]
    effects = [("kl", "last_prompt"), ("kl", "response")] + [("margin", "response")] * margin
    for effect, kind in effects:
        for index, (group, component, positions) in enumerate(groups):
            for layer in range(LAYERS):
                share = 0.1 * index + 0.05 * layer + (0.01 if effect == "margin" else 0)
                rows.append(
                    {
                        "group": group,
                        "component": component,
                        "layer": layer,
                        "positions": positions,
                        "position_kind": kind,
                        "effect": effect,
                        "recovered": share,
                        "low": share - 0.02,
                        "high": share + 0.02,
                        "null": -0.1,
                        "n": 9,
                    }
                )
    return pd.DataFrame(rows)


def lines(figure: go.Figure, name: str) -> list[go.Scatter]:
    return [t for t in figure.data if t.name == name and t.mode == "lines+markers"]


def test_contributions_show_blocks_null_and_heads() -> None:
    table = contribution_rows(kinds=("response", "last_prompt"))
    figure = contributions(table)
    assert "last prompt token, n = 12" in figure.layout.annotations[0].text
    rows = table[table["position_kind"] == "last_prompt"]
    for name, kind in (("attention", "attention"), ("MLP", "mlp")):
        (line,) = lines(figure, name)
        assert list(line.y) == pytest.approx(rows.loc[rows["kind"] == kind, "share"].tolist())
    (null,) = [t for t in figure.data if t.name == "random directions, 95 %"]
    assert (min(null.y), max(null.y)) == (-0.05, 0.05)
    (grid,) = [t for t in figure.data if isinstance(t, go.Heatmap)]
    shares = np.array(grid.z, dtype=float)
    assert shares.shape == (HEADS, LAYERS)
    for _, row in rows[rows["kind"] == "head"].iterrows():
        layer, head = (int(part) for part in row["component"].split(".")[1:])
        assert shares[head, layer] == pytest.approx(row["share"])
        # Within the range of random directions a head has no number.
        assert (grid.text[head][layer] != "") == (row["share"] > 0.05)
    assert "response tokens" in contributions(table, "response").layout.annotations[0].text


def test_contributions_without_heads() -> None:
    figure = contributions(contribution_rows(heads=False))
    assert not [t for t in figure.data if isinstance(t, go.Heatmap)]
    assert len(lines(figure, "MLP")) == 1


@pytest.mark.parametrize("margin", [True, False])
def test_component_patching_shows_every_group(margin: bool) -> None:
    table = patching_rows(margin=margin)
    figure = component_patching(table, "last_prompt")
    columns = 2 if margin else 1
    rows = table[table["position_kind"] == "last_prompt"]
    for name, group, component, positions in (
        ("attention", "component", "attn_out", "all"),
        ("MLP", "component", "mlp_out", "all"),
        ("all from layer l up", "from", "both", "all"),
        ("all up to layer l", "upto", "both", "all"),
        ("response tokens", "from", "both", "response"),
    ):
        drawn = lines(figure, name)
        assert len(drawn) == columns
        chosen = (rows["group"] == group) & (rows["component"] == component)
        expected = rows.loc[chosen & (rows["positions"] == positions), "recovered"]
        assert list(drawn[0].y) == pytest.approx(expected.tolist())
    nulls = lines(figure, "random change, equal norm")
    assert len(nulls) == 6 * columns and all(set(line.y) == {-0.1} for line in nulls)
    levels = [shape.y0 for shape in figure.layout.shapes]
    assert levels.count(HELD) == 2 * columns


def test_component_patching_prefers_response_tokens() -> None:
    titles = [note.text for note in component_patching(patching_rows()).layout.annotations]
    assert any("response tokens, n = 9" in title for title in titles)
    figure = component_patching(patching_rows(some=False))
    assert not lines(figure, "last prompt token")


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ShapeError, match="missing null_low"):
        contributions(contribution_rows().drop(columns="null_low"))
    with pytest.raises(ShapeError, match="no rows with position_kind = 'divergence'"):
        component_patching(patching_rows(), "divergence")
    with pytest.raises(ShapeError, match="0 rows"):
        component_patching(patching_rows().head(0))
