"""Every number of ``shifts.parquet`` once more: plain transformers in float64, one text at a time.

Nothing here comes from the package but the runs under test. Hooks are PyTorch's own, on the modules
of the checkpoint; statistics are written out in numpy.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import runs

Residuals = dict[str, np.ndarray]


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path).double().eval()


def residuals(model: Any, ids: list[int]) -> Residuals:
    """Output of every decoder layer, and what goes into the unembedding."""
    kept: Residuals = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, __, output, name=f"resid_post.{index}": kept.__setitem__(
                name, (output[0] if isinstance(output, tuple) else output)[0].numpy()
            )
        )
        for index, layer in enumerate(model.model.layers)
    ]
    hooks.append(
        model.lm_head.register_forward_pre_hook(
            lambda _, inputs: kept.__setitem__("h", inputs[0][0].numpy())
        )
    )
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return kept


def token_places(tokenizer: Any, pair: dict[str, str]) -> tuple[list[int], dict[str, list[int]]]:
    """Ids of prompt and chosen response, and the positions of each kind."""
    prompt = tokenizer(pair["prompt"])["input_ids"]
    chosen, rejected = (
        tokenizer(pair[side], add_special_tokens=False)["input_ids"]
        for side in ("chosen", "rejected")
    )
    common = 0
    while chosen[common] == rejected[common]:
        common += 1
    response = list(range(len(prompt), len(prompt) + len(chosen) - 1))
    if len(response) > 16:
        response = [response[round(i)] for i in np.linspace(0, len(response) - 1, 16)]
    places = {
        "last_prompt": [len(prompt) - 1],
        "divergence": [len(prompt) + common - 1],
        "response": response,
    }
    return prompt + chosen, places


def entropy(rows: np.ndarray) -> float:
    squares = np.linalg.svd(rows, compute_uv=False) ** 2
    share = squares[squares > 0] / squares.sum()
    return float(-(share * np.log(share)).sum())


def statistics(base: np.ndarray, policy: np.ndarray, prompts: np.ndarray) -> dict[str, float]:
    shifts = policy - base
    lengths = np.linalg.norm(shifts, axis=1)
    v = shifts.mean(axis=0)
    cosines = shifts @ v / lengths / np.linalg.norm(v)
    left_out = []
    for row, prompt in zip(shifts, prompts, strict=True):
        others = shifts[prompts != prompt].sum(axis=0)
        left_out.append(row @ others / np.linalg.norm(row) / np.linalg.norm(others))
    _, sigma, directions = np.linalg.svd(shifts, full_matrices=False)
    _, centred, centred_directions = np.linalg.svd(shifts - v, full_matrices=False)
    return {
        "n": len(shifts),
        "cos_mean": cosines.mean(),
        "cos_sd": cosines.std(ddof=1),
        "cos_loo_mean": float(np.mean(left_out)),
        "sigma_ratio": sigma[1] / sigma[0],
        "sigma_ratio_centred": centred[1] / centred[0],
        "u1_v_cos": abs(directions[0] @ v) / np.linalg.norm(v),
        "u1_v_cos_centred": abs(centred_directions[0] @ v) / np.linalg.norm(v),
        "v_norm": np.linalg.norm(v),
        "relative_norm": (lengths / np.linalg.norm(base, axis=1)).mean(),
        "pc1_share_centred": centred[0] ** 2 / (centred**2).sum(),
        "effective_rank": np.exp(entropy(shifts)),
        "entropy_shift": entropy(shifts),
        "entropy_base": entropy(base),
        "entropy_policy": entropy(policy),
    }


@pytest.fixture(scope="module")
def reference(stories260k: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Statistics by site and position kind over the pairs of `tests.runs`."""
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    models = {"base": load(stories260k), "policy": load(runs.perturbed_policy(stories260k))}
    rows: dict[tuple[str, str, str], list[np.ndarray]] = {}
    prompts: dict[str, list[int]] = {}
    for number, pair in enumerate(runs.pairs()):
        ids, places = token_places(tokenizer, pair)
        for kind, positions in places.items():
            prompts.setdefault(kind, []).extend([number] * len(positions))
        for name, model in models.items():
            for site, states in residuals(model, ids).items():
                for kind, positions in places.items():
                    rows.setdefault((site, kind, name), []).extend(states[p] for p in positions)
    return {
        (site, kind): statistics(
            np.array(rows[site, kind, "base"]),
            np.array(rows[site, kind, "policy"]),
            np.array(prompts[kind]),
        )
        for site, kind, name in rows
        if name == "base"
    }


def compare(table: pd.DataFrame, expected: dict[tuple[str, str], dict[str, float]]) -> None:
    assert len(table) == len(expected)
    for row in table.to_dict("records"):
        wanted = expected[row.pop("site"), row.pop("position_kind")]
        assert row.keys() == wanted.keys()
        for column, value in wanted.items():
            # Near zero, as the cosine of two unrelated directions, rounding is not relative.
            assert row[column] == pytest.approx(value, rel=1e-3, abs=1e-5), column


def test_pairs(stories260k: Path, reference: dict[tuple[str, str], dict[str, float]]) -> None:
    table = pd.read_parquet(runs.pair_run(stories260k) / "tables" / "shifts.parquet")
    compare(table, reference)


def test_prompts(stories260k: Path, reference: dict[tuple[str, str], dict[str, float]]) -> None:
    # The pairs have the same prompts, and a response cannot change what came before it.
    table = pd.read_parquet(runs.prompt_run(stories260k) / "tables" / "shifts.parquet")
    compare(table, {key: value for key, value in reference.items() if key[1] == "last_prompt"})


def test_positions_are_not_all_the_same(
    reference: dict[tuple[str, str], dict[str, float]],
) -> None:
    """The comparison above would not see a mix-up of kinds if they gave the same numbers."""
    norms = [reference["h", kind]["v_norm"] for kind in ("last_prompt", "divergence", "response")]
    assert min(abs(a - b) for a, b in pairwise(norms)) > 0.01 * norms[0]
