"""Captions of the multiverse of choices and of the stress tests."""

from __future__ import annotations

from dsteer_tl.report.counting import Count, any_of, by_position, choices_judged


def _of_shifts(table: str, **where: str) -> Count:
    """What the mean shift rests on; recovered KL is of half as many prompts."""
    return by_position(table, statistic="cos_loo_mean", **where)


STRESS_CAPTIONS: dict[str, tuple[str, str, Count]] = {
    "multiverse": (
        "Verdicts under other choices",
        "Verdict of each row of the ledger under the default choice and under every other "
        "defensible choice: of site, position, centring, precision and prompts, and the choices of "
        "the sweep and of the study of Lee et al. Rows that have no verdict are not counted.",
        choices_judged,
    ),
    "stress_embeddings": (
        "Frozen against trainable embeddings",
        "The same training with embeddings and unembedding frozen and trainable: what is left of "
        "the one vector when the readout may move as well.",
        _of_shifts("stress_embeddings"),
    ),
    "stress_heterogeneous": (
        "Several planted preference axes",
        "Policies trained on preferences with one and more planted axes, some in conflict: how "
        "cosines and rank of the shift follow their number.",
        _of_shifts("stress_heterogeneous"),
    ),
    "stress_models": (
        "Other models",
        "The same statistics in other finished runs.",
        _of_shifts("stress_models", site="h", role="measured"),
    ),
    "stress_encodings": (
        "Encoded prompts",
        "Shift and steering on prompts in ROT13, Base64 and other encodings, beside the plain "
        "prompts.",
        any_of("stress_encodings"),
    ),
    "stress_turns": (
        "Many turns",
        "Shift and steering over the turns of a dialogue.",
        any_of("stress_turns", "dialogues"),
    ),
    "stress_prompts": (
        "Benign against harmful prompts",
        "Whether v* of benign prompts is that of harmful ones, beside halves of one kind.",
        any_of("stress_prompts"),
    ),
    "stress_causes": (
        "What else makes such a vector",
        "The vector of DPO beside those of supervised tuning, shuffled pairs, other seeds and "
        "other data.",
        _of_shifts("stress_causes"),
    ),
    "stress_losses": (
        "Other losses",
        "The same statistics for other losses of preference tuning on the same pairs.",
        _of_shifts("stress_losses"),
    ),
    "stress_sensitivity": (
        "β and size of the data",
        "The same statistics over β and over the share of the training pairs.",
        _of_shifts("stress_sensitivity"),
    ),
}
