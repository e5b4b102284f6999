"""Settings of the stress tests."""

from __future__ import annotations

from dataclasses import dataclass

#: Every test in the order of the ledger's rows 31–36 and of the tables; each is one table.
STRESS_TESTS = (
    "embeddings",
    "heterogeneous",
    "models",
    "encodings",
    "turns",
    "prompts",
    "causes",
    "losses",
    "sensitivity",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StressConfiguration:
    """Which stress tests run, and how large they are.

    Attributes:
        tests: Names of the tests: ``embeddings`` (frozen against trainable), ``heterogeneous``
            (planted, partly conflicting preference axes), ``models`` (other finished runs),
            ``encodings`` (ROT13, Base64, …), ``turns`` (multi-turn dialogues), ``prompts`` (benign
            against harmful), ``causes`` (SFT, shuffled pairs, seeds, transfer), ``losses`` (the
            preference-tuning family), ``sensitivity`` (β and data size).
        prompts: At most so many prompts or held-out pairs a condition.
        max_steps: Updates of each variant's training; 0 for as many as the policy has.
        axes: Numbers of planted preference axes.
        encodings: Encodings of the prompts.
        dialogues: A file of multi-turn dialogues, as HH's; empty for none.
        turns: At most so many turns a dialogue.
        benign: Suite or file of benign prompts; empty for the held-out prompts of the run.
        harmful: Suite or file of harmful prompts; empty for none.
        transfer: Other preference data whose vector is compared, as ``NAME=FILE``.
        losses: Losses of the family, as TRL names them; ``kto`` is its own trainer.
        betas: Values of β.
        shares: Shares of the training pairs.
        runs: Other run directories, for the table over models.
        max_new_tokens: New tokens a continuation.
        temperature: Of continuations; 0 is greedy.
        seed: Seed of variants, controls and samples.
    """

    tests: tuple[str, ...] = ()
    prompts: int = 64
    max_steps: int = 0
    axes: tuple[int, ...] = (1, 2, 4)
    encodings: tuple[str, ...] = ("rot13", "base64", "leetspeak", "spaced", "cipher")
    dialogues: str = ""
    turns: int = 4
    benign: str = ""
    harmful: str = ""
    transfer: tuple[str, ...] = ()
    losses: tuple[str, ...] = ("sigmoid", "ipo", "hinge", "kto")
    betas: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    runs: tuple[str, ...] = ()
    max_new_tokens: int = 24
    temperature: float = 0.8
    seed: int = 0
