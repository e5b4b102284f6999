"""The schema that the tables of the stress tests share: who writes them and who draws them."""

from __future__ import annotations

#: Roles of a condition.
MEASURED, CONTROL = "measured", "control"
#: Columns of the tables on prompts and on other runs.
PROMPT_COLUMNS = (
    "test",
    "condition",
    "role",
    "site",
    "position_kind",
    "statistic",
    "value",
    "low",
    "high",
    "n",
)
#: Columns of the tables on trained variants: the same, with the data that were measured.
VARIANT_COLUMNS = (*PROMPT_COLUMNS[:3], "data", *PROMPT_COLUMNS[3:])
