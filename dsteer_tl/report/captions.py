"""Title and caption of every figure, and the groups that the report shows them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsteer_tl.report.captions_of_stress import STRESS_CAPTIONS
from dsteer_tl.report.captions_of_toxicity import TOXICITY_CAPTIONS
from dsteer_tl.report.counting import (
    Count,
    any_of,
    by_position,
    column,
    distinct,
    gradients_at,
    named,
    patched_margins,
    rows_of,
    separated_responses,
    sweep_points,
    together,
    weights_and_shifts,
)

#: Groups of figures in the order of the page, with their headings.
GROUPS = {
    "paper": "Figures of D-STEER",
    "shift": "How much of the shift is one vector",
    "origin": "Where the shift is written",
    "training": "How it forms in training",
    "behaviour": "What it does to text",
    "toxicity": "The study of Lee et al. 2024",
    "robustness": "How far the verdicts hold",
    "other": "Other figures",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What a figure shows.

    Attributes:
        group: Key of `GROUPS`.
        title: A few words.
        text: One to three plain sentences, without numbers of a run.
        count: Gives n from the tables of the run.
    """

    group: str
    title: str
    text: str
    count: Count


def _captions(group: str, rows: Mapping[str, tuple[str, str, Count]]) -> dict[str, Caption]:
    return {
        name: Caption(group=group, title=title, text=text, count=count)
        for name, (title, text, count) in rows.items()
    }


#: Caption of each figure by file name, in the order of the page.
CAPTIONS: dict[str, Caption] = {
    **_captions(
        "paper",
        {
            "figure_1a_logit_geometry": (
                "Figure 1a: one pair’s vectors",
                "One pair’s final hidden state before and after tuning, the unembedding vectors of "
                "its first differing tokens, and the projection on their difference v; beside it "
                "⟨h, v⟩ of all held-out pairs in base and policy, for their own v and for a random "
                "one.",
                distinct("projections", "pairs", "pair"),
            ),
            "figure_1a_logit_lens": (
                "Figure 1a by layer",
                "Projection of the residual stream on v = e_w − e_l at every site, before and "
                "after tuning, and the share of pairs in which it rises; a random v of equal norm "
                "is the null.",
                column("logit_lens", "pairs"),
            ),
            "figure_1b_gradient_field": (
                "Figure 1b: the gradient of the DPO loss",
                "Exact gradients on a lattice around h, coloured by their cosine with −v, at the "
                "divergence position, where they equal −v by algebra, and at later positions.",
                gradients_at("h"),
            ),
            "figure_1c_clouds": (
                "Figure 1c: clouds of hidden states",
                "Hidden states of base, policy, base + v* and policy − v* in the first three "
                "principal components, which are fitted on the base alone. Arrows join the means.",
                distinct("clouds", "prompts", "prompt"),
            ),
            "figure_2a": (
                "Figure 2a: metrics over λ, base + λv",
                "Each metric of the text that could be measured, over λ from −1 to 1 on the base, "
                "with 95 % bands; dashed are the controls, dotted the unsteered base and policy.",
                sweep_points(suite="held_out"),
            ),
            "figure_2b": (
                "Figure 2b: metrics over λ, policy − λv",
                "The same metrics while the vector is taken out of the policy, with 95 % bands, "
                "controls and the unsteered models.",
                sweep_points(suite="held_out"),
            ),
            "figure_3_cosines": (
                "Figure 3: cosine of each shift with v*",
                "Cosine of every shift with the mean of the other prompts’ shifts at h; the "
                "published band is shaded, and the distributions of the nulls lie behind.",
                distinct("cosines", "prompts", "prompt"),
            ),
            "figure_4a_entropy": (
                "Figure 4a: spectral entropy by layer",
                "Entropy of the spectrum of hidden states of base and policy and of the shifts, "
                "with 95 % intervals; shaded is where the policy’s lies below the base’s with the "
                "whole interval. The null is a random change of the weights of equal norm.",
                by_position("shifts", "last_prompt"),
            ),
            "figure_4b_singular_values": (
                "Figure 4b: largest singular values by layer",
                "The five largest singular values of base, policy and shifts at every site, on one "
                "logarithmic colour axis.",
                by_position("shifts", "last_prompt"),
            ),
        },
    ),
    **_captions(
        "shift",
        {
            "sigma_ratio": (
                "σ₂/σ₁ of the shifts by layer",
                "Ratio of the two largest singular values of the shifts, uncentred and after their "
                "mean is taken away; thin dashes are the nulls. A dominant mean alone makes the "
                "uncentred ratio small.",
                by_position("shifts"),
            ),
            "mass": (
                "Share of each shift on the singular directions",
                "Mean share of ‖δ‖² on each singular direction, uncentred above and centred below, "
                "with 95 % intervals, beside Gaussian rows of the same mean and variance.",
                by_position("shifts"),
            ),
            "kl_recovery": (
                "Share of the KL divergence that v* recovers",
                "Share of the divergence between policy and base that adding λv* to the base, or "
                "taking it from the policy, removes: 1 is all, below 0 is worse than nothing. "
                "Dashed are the controls; vectors are fitted on the other half of the prompts.",
                by_position("kl_recovery", site="h"),
            ),
            "rank_recovery": (
                "How many directions it takes",
                "Share of the divergence recovered when only the first k directions of the shifts "
                "are moved, with and without the mean first, beside a random basis.",
                by_position("rank_recovery", site="h"),
            ),
            "tokens": (
                "Tokens that v* promotes and suppresses",
                "Tokens whose logits v* raises and lowers most at λ = 1, beside those of a random "
                "vector of equal norm.",
                rows_of("tokens", "tokens listed"),
            ),
            "token_shifts": (
                "Where in a response the shift lies along v*",
                "How much of the shift at each response token lies along v*, over the place of the "
                "token in the response, beside its null.",
                any_of("token_shifts", "tokens"),
            ),
            "separation": (
                "How far apart chosen and rejected lie",
                "Alignment quality index (Calinski–Harabasz): how far apart the mean states of "
                "chosen and rejected responses lie in the base, in the policy and after a random "
                "change of the weights, beside exchanged labels; and the change over the base.",
                separated_responses,
            ),
        },
    ),
    **_captions(
        "origin",
        {
            "localisation": (
                "Which layers carry the change",
                "Size of the shift relative to the hidden state at every site, and below it the "
                "share of the divergence recovered when the policy’s state is patched into the "
                "base at that site alone; a random change of equal norm is the null. This replaces "
                "the whole residual stream at one layer while the layers above it stay the "
                "base’s, so that shares need not agree with those of patched components.",
                together(
                    named("sizes", by_position("shifts")),
                    named("patching", by_position("patching")),
                ),
            ),
            "contributions": (
                "Who writes v*",
                "Share of the shift along v* that each attention head’s, attention layer’s and "
                "MLP’s change has written. The shares add up to the whole.",
                by_position("contributions", "last_prompt"),
            ),
            "component_patching": (
                "Which components cause the change",
                "Share of the effect recovered when the policy’s output of one component is "
                "patched into the base, and when components are patched one after another. This "
                "replaces what components write in the policy from a layer up, which already "
                "answers to the policy’s early layers, so that shares need not agree with those of "
                "one patched residual stream.",
                together(
                    by_position("component_patching", "response", effect="kl", positions="all"),
                    named("margin", patched_margins),
                ),
            ),
            "margin_ledger": (
                "What the change of the margin is made of",
                "Exact split of the change of the margin log p(chosen) − log p(rejected) into the "
                "shift along v*, the shift off v*, the scale of the norm and the readout.",
                any_of("margin_ledger", "pairs"),
            ),
            "weight_spectra": (
                "Rank of the weights’ change beside rank of the shift",
                "Singular values of the change of each weight matrix beside those of the shifts: a "
                "change of many ranks in the weights may leave a shift of few.",
                weights_and_shifts,
            ),
        },
    ),
    **_captions(
        "training",
        {
            "formation": (
                "How the vector forms",
                "Cosine of the shift so far with the final v*, σ₂/σ₁, length and log-probabilities "
                "on fixed probe pairs over the steps of training.",
                distinct("formation", "steps recorded", "step"),
            ),
            "training_curve": (
                "The trainer’s log",
                "Loss, implicit rewards and share of pairs ranked right over the steps.",
                distinct("training", "steps logged", "step"),
            ),
        },
    ),
    **_captions(
        "behaviour",
        {
            "dose_response": (
                "Dose and response",
                "Spearman’s ρ of each metric with λ from −1 to 1 in base + λv, for v* and its "
                "controls. ρ is no size: a tiny change may be strictly monotone.",
                sweep_points(suite="held_out"),
            ),
            "collapse": (
                "Collapse at large λ",
                "Share of repeated 4-grams over all outputs, broken and empty ones too, and below "
                "it perplexity or distinct 2-grams, in both directions.",
                sweep_points("repeated_4grams", "base_perplexity", "distinct_2", suite="held_out"),
            ),
            "refusal": (
                "Refusals over λ",
                "How often the steered base refuses, one column a suite, and below it how long the "
                "refusals alone are.",
                sweep_points("refusal"),
            ),
        },
    ),
    **_captions("toxicity", TOXICITY_CAPTIONS),
    **_captions("robustness", STRESS_CAPTIONS),
}
