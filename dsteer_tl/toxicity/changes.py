"""What training changed inside: tables of claims 25–27 and Figures 4 and 5 in three readings."""

from __future__ import annotations

import pandas as pd

from dsteer_tl.errors import DataError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.toxicity.activations import (
    PromptActivations,
    activation_places,
    change_table,
    matched_neurons,
    mean_activations,
    neuron_table,
)
from dsteer_tl.toxicity.component_reading import continuation_probes, read_components
from dsteer_tl.toxicity.decomposition import Decomposition, decomposition_places
from dsteer_tl.toxicity.offsets import ShiftRows, offset_table, residual_places
from dsteer_tl.toxicity.residual_axes import ResidualRows, shown_places
from dsteer_tl.toxicity.settings import ToxicityConfiguration
from dsteer_tl.toxicity.types import Neurons, StudyTexts
from dsteer_tl.toxicity.value_changes import ValueChanges


def measure_changes(
    base: LensModel,
    policy: LensModel,
    random_weights: LensModel | None,
    texts: StudyTexts,
    attribute: Neurons,
    configuration: ToxicityConfiguration,
    *,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Compare base and policy inside, at the tokens that they write after the prompts.

    The base reads its continuations once to find neurons as active as the attribute's; then all
    models read them, for everything else; and the policy reads its own, for activations on policy.

    Args:
        base: The base.
        policy: The policy.
        random_weights: The base with random weight changes as large as the policy's, the control
            of the offsets; or None.
        texts: Prompts, with the continuations of ``base`` and ``policy``.
        attribute: The neurons whose value vectors are closest to the probe.
        configuration: Batches, bootstrap draws and seed.
        progress: Show progress bars.

    Returns:
        The tables ``toxicity_activations``, ``toxicity_activation_changes``, ``toxicity_offsets``,
        ``toxicity_residuals``, ``toxicity_decomposition`` and ``toxicity_value_changes``.

    Raises:
        DataError: A continuation is missing, or a sequence is longer than the context.
        HookError: What an MLP writes is not m·W_out + b_out.
        ShapeError: Too few prompts, or the neurons are not of this model.
    """
    for model in ("base", "policy"):
        if model not in texts.continuations:
            raise DataError(
                f"changes: found continuations of {sorted(texts.continuations)}, expected base and "
                f"policy: generate those of {model!r}"
            )
    probes = {
        model: continuation_probes(texts.prompts, texts.continuations[model])
        for model in ("base", "policy")
    }
    budget, draws, seed = configuration.token_budget, configuration.draws, configuration.seed
    # These refuse models that they cannot take apart before anything runs.
    decomposition = Decomposition(base, policy, seed=seed)
    value_changes = ValueChanges(base, policy)

    means = mean_activations(base, probes["base"], token_budget=budget, progress=progress)
    groups = (attribute, matched_neurons(means, attribute, seed))
    residuals, activations = residual_places(base.n_layers), activation_places(base.n_layers)
    models, places = {"base": base, "policy": policy}, decomposition_places(base.n_layers)
    read = {"base": places, "policy": places}
    if random_weights is not None:
        models["random_weights"], read["random_weights"] = random_weights, residuals
    shifts = ShiftRows(residuals, [name for name in models if name != "base"])
    shown = ResidualRows(shown_places(base.n_layers))
    active = {
        (group.group, name): PromptActivations(group)
        for group in groups
        for name in ("base", "policy", "on_policy")
    }
    for batch in read_components(
        models, probes["base"], read, token_budget=budget, progress=progress, description="changes"
    ):
        for part in (shifts, shown, decomposition, value_changes):
            part.add(batch)
        for group in groups:
            for name in ("base", "policy"):
                active[group.group, name].add(batch, name)
    for batch in read_components(
        {"policy": policy},
        probes["policy"],
        {"policy": activations},
        token_budget=budget,
        progress=progress,
        description="on policy",
    ):
        for group in groups:
            active[group.group, "on_policy"].add(batch, "policy")

    neurons, changes = [], []
    for group in groups:
        before = active[group.group, "base"].means()
        for kind, name in (("off_policy", "policy"), ("on_policy", "on_policy")):
            after = active[group.group, name].means()
            neurons.append(neuron_table(group, before, after, texts=kind))
            changes.append(change_table(group, before, after, texts=kind, draws=draws, seed=seed))
    return {
        "toxicity_activations": pd.concat(neurons, ignore_index=True),
        "toxicity_activation_changes": pd.concat(changes, ignore_index=True),
        "toxicity_offsets": offset_table(shifts, draws=draws, seed=seed),
        "toxicity_residuals": shown.table(seed=seed),
        "toxicity_decomposition": decomposition.table(draws=draws, seed=seed),
        "toxicity_value_changes": value_changes.table(attribute, seed=seed),
    }
