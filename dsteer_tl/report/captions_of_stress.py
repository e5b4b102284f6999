"""Captions of the multiverse of choices and of the stress tests."""

from __future__ import annotations

from dsteer_tl.report.counting import Count, any_of, distinct, together

STRESS_CAPTIONS: dict[str, tuple[str, str, Count]] = {
    "multiverse": (
        "Verdicts under other choices",
        "Verdict of each row of the ledger under the default choice and under every other "
        "defensible choice of site, position, statistic, null and threshold.",
        together(
            distinct("multiverse", "rows of the ledger", "id"),
            distinct("multiverse", "choices", "dimension", "choice"),
        ),
    ),
    "stress_embeddings": (
        "Frozen against trainable embeddings",
        "The same training with embeddings and unembedding frozen and trainable: what is left of "
        "the one vector when the readout may move as well.",
        any_of("stress_embeddings"),
    ),
    "stress_heterogeneous": (
        "Several planted preference axes",
        "Policies trained on preferences with one and more planted axes, some in conflict: how "
        "cosines and rank of the shift follow their number.",
        any_of("stress_heterogeneous"),
    ),
    "stress_models": (
        "Other models",
        "The same statistics in other finished runs.",
        any_of("stress_models"),
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
        any_of("stress_causes"),
    ),
    "stress_losses": (
        "Other losses",
        "The same statistics for other losses of preference tuning on the same pairs.",
        any_of("stress_losses"),
    ),
    "stress_sensitivity": (
        "β and size of the data",
        "The same statistics over β and over the share of the training pairs.",
        any_of("stress_sensitivity"),
    ),
}
