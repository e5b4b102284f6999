"""The claims of Lee et al. 2024 (arXiv 2401.01967) as data, and one of Yang et al. 2024 on them.

Sections, tables and figures are counted as in the version of ICML 2024, which has Llama 2 too.
"""

from __future__ import annotations

from dsteer_tl.claims import (
    measured_changes,
    measured_falls,
    measured_probe,
    measured_toxicity,
    measured_unalign,
)
from dsteer_tl.claims.claim import Claim

_INTERVENTIONS = "toxicity_interventions"
LEE = "Lee et al. 2024"

LEE_CLAIMS: tuple[Claim, ...] = (
    Claim(
        id=20,
        statement="A linear probe on the residual stream tells toxic from other text",
        source=f"{LEE}, sec. 3.1",
        published="94 %",
        target="balanced accuracy of at least .94 on held-out texts",
        tables=("toxicity_probe",),
        measure=measured_probe.probe_accuracy,
        figure="toxicity_probe",
    ),
    Claim(
        id=21,
        statement="The MLP value vectors closest to the probe promote toxic tokens",
        source=f"{LEE}, secs. 3.1 and 3.2, Table 1",
        published="lists of tokens",
        target="at least half of the ten tokens promoted most, mean over the first ten vectors",
        tables=("toxicity_value_vectors",),
        measure=measured_probe.promoting_value_vectors,
        figure="toxicity_value_vectors",
    ),
    Claim(
        id=22,
        statement="Subtracting the probe, a value vector or SVD.U[0] reduces toxicity",
        source=f"{LEE}, sec. 3.3, Table 2",
        published=".453 → .245, .305, .268 (ratios .54, .67, .59) at perplexity 23.4",
        target="all three at most .67 of the base at the policy's perplexity, intervals of the "
        "change below zero and below the best control",
        tables=(_INTERVENTIONS,),
        measure=measured_toxicity.subtracted_vectors,
        figure="toxicity_interventions",
    ),
    Claim(
        id=23,
        statement="DPO reduces toxicity and hardly changes perplexity and F1",
        source=f"{LEE}, sec. 4.2, Table 2",
        published=".453 → .208 (ratio .46), perplexity 21.7 → 23.34, F1 .193 → .195",
        target="at most .55 of the base, interval of the change below zero, perplexity at most "
        "1.1 times, F1 at most .01 less",
        tables=(_INTERVENTIONS,),
        measure=measured_toxicity.tuned,
        figure="toxicity_interventions",
    ),
    Claim(
        id=24,
        statement="The weights barely move, and behaviour changes",
        source=f"{LEE}, sec. 5.1",
        published="cosine > .99, norm difference < 1e-5 on average",
        target="every tensor trained above .99, norms differ by less than 1e-5 of the base's on "
        "average, interval of the attribute's change below zero",
        tables=("toxicity_weights", _INTERVENTIONS),
        measure=measured_changes.weights_barely_move,
        figure="toxicity_weights",
    ),
    Claim(
        id=25,
        statement="Activations of the toxic value vectors drop after DPO",
        source=f"{LEE}, sec. 5.2, Fig. 2",
        published="no number",
        target="interval over neurons below zero, and so that of the difference from neurons of "
        "equal activation",
        tables=("toxicity_activations",),
        measure=measured_falls.falling_activations,
        figure="toxicity_activations",
    ),
    Claim(
        id=26,
        statement="DPO adds one linear offset δ to the residual stream of every prompt",
        source=f"{LEE}, sec. 5.2, Fig. 4",
        published="no number",
        target="mean leave-one-out cosine of at least 0.92 at the last resid_mid",
        tables=("toxicity_offsets",),
        measure=measured_changes.consistent_offset,
        figure="toxicity_offsets",
    ),
    Claim(
        id=27,
        statement="Small changes of many value vectors add up to δ",
        source=f"{LEE}, sec. 5.2, Fig. 5",
        published="no number",
        target="more than half of δ at the last resid_mid, at the response",
        tables=("toxicity_decomposition",),
        measure=measured_changes.value_vectors_add_up,
        figure="toxicity_decomposition",
    ),
    Claim(
        id=28,
        statement="Scaling seven toxic key vectors by ten undoes DPO",
        source=f"{LEE}, sec. 6, Table 4",
        published=".208 → .458 (base .453) at perplexity 23.30",
        target="at least 90 % of the gap from policy to base at no more than 1.1 times the "
        "policy's perplexity, interval above what other neurons restore",
        tables=("toxicity_unalign",),
        measure=measured_unalign.amplified_keys,
        figure="toxicity_unalign",
    ),
    Claim(
        id=29,
        statement="What the last layers say of toxic tokens is suppressed after DPO",
        source=f"{LEE}, sec. 4.2, Fig. 1",
        published="no number",
        target="interval of ln p policy/base over the last quarter of layers below zero, and below "
        "those of groups of neutral tokens",
        tables=("toxicity_lens",),
        measure=measured_falls.suppressed_tokens,
        figure="toxicity_lens",
    ),
    Claim(
        id=30,
        statement="Toxic neurons explain only a small part of what DPO does",
        source="Yang et al. 2024 (arXiv 2411.06424)",
        published="2.5–24 %",
        target="recovered share above zero with its interval below 24 %, and above those of groups "
        "of as many random neurons",
        tables=("toxicity_patching",),
        measure=measured_unalign.explained_share,
        figure="toxicity_patching",
    ),
)
