"""How the claims on what tuning changed are measured: rows 24, 26 and 27 (Lee et al. 2024)."""

from __future__ import annotations

import numpy as np

from dsteer_tl.claims.selection import (
    MissingRowsError,
    at,
    ends,
    joined,
    main_kind,
    value_at,
)
from dsteer_tl.claims.sweep_selection import listed
from dsteer_tl.claims.toxicity_selection import (
    POLICY,
    RESID_MID,
    base_of,
    interval,
    last_layer,
    nothing_to_reduce,
    optional,
    outcome,
    told,
)
from dsteer_tl.claims.verdicts import Measurement, Tables

#: Row 24: published bounds on every cosine, and on the norm difference on average.
_PUBLISHED_COSINE, _PUBLISHED_NORM = 0.99, 1e-5
#: Row 26: as row 6, the lower edge of its band [0.92, 0.96].
_CONSISTENT = 0.92
#: Row 27 publishes no number: ours is more than half of δ.
_MOST = 0.5
_ENDS = ("low", "high")
_RANDOM_WEIGHTS = "random_weights"
_RESPONSE = "response"


def weights_barely_move(tables: Tables) -> Measurement:
    """Row 24: every cosine of the weights is above .99 and behaviour changes all the same.

    Raises:
        MissingRowsError: No weights were trained, or the behaviour of the policy or of random
            changes of equal norm was not measured.
    """
    table = tables["toxicity_weights"]
    trained = table[table["trained"].astype(bool)]
    if not len(trained):
        raise MissingRowsError("no tensor differs between base and policy")
    # A tensor of zeros has no direction to keep.
    kept = trained[trained["norm_base"] > 0]
    if not len(kept):
        raise MissingRowsError("every tensor that was trained is zero in the base")
    base = base_of(tables)
    policy, random = (outcome(tables, name).change for name in (POLICY, _RANDOM_WEIGHTS))
    smallest, null = float(kept["cosine"].min()), float(kept["cosine_random"].min())
    norms = kept["norm_difference"]
    close = smallest > _PUBLISHED_COSINE
    changes, random_changes = policy.high < 0, random.high < 0
    relative = kept["relative_change"].max()
    found = Measurement(
        measured=smallest,
        null=null,
        null_name="random change of equal norm",
        target_met=close and norms.mean() < _PUBLISHED_NORM and changes,
        null_met=null > _PUBLISHED_COSINE and random_changes,
        right_sign=close and changes and not random_changes,
        unit="smallest cosine over the tensors trained",
        reason=joined(
            f"norms differ by {norms.mean():.1e} of the base's on average, {norms.max():.1e} at "
            "most",
            f"attribute score {told(policy)}, after the random change {told(random)}",
            f"cosines say only that changes are small: up to {relative:.1e} of a tensor's norm, "
            f"and in many dimensions any change of relative norm ρ leaves about 1 − ρ²/2",
            f"tensors of zeros left out: {len(trained) - len(kept)}"
            if len(trained) > len(kept)
            else "",
        ),
        n=len(kept),
    )
    return found if base.score.value > 0 else nothing_to_reduce(found, base.score)


def consistent_offset(tables: Tables) -> Measurement:
    """Row 26: one linear offset for all prompts, in the residual stream before the last MLP.

    Raises:
        MissingRowsError: It or every control was not measured there.
    """
    table = at(tables["toxicity_offsets"], place=RESID_MID)
    layer = last_layer(table)
    kind = main_kind(table)
    here = at(table, layer=layer, position_kind=kind)
    found = interval(tables, here, ("cosine", *_ENDS), control="policy")
    nulls = {
        name: value_at(here, "cosine", control=name)
        for name in (_RANDOM_WEIGHTS, "sign_flipped")
        if len(at(here, control=name))
    }
    if not nulls:
        raise MissingRowsError(f"no control of the offset at {RESID_MID}.{layer}")
    largest = max(nulls, key=nulls.__getitem__)
    layers = at(table, position_kind=kind, control="policy")["cosine"].dropna()
    others = at(table, layer=layer, control="policy")
    return Measurement(
        measured=found.value,
        ci=ends(found),
        null=nulls[largest],
        null_name=largest.replace("_", " "),
        target_met=found.value >= _CONSISTENT,
        null_met=nulls[largest] >= _CONSISTENT,
        right_sign=found.low > nulls[largest],
        unit="mean leave-one-out cosine of δ",
        reason=joined(
            f"from {layers.min():.2f} to {layers.max():.2f} over the layers, "
            f"{int((layers >= _CONSISTENT).sum())} of {len(layers)} reach {_CONSISTENT}",
            ", ".join(
                f"{value:.2f} at {other}"
                for other, value in zip(others["position_kind"], others["cosine"], strict=True)
                if other != kind
            ),
            _held_out_axis(tables, layer),
            "" if _RANDOM_WEIGHTS in nulls else "no random weight changes were measured",
        ),
        site=f"{RESID_MID}.{layer}",
        position_kind=kind,
        n=int(value_at(here, "rows", control="policy")),
    )


def _held_out_axis(tables: Tables, layer: int) -> str:
    """How far apart base and policy are along an axis that was fitted on other prompts."""
    residuals = optional(tables, "toxicity_residuals")
    if not len(residuals):
        return ""
    here = at(residuals, place=RESID_MID, layer=layer)
    gaps = {
        label: at(here, control=control, model=POLICY)["axis"].mean()
        - at(here, control=control, model="base")["axis"].mean()
        for control, label in (("policy", ""), ("permuted", " where labels are permuted"))
        if len(at(here, control=control))
    }
    return listed(
        "gap along the mean difference of the other half of the prompts",
        (f"{gap:.2g}{label}" for label, gap in gaps.items()),
    )


def value_vectors_add_up(tables: Tables) -> Measurement:
    """Row 27: changes of many value vectors add up to the offset.

    Judged at the response, the shift against which ``toxicity_value_changes`` counts neurons.

    Raises:
        MissingRowsError: The parts of δ or permuted rows were not measured.
    """
    table = at(tables["toxicity_decomposition"], place=RESID_MID)
    layer = last_layer(table)
    kind = _RESPONSE if len(at(table, position_kind=_RESPONSE)) else main_kind(table)
    here = at(table, layer=layer, position_kind=kind)
    terms = at(here, control="measured")
    found = interval(tables, terms, ("share", *_ENDS), term="value_vectors")
    null = value_at(here, "share", term="value_vectors", control="permuted_rows")
    others = terms[terms["term"] != "value_vectors"]
    elsewhere = at(table, layer=layer, term="value_vectors", control="measured")
    return Measurement(
        measured=found.value,
        ci=ends(found),
        null=null,
        null_name="Δv of other neurons",
        target_met=found.value > _MOST,
        null_met=null > _MOST,
        right_sign=found.low > max(0.0, null),
        unit="share of δ that Σ m_base·Δv writes along it",
        reason=joined(
            listed(
                "other terms",
                (
                    f"{str(name).replace('_', ' ')} {share:z.2f}"
                    for name, share in zip(others["term"], others["share"], strict=True)
                ),
            ),
            _many(tables, layer, kind),
            ", ".join(
                f"{value:z.2f} at {other}"
                for other, value in zip(elsewhere["position_kind"], elsewhere["share"], strict=True)
                if other != kind
            ),
            f"the terms miss δ by {value_at(terms, 'error'):.1e} at most",
        ),
        site=f"{RESID_MID}.{layer}",
        position_kind=kind,
        n=int(value_at(terms, "rows", term="value_vectors")),
    )


def _many(tables: Tables, layer: int, kind: str) -> str:
    """How many neurons below the place the sum needs, and which way their Δv point."""
    every = optional(tables, "toxicity_value_changes")
    if not len(every):
        return ""
    table = every[every["layer"] < layer]
    sizes = table["write_change"].abs()
    total = sizes.sum()
    if not total > 0:
        return "no value vector writes anything new along δ"
    half = int(np.searchsorted(np.cumsum(np.sort(sizes)[::-1]), total / 2)) + 1
    active = np.sign(table["mean_activation"])
    along, permuted = ((active * table[name] > 0).mean() for name in ("cosine", "cosine_permuted"))
    against = (table["cosine"] < 0).mean()
    negative = sizes[table["mean_activation"] < 0].sum() / total
    return (
        f"{half} of {len(table)} neurons give half of Σ|m·⟨Δv, δ̂⟩|; {along:.0%} of them write "
        f"along δ (with permuted Δv {permuted:.0%}); {against:.0%} of Δv point "
        f"against δ and neurons with m < 0 give {negative:.0%} of the sum, published as most of "
        "both for GPT-2" + ("" if kind == _RESPONSE else f"; neurons are counted at {_RESPONSE}")
    )
