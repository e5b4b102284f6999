"""Where base, policy and steered states lie: table clouds (Figure 1c)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dsteer_tl.capture import ShiftSet
from dsteer_tl.cosines import mean_shift
from dsteer_tl.projection3d import state_clouds
from dsteer_tl.sites import FINAL


def cloud_table(shift_set: ShiftSet) -> pd.DataFrame:
    """The table ``clouds``: h of base, policy, base + v* and policy − v* in one PCA basis.

    The basis is fitted on the base alone: one fitted on both would put the mean difference on its
    first axis whatever the models did.
    """
    kind = "last_prompt" if "last_prompt" in shift_set.kinds else shift_set.kinds[0]
    base, policy = (
        shift_set.residuals(name, FINAL, kind).astype(np.float64) for name in ("base", "policy")
    )
    found = state_clouds(base, policy, mean_shift(policy - base))
    prompts = shift_set.prompts(kind)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "state": state,
                    "prompt": prompts,
                    "pc1": points[:, 0],
                    "pc2": points[:, 1],
                    "pc3": points[:, 2],
                }
            )
            for state, points in (
                ("base", found.base),
                ("policy", found.policy),
                ("interpolated", found.interpolated),
                ("inverted", found.inverted),
            )
        ],
        ignore_index=True,
    )
