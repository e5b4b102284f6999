"""Tables of a fitted probe: toxicity_probe and toxicity_probe_scores."""

from __future__ import annotations

import pandas as pd

from dsteer_tl.toxicity.probe import Control, ProbeFit

#: What has a distribution of decision values worth a figure.
_SCORED: tuple[Control, ...] = ("probe", "shuffled_labels")


def probe_table(fit: ProbeFit, attribute: str, labels: str) -> pd.DataFrame:
    """The table ``toxicity_probe``: a row for the probe and for each control (claim 20).

    Args:
        fit: What `fit_probe` gave.
        attribute: The attribute in one word.
        labels: Where the labels come from.
    """
    return pd.DataFrame(
        [
            {
                "control": result.control,
                "balanced_accuracy": result.balanced_accuracy.value,
                "low": result.balanced_accuracy.low,
                "high": result.balanced_accuracy.high,
                "auroc": result.auroc.value,
                "auroc_low": result.auroc.low,
                "auroc_high": result.auroc.high,
                "accuracy": result.accuracy,
                "n_train": fit.probe.texts,
                "n_held_out": len(fit.held_out),
                "positive_share": fit.positive_share,
                "site": fit.probe.site,
                "attribute": attribute,
                "labels": labels,
            }
            for result in fit.results
        ]
    )


def probe_score_table(fit: ProbeFit) -> pd.DataFrame:
    """The table ``toxicity_probe_scores``: held-out logits by the probe and by shuffled labels."""
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "control": control,
                    "label": fit.labels.astype(int),
                    "score": fit.result(control).scores,
                }
            )
            for control in _SCORED
        ],
        ignore_index=True,
    )
