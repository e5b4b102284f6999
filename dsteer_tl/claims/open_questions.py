"""What the papers' readers asked and nobody has answered: rows 31–36, by the stress tests.

Nothing is published, so that every statement is the hypothesis that the question suggests, and
every target is ours.
"""

from __future__ import annotations

from dsteer_tl.claims import measured_stress, measured_variants
from dsteer_tl.claims.claim import Claim

#: How the tables of the stress tests begin.
STRESS = "stress_"
#: How their sources begin.
OPEN = "open question"
_NOTHING = "nothing"

OPEN_QUESTIONS: tuple[Claim, ...] = (
    Claim(
        id=31,
        statement="Freezing the embeddings decides neither direction nor rank of the shift",
        source=f"{OPEN}: frozen against trainable embeddings",
        published=_NOTHING,
        target="cosine, σ2/σ1 and KL recovery each within 0.05 of one another, by its interval",
        tables=("stress_embeddings",),
        measure=measured_variants.embedding_freeze,
        figure="stress_embeddings",
    ),
    Claim(
        id=32,
        statement="The rank of the shifts follows the number of planted preferences",
        source=f"{OPEN}: heterogeneous, conflicting preferences",
        published=_NOTHING,
        target="the rank rises with every k, more than with shuffled preferences",
        tables=("stress_heterogeneous",),
        measure=measured_variants.rank_of_preferences,
        figure="stress_heterogeneous",
    ),
    Claim(
        id=33,
        statement="The verdicts are the same across sizes and architectures",
        source=f"{OPEN}: size and architecture",
        published=_NOTHING,
        target="every row of 1–30 that all runs could judge has one verdict",
        tables=("stress_model_verdicts",),
        measure=measured_stress.same_across_models,
        figure="stress_models",
    ),
    Claim(
        id=34,
        statement="Encoding the prompt bypasses the offset",
        source=f"{OPEN}: ROT13, Base64 and other encodings",
        published=_NOTHING,
        target="at most half of the projection on v* is left, less than on random tokens",
        tables=("stress_encodings",),
        measure=measured_stress.encoded_prompts,
        figure="stress_encodings",
    ),
    Claim(
        id=35,
        statement="The projection on v* drifts over the turns of a dialogue",
        source=f"{OPEN}: multi-turn drift",
        published=_NOTHING,
        target="slope per turn off zero, and off that of other content as long",
        tables=("stress_turns",),
        measure=measured_stress.drift_over_turns,
        figure="stress_turns",
    ),
    Claim(
        id=36,
        statement="Benign prompts are left alone, harmful ones deflected into a null space",
        source=f"{OPEN}, after Jain et al. 2024",
        published=_NOTHING,
        target="shift longer and further outside the base's subspace than on benign prompts",
        tables=("stress_prompts",),
        measure=measured_stress.harmful_deflected,
        figure="stress_prompts",
    ),
)
