"""How the claims on finding an attribute are measured: rows 20 and 21 (Lee et al. 2024, sec. 3)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dsteer_tl.claims.selection import MissingRowsError, at, ends, joined, value_at
from dsteer_tl.claims.sweep_selection import SEED, listed
from dsteer_tl.claims.toxicity_selection import first_text, interval, optional
from dsteer_tl.claims.verdicts import Measurement, Tables
from dsteer_tl.controls import Interval, bootstrap_mean

#: Row 20: published accuracy.
_PUBLISHED_ACCURACY = 0.94
_ACCURACY = ("balanced_accuracy", "low", "high")
_PROBE_NULLS = ("shuffled_labels", "majority")
_AUROC = ("auroc", "auroc_low", "auroc_high")
#: Row 21 publishes lists of tokens and no number: ours is half of ten tokens, over ten vectors.
_FIRST, _HALF = 10, 0.5
_VALUE_VECTOR_NULLS = ("random", "shuffled_probe")


def probe_accuracy(tables: Tables) -> Measurement:
    """Row 20: a linear probe on the residual stream tells the attribute with 94 % accuracy.

    The null is the mean over probes of shuffled labels; what must be exceeded is the upper end of
    their range.

    Raises:
        MissingRowsError: There is no probe, or no control of it.
    """
    table = tables["toxicity_probe"]
    rows = at(table, control="probe")
    found = interval(tables, rows, _ACCURACY)
    nulls = {
        name: value_at(table, "balanced_accuracy", control=name)
        for name in _PROBE_NULLS
        if len(at(table, control=name))
    }
    if not nulls:
        raise MissingRowsError("no control of the probe: neither shuffled labels nor the majority")
    largest = max(nulls, key=nulls.__getitem__)
    highest = max(value_at(table, "high", control=name) for name in nulls)
    return Measurement(
        measured=found.value,
        ci=ends(found),
        null=nulls[largest],
        null_name=largest.replace("_", " "),
        target_met=found.value >= _PUBLISHED_ACCURACY,
        null_met=highest >= _PUBLISHED_ACCURACY,
        right_sign=found.low > highest,
        unit="balanced accuracy on held-out texts",
        reason=joined(
            f"AUROC {value_at(rows, 'auroc'):.3f}, accuracy {value_at(rows, 'accuracy'):.3f} with "
            f"{value_at(rows, 'positive_share'):.0%} positive",
            f"controls reach {highest:.3f}",
            _words(table, interval(tables, rows, _AUROC)),
            _labels(rows),
        ),
        site=first_text(rows, "site"),
        n=int(value_at(rows, "n_held_out")),
    )


def _words(table: pd.DataFrame, probe: Interval) -> str:
    rows = at(table, control="words")
    if not len(rows):
        return "no baseline on words was measured"
    # Not by accuracy: the threshold of a bag of words is not calibrated.
    words = value_at(rows, "auroc")
    text = f"a bag of words has AUROC {words:.3f}"
    return text if words < probe.low else f"{text}: single words tell as much"


def _labels(rows: pd.DataFrame) -> str:
    # A source may be followed by a file, which is nobody else's business.
    labels = first_text(rows, "labels").partition("=")[0]
    return "" if labels == "jigsaw" else f"published on Jigsaw, labels here from {labels}"


def promoting_value_vectors(tables: Tables) -> Measurement:
    """Row 21: the value vectors closest to the probe promote tokens of the attribute.

    Raises:
        MissingRowsError: They or random ones were not measured, or the scorer lists no words.
    """
    table = tables["toxicity_value_vectors"]
    found = _listed(table, "attribute")
    nulls = {
        name: _listed(table, name).value
        for name in _VALUE_VECTOR_NULLS
        if name == "random" or len(at(table, group=name))
    }
    largest = max(nulls, key=nulls.__getitem__)
    every = at(table, group="attribute")
    return Measurement(
        measured=found.value,
        ci=ends(found),
        null=nulls[largest],
        null_name="value vectors closest to a probe of shuffled labels"
        if largest == "shuffled_probe"
        else "random value vectors",
        target_met=found.value >= _HALF,
        null_met=nulls[largest] >= _HALF,
        right_sign=found.low > nulls[largest],
        unit=f"share of listed words among the ten tokens promoted most, first {_FIRST} vectors",
        reason=joined(
            f"over all {len(every)} vectors {every['listed_share'].mean():.2f}, random "
            f"{at(table, group='random')['listed_share'].mean():.2f}",
            _cosines(table),
            _first_component(tables),
            "words of a list: tokens that the list lacks do not count",
        ),
        n=int((every["rank"] <= _FIRST).sum()),
    )


def _listed(table: pd.DataFrame, group: str) -> Interval:
    """Mean share of listed words over a group's first vectors, drawn anew over vectors."""
    rows = at(table, group=group)
    rows = rows[rows["rank"] <= _FIRST]
    shares = rows["listed_share"].to_numpy(dtype=np.float64)
    if len(shares) < 2:
        raise MissingRowsError(f"{len(shares)} value vectors of group {group} were measured")
    if not np.isfinite(shares).all():
        raise MissingRowsError("no share of listed words: the scorer has no list of words")
    return bootstrap_mean(shares, draws=1000, seed=SEED)


def _cosines(table: pd.DataFrame) -> str:
    """The largest of many cosines is large whatever the probe: hence the shuffled probe's."""
    text = f"largest cosine with the probe {at(table, group='attribute')['cosine'].max():.2f}"
    shuffled = at(table, group="shuffled_probe")
    if not len(shuffled):
        return text
    return f"{text}, with a probe of shuffled labels {shuffled['cosine'].max():.2f}"


def _first_component(tables: Tables) -> str:
    table = optional(tables, "toxicity_svd")
    if not len(table):
        return ""
    shares = (
        f"{at(table, group=group, component=0)['listed_share'].mean():.2f} ({label})"
        for group, label in (
            ("attribute", "their SVD.U[0]"),
            ("random", "of random ones"),
            ("shuffled_probe", "of those by shuffled labels"),
        )
        if len(at(table, group=group, component=0))
    )
    return listed("listed share of the first singular vector", shares)
