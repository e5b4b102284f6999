"""Figures of the margin and of weight spectra hold their tables' numbers, nulls beside them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from dsteer_tl.controls import bootstrap_mean
from dsteer_tl.errors import ShapeError
from dsteer_tl.plots.margin_ledger import margin_ledger
from dsteer_tl.plots.token_shifts import token_shifts
from dsteer_tl.plots.weight_spectra import weight_spectra

TERMS = ("along", "off", "scale", "readout", "total")


def term_rows() -> pd.DataFrame:
    rows = []
    for s, scope in enumerate(("response", "divergence", "later")):
        for t, term in enumerate(TERMS):
            value = (1.0 if term == "total" else 0.4 - 0.1 * t) / (s + 1)
            null = 0.02 * (t + 1) if t < 2 else np.nan
            rows.append(
                {"scope": scope, "term": term, "value": value, "low": value - 0.2}
                | {"high": value + 0.1, "share": value * (s + 1), "n": 40}
                | {
                    f"{name}{end}": null + step
                    for name in ("null", "null_equal")
                    for end, step in (("", 0.0), ("_low", -0.01), ("_high", 0.03))
                }
            )
    return pd.DataFrame(rows)


def ledger_rows(pairs: int = 4) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = []
    for pair in range(pairs):
        for side in ("chosen", "rejected"):
            # One long response: its last tokens stand for few pairs and are not drawn.
            for offset in range(12 if pair == 0 else 5):
                terms = generator.normal(size=4)
                rows.append(
                    {"pair": pair, "side": side, "offset": offset, "total": terms.sum()}
                    | dict(zip(TERMS[:4], terms, strict=True))
                )
    return pd.DataFrame(rows)


def shift_rows(pairs: int = 8, length: int = 6) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    rows = [
        {
            "pair": pair,
            "prompt": pair // 2,
            "offset": offset,
            "along": generator.normal(1.0, 0.2),
            "off": generator.uniform(0.5, 1.0),
            "cos": generator.uniform(0.4, 0.8),
            "cos_random": 0.05,
        }
        for pair in range(pairs)
        for offset in range(length + 9 * (pair == 0))
    ]
    return pd.DataFrame(rows)


def spectra_rows(kinds: tuple[str, ...] = ("attention_query", "mlp_out", "shift")) -> pd.DataFrame:
    rows = []
    for layer in range(3):
        for k, kind in enumerate(kinds):
            for index, share in enumerate((0.5 - 0.1 * k, 0.2, 0.1), start=1):
                writes = kind != "attention_query"
                rows.append(
                    {"tensor": f"{kind}.{layer}", "layer": layer, "kind": kind, "index": index}
                    | {"share": share, "effective_rank": 4.0 + k + layer, "null_share": 0.04}
                    | {"v_star_cos": 0.6 if writes else np.nan, "null_effective_rank": 20.0}
                    | {"null_v_star_cos": 0.06 if writes else np.nan}
                )
    return pd.DataFrame(rows)


def traces(figure: go.Figure, name: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.name == name]


def test_terms_stand_with_their_intervals_beside_both_nulls() -> None:
    table = term_rows()
    figure = margin_ledger(table, ledger_rows())
    assert figure.layout.width == 528
    bars = traces(figure, "along v*")
    bars = [trace for trace in bars if trace.type == "bar"]
    found = [trace.y[0] for trace in bars]
    along = table[table["term"] == "along"]
    assert found == along["value"].tolist()
    for trace in bars:
        assert trace.error_y["array"][0] == pytest.approx(0.1)
        assert trace.error_y["arrayminus"][0] == pytest.approx(0.2)
    for label in ("null: random direction", "null: random, equal length"):
        marks = traces(figure, label)
        assert [mark.y[0] for mark in marks] == [0.02, 0.04] * 3
        assert sum(mark.showlegend is not False for mark in marks) == 1
        assert marks[0].error_y["array"][0] == pytest.approx(0.03)
    titles = " ".join(note.text for note in figure.layout.annotations)
    assert titles.count("n = 40 pairs") == 3
    assert "first differing token" in titles


def test_the_profile_is_the_running_sum_of_means_over_most_pairs() -> None:
    ledger = ledger_rows()
    figure = margin_ledger(term_rows(), ledger)
    lines = [trace for trace in traces(figure, "off v*") if trace.type == "scatter"]
    assert len(lines) == 2
    for side, line in zip(("chosen", "rejected"), lines, strict=True):
        here = ledger[(ledger["side"] == side) & (ledger["offset"] < 5)]
        expected = np.cumsum([here.loc[here["offset"] == o, "off"].mean() for o in range(5)])
        assert list(line.x) == [0, 1, 2, 3, 4]
        np.testing.assert_allclose(line.y, expected)


def test_spectra_are_relative_to_the_gaussian_of_their_shape() -> None:
    figure = weight_spectra(spectra_rows())
    queries = traces(figure, "W query")
    assert [list(trace.y) for trace in queries] == [
        pytest.approx([0.2, 0.25, 0.3]),
        pytest.approx([np.sqrt(0.2 / 0.5)] * 3),
    ]
    shifts = traces(figure, "ΔH of the shifts")
    assert len(shifts) == 3
    assert list(shifts[0].y) == pytest.approx([0.3, 0.35, 0.4])
    assert list(shifts[1].y) == pytest.approx([np.sqrt(0.2 / 0.3)] * 3)
    assert list(shifts[2].y) == [0.6] * 3
    assert {trace.xaxis for trace in queries}.isdisjoint({trace.xaxis for trace in shifts})
    nulls = traces(figure, "null: Gaussian matrix of the same shape")
    assert [null.y[0] for null in nulls] == pytest.approx([1, 1, 1, 1, 0.06, 0.06])
    assert "6 matrices" in " ".join(n.text for n in figure.layout.annotations)


def test_unknown_kinds_have_their_own_name_and_embeddings_no_place() -> None:
    table = spectra_rows(("mlp_out", "<b>odd", "shift"))
    figure = weight_spectra(table)
    assert len(traces(figure, "&lt;b&gt;odd")) == 3
    with pytest.raises(ShapeError, match="has no matrix inside a block"):
        weight_spectra(table.assign(layer=-1))


def test_offsets_have_means_with_intervals_over_prompts() -> None:
    table = shift_rows()
    figure = token_shifts(table)
    (cosines,) = traces(figure, "cos(δ, v*)")
    assert list(cosines.x) == list(range(6))
    here = table[table["offset"] == 2]
    interval = bootstrap_mean(here["cos"].to_numpy(), here["prompt"].to_numpy(), draws=400, seed=0)
    assert cosines.y[2] == pytest.approx(interval.value)
    (band,) = traces(figure, "cos(δ, v*), 95 % CI")
    assert band.y[2] == pytest.approx(interval.low)
    nulls = traces(figure, "null: random direction, |·|")
    assert [len(null.y) for null in nulls] == [6, 6]
    assert list(nulls[0].y) == pytest.approx([0.05] * 6)
    length = np.hypot(here["along"], here["off"]).mean()
    assert nulls[1].y[2] == pytest.approx(0.05 * length)
    assert "n = 8 responses" in figure.layout.annotations[0].text


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: margin_ledger(term_rows().drop(columns="null"), ledger_rows()), "missing null"),
        (lambda: margin_ledger(term_rows(), ledger_rows().iloc[:0]), "has 0 rows"),
        (
            lambda: margin_ledger(term_rows().assign(term="<b>x"), ledger_rows()),
            "has terms <b>x; expected along",
        ),
        (lambda: weight_spectra(spectra_rows().drop(columns="kind")), "missing kind"),
        (lambda: token_shifts(shift_rows().drop(columns="cos")), "missing cos"),
    ],
)
def test_wrong_tables_are_refused(draw: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        draw()  # type: ignore[operator]
