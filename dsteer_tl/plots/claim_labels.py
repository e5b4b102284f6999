"""Names of claims on figures: what each row of the ledger is about, in a few words."""

from __future__ import annotations

from dsteer_tl.claims import LEDGER
from dsteer_tl.plots.labels import escape_text

_STATEMENTS = {claim.id: claim.statement for claim in LEDGER}
#: What a claim is about, short enough for the margin; others show how their statement begins.
_SHORT = {
    1: "log-odds linear in h",
    2: "DPO gradient along −v",
    3: "one preference direction",
    4: "⟨h, v⟩ always rises",
    5: "v* is e_w − e_l",
    6: "shifts parallel to v*",
    7: "update of rank one",
    8: "u₁ is v*",
    9: "entropy collapses",
    10: "change in the last layers",
    11: "metrics rise with λ",
    12: "BLEU, ROUGE-L fall",
    13: "policy − v* is the base",
    14: "steering shift",
    15: "collapse at large λ",
    16: "removing is non-monotone",
    17: "base refuses more often",
    18: "shifts lie on u₁",
    19: "policy separates better",
    20: "linear probe",
    21: "value vectors promote",
    22: "subtracting reduces",
    23: "DPO reduces toxicity",
    24: "weights barely move",
    25: "activations drop",
    26: "one linear offset δ",
    27: "value vectors add up to δ",
    28: "keys ×10 undo DPO",
    29: "toxic tokens suppressed",
    30: "neurons explain little",
    31: "embeddings do not matter",
    32: "rank follows preferences",
    33: "same in other models",
    34: "encodings bypass",
    35: "drift over turns",
    36: "harmful is deflected",
}
#: Characters of a label that fit the left margin.
_LONGEST = 29


def claim_label(number: int) -> str:
    """What a claim is about and its number, escaped, short enough for a margin."""
    text = f"{_SHORT.get(number, _STATEMENTS.get(number, ''))}  {number}".strip()
    if len(text) > _LONGEST:
        kept = _LONGEST - len(f"…  {number}")
        text = f"{text[:kept].rstrip()}…  {number}"
    return escape_text(text)


def number_ranges(numbers: list[int]) -> str:
    """Ascending numbers as text, runs of three or more as a range."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = (f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return ", ".join(parts)
