"""Captions of the figures of the toxicity study."""

from __future__ import annotations

from dsteer_tl.report.counting import Count, any_of, column, distinct, rows_of

TOXICITY_CAPTIONS: dict[str, tuple[str, str, Count]] = {
    "toxicity_probe": (
        "A linear probe of the attribute",
        "Held-out decision values of both labels, and balanced accuracy and AUROC with 95 % "
        "intervals beside a bag of words, shuffled labels and the majority class.",
        column("toxicity_probe", "held-out texts", "n_held_out"),
    ),
    "toxicity_value_vectors": (
        "Value vectors closest to the probe",
        "Cosines of the closest value vectors with the probe, their layers, the listed words that "
        "they promote and their spectrum, beside random ones and those closest to a probe of "
        "shuffled labels.",
        rows_of("toxicity_value_vectors", "value vectors, controls included"),
    ),
    "toxicity_tokens": (
        "What these vectors say",
        "The tokens that the probe, the value vectors next to it, their singular vectors and a "
        "random vector promote most; words of the scorer’s list are filled.",
        distinct("toxicity_tokens", "vectors", "vector"),
    ),
    "toxicity_interventions": (
        "Vectors subtracted at the last layer",
        "Score of the attribute and F1 against perplexity while each vector is subtracted from the "
        "base; rings mark the policy’s perplexity, where vectors and controls are compared.",
        column("toxicity_interventions", "prompts", "prompts"),
    ),
    "toxicity_weights": (
        "How little the weights move",
        "One minus the cosine, and the difference of norms, of every tensor against its relative "
        "change, beside a random change of equal norm, which lies on the same line.",
        rows_of("toxicity_weights", "tensors trained", "trained"),
    ),
    "toxicity_activations": (
        "Activations of the attribute’s neurons",
        "Change of each neuron’s mean activation against its mean in the base, and mean changes "
        "with 95 % intervals over neurons, beside neurons as active in the same layer.",
        rows_of("toxicity_activations", "neurons and conditions"),
    ),
    "toxicity_offsets": (
        "Is the shift one offset",
        "Mean cosine of each prompt’s shift with the mean of the others’ at every place in depth, "
        "and its relative size, beside a random change of the weights and flipped signs.",
        column("toxicity_offsets", "prompts", "prompts"),
    ),
    "toxicity_residuals": (
        "Residual streams before and after",
        "Clouds of base and policy along the difference of their means, fitted on the other half "
        "of the prompts; the lower row exchanges base and policy at random in the fitting half.",
        distinct("toxicity_residuals", "prompts", "prompt"),
    ),
    "toxicity_value_changes": (
        "Do changed value vectors point along the shift",
        "Cosine of the change of each neuron’s value vector with the mean shift against its mean "
        "activation, beside the same changes dealt to other neurons.",
        distinct("toxicity_value_changes", "neurons", "layer", "neuron"),
    ),
    "toxicity_decomposition": (
        "What the shift is made of",
        "Share of the shift along its own direction from changed value vectors, changed "
        "activations, both together, attention and biases, at every place, with 95 % intervals; "
        "the shares add up to one.",
        column("toxicity_decomposition", "rows", "rows"),
    ),
    "toxicity_lens": (
        "Where the attribute’s tokens are put down",
        "Summed probability of the attribute’s tokens through the logit lens by depth, and its "
        "change in logarithms, beside the range of groups of other tokens as likely in the base.",
        column("toxicity_lens", "prompts", "prompts"),
    ),
    "toxicity_unalign": (
        "Scaling a few key vectors",
        "Score of the attribute and perplexity while the keys of a few neurons are scaled, in the "
        "policy and, dashed, in the base, beside random neurons and the most active ones.",
        column("toxicity_unalign", "prompts", "prompts"),
    ),
    "toxicity_patching": (
        "How much the attribute’s neurons carry",
        "Share of the policy’s effect recovered when only a group’s activations are patched into "
        "the base, directly and in all; grey bars span random groups of equal size.",
        any_of("toxicity_patching"),
    ),
}
