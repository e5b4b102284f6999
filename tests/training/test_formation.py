"""What is read from a model in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from trl.trainer.utils import add_fused_lm_head

from dsteer_tl.preferences import EncodedPair
from dsteer_tl.training.formation import formation_table, record
from tests.models import random_model

PAIRS = [
    EncodedPair((0, 5, 6, 7), (8, 9), (10,)),
    EncodedPair((0, 3), (4, 5, 6, 7, 8), (9, 10, 11)),
    EncodedPair((0, 20, 21, 22, 23, 24), (25,), (26, 27)),
]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "phi"])
def test_record_equals_plain_transformers(architecture: str) -> None:
    """Log-probabilities are of the model's own logits, soft-capped in Gemma 2."""
    model = random_model(architecture).train()
    found = record(model, PAIRS)
    assert model.training
    model.eval()
    for index, pair in enumerate(PAIRS):
        for name in ("chosen", "rejected"):
            response = getattr(pair, f"{name}_ids")
            ids = torch.tensor([[*pair.prompt_ids, *response]])
            with torch.no_grad():
                output = model(ids, output_hidden_states=True)
            start = len(pair.prompt_ids) - 1
            steps = output.logits[0, start:-1].log_softmax(-1)
            expected = steps.gather(-1, torch.tensor(response)[:, None]).sum()
            torch.testing.assert_close(
                getattr(found, f"{name}_logp")[index], expected, rtol=0, atol=1e-4
            )
        h = output.hidden_states[-1][0, start]
        torch.testing.assert_close(found.h[index], h, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "phi"])
def test_one_pass_through_the_root_reads_the_same(architecture: str) -> None:
    """What sharded models are read by, on a whole one."""
    model = random_model(architecture)
    expected = record(model, PAIRS)
    add_fused_lm_head(model)
    found = record(model.train(), PAIRS, sharded=True)
    assert model.training and not model.base_model._forward_hooks
    for name in ("h", "chosen_logp", "rejected_logp"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-4)


def test_formation_table_in_closed_form(tmp_path: Path) -> None:
    """Shifts of step 1 are 60° apart, those of step 2 parallel."""
    base = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    angle = torch.tensor([[1.0, 0.0, 0.0], [0.5, 3**0.5 / 2, 0.0]])
    parallel = torch.tensor([[2.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    for step, shift in enumerate((torch.zeros(2, 3), angle, parallel)):
        save_file(
            {
                "h": base + shift,
                "chosen_logp": torch.tensor([-1.0, -3.0]) - step,
                "rejected_logp": torch.tensor([-2.0, -6.0]),
            },
            tmp_path / f"step-{step:06d}.safetensors",
        )
    table = formation_table(tmp_path).set_index("step")
    assert table.loc[0, "v_norm"] == 0 and np.isnan(table.loc[0, "sigma_ratio"])
    assert table.loc[1, "cos_to_final"] == pytest.approx(0.75)
    assert table.loc[1, "cos_sd"] == pytest.approx(0.25)
    # Gram matrix [[1, ½], [½, 1]]: eigenvalues 3/2 and 1/2.
    assert table.loc[1, "sigma_ratio"] == pytest.approx(3**-0.5)
    assert table.loc[1, "v_norm"] == pytest.approx(3**0.5 / 2)
    assert table.loc[2, "cos_to_final"] == pytest.approx(1)
    assert table.loc[2, "cos_sd"] == pytest.approx(0, abs=1e-12)
    assert table.loc[2, "sigma_ratio"] == pytest.approx(0, abs=1e-7)
    assert table.loc[2, "v_norm"] == pytest.approx(3)
    assert table["chosen_logp"].tolist() == [-2, -3, -4]
    assert table["margin"].tolist() == [2, 1, 0]
