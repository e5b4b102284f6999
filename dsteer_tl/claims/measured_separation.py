"""How the claim on separated responses is measured: row 19 of D-STEER (AQI)."""

from __future__ import annotations

import pandas as pd

from dsteer_tl.claims.selection import at, joined, value_at
from dsteer_tl.claims.verdicts import Measurement, Tables
from dsteer_tl.sites import FINAL, depth_order

#: Row 19 publishes no number: ours is a change that exchanged labels give in 5 % of draws.
_LEVEL = 0.05
_CHANGE = "_change"


def alignment_quality(tables: Tables) -> Measurement:
    """Row 19: the policy separates chosen from rejected responses better than the base.

    The statistic is CHI of the policy over CHI of the base at h. Exchanged labels test the change
    against models that separate nothing; where both separate, the interval over prompts is the
    stricter of the two, so the target asks for both. XB says the same by an identity.
    """
    table = tables["separation"]
    here = at(table, site=FINAL)
    policy = at(here, model="change")
    ratio, low, high = (
        value_at(policy, column, index="chi_ratio") for column in ("value", "low", "high")
    )
    p = value_at(policy, "p", index="chi_difference")
    others = at(here, index="chi_ratio")
    others = others[others["model"].str.endswith(_CHANGE)]
    controls = others.sort_values("value", ascending=False, kind="stable").head(1)
    if len(controls):
        name = str(controls["model"].to_numpy()[0])
        null, null_name = value_at(controls, "value"), name.removesuffix(_CHANGE).replace("_", " ")
        null_p = value_at(here, "p", model=name, index="chi_difference")
        # A control may be certain and tiny: it counts if it reaches the policy's interval.
        null_met = (
            value_at(controls, "low") > 1 and null_p < _LEVEL and value_at(controls, "high") >= low
        )
    else:
        null = value_at(policy, "null_high", index="chi_ratio")
        null_name, null_met = "95 % of exchanged labels", False
    base, after = (at(here, model=name, index="chi") for name in ("base", "policy"))
    controlled = at(policy, index="chi_ratio_without_length")
    return Measurement(
        measured=ratio,
        ci=(low, high),
        null=null,
        null_name=null_name,
        target_met=low > 1 and p < _LEVEL,
        null_met=null_met,
        right_sign=ratio > null and low > 1,
        unit="Calinski–Harabasz index, policy / base",
        reason=joined(
            f"CHI {value_at(base, 'value'):.2f} in the base (p {value_at(base, 'p'):.2g}) and "
            f"{value_at(after, 'value'):.2f} in the policy (p {value_at(after, 'p'):.2g}), "
            f"{value_at(base, 'null_mean'):.2f} with exchanged labels; p of the change {p:.2g}",
            f"without the effect of length {value_at(controlled, 'value'):.2f} "
            f"[{value_at(controlled, 'low'):.2f}, {value_at(controlled, 'high'):.2f}]",
            _elsewhere(at(table, model="change", index="chi_ratio")),
            "Xie–Beni is the same index: CHI·XB = (n − 2)/4 to "
            f"{value_at(after, 'identity_error'):.0e}",
        ),
        site=FINAL,
        position_kind="response",
        n=int(value_at(after, "n")),
    )


def _elsewhere(ratios: pd.DataFrame) -> str:
    """The ratio at the other sites, with its interval, deepest first."""
    sites = sorted({str(site) for site in ratios["site"]} - {FINAL}, key=depth_order, reverse=True)
    found = []
    for site in sites:
        ratio, low, high = (
            value_at(ratios, column, site=site) for column in ("value", "low", "high")
        )
        found.append(f"{ratio:.2f} [{low:.2f}, {high:.2f}] at {site}")
    return ", ".join(found)
