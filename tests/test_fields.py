from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dsteer_tl.errors import DataError, HookError
from dsteer_tl.fields import site_gradients
from dsteer_tl.gradients import descent_cosines
from dsteer_tl.lens_model import Edit, LensModel, pad
from dsteer_tl.preferences import EncodedPair, divergence_position
from tests.tiny_pairs import encoded_pairs, tiny_pair

BETA = 0.7
# Pairs of one prompt and both responses; the first diverges after two common tokens.
SHARED_OPENING, AT_ONCE = encoded_pairs()[:2]


def log_probability(
    model: LensModel, item: EncodedPair, response: tuple[int, ...], edits: list[Edit]
) -> float:
    batch = pad([(*item.prompt_ids, *response)])
    with torch.no_grad(), model.hooks(edits):
        logits = model.forward(batch.ids, batch.mask)[0].double().log_softmax(-1)
    start = len(item.prompt_ids) - 1
    return sum(float(logits[start + i, token]) for i, token in enumerate(response))


def nudge(site: str, position: int, step: Tensor) -> Edit:
    def function(x: Tensor) -> Tensor:
        moved = x.clone()
        moved[:, position] += step
        return moved

    return Edit(site, function)


def finite_difference(
    model: LensModel,
    item: EncodedPair,
    site: str,
    position: int,
    direction: Tensor,
    branches: tuple[bool, bool],
) -> float:
    """Central difference of −log σ(β(Δ − Δ_ref)) when some branches are nudged at a position."""
    reference = log_probability(model, item, item.chosen_ids, [])
    reference -= log_probability(model, item, item.rejected_ids, [])
    losses = []
    for step in (1e-2, -1e-2):
        edits = [nudge(site, position, step * direction)]
        margin = log_probability(model, item, item.chosen_ids, edits if branches[0] else [])
        margin -= log_probability(model, item, item.rejected_ids, edits if branches[1] else [])
        losses.append(np.log1p(np.exp(-BETA * (margin - reference))))
    return (losses[0] - losses[1]) / 2e-2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("site", ["resid_post.0", "resid_post.1", "h"])
def test_gradients_are_finite_differences(architecture: str, site: str) -> None:
    model, item = tiny_pair(architecture).base, SHARED_OPENING
    divergence = divergence_position(item)
    assert divergence is not None
    found = site_gradients(model, item, site, beta=BETA)
    start = len(item.prompt_ids) - 1
    assert len(found.shared) == divergence.position - start + 1 > 1
    generator = torch.Generator().manual_seed(0)
    places = (
        (start, found.shared[0], (True, True)),
        (divergence.position, found.divergence, (True, True)),
        (divergence.position + 1, found.chosen[0], (True, False)),
        (divergence.position + 1, found.rejected[0], (False, True)),
    )
    for position, gradient, branches in places:
        for _ in range(2):
            direction = torch.randn(model.d_model, generator=generator)
            expected = finite_difference(model, item, site, position, direction, branches)
            measured = float(gradient @ direction.double().numpy())
            assert measured == pytest.approx(expected, rel=2e-2, abs=2e-3), (position, branches)


def test_the_loss_at_the_start_of_training_is_log_two() -> None:
    found = site_gradients(tiny_pair().base, AT_ONCE, "h", beta=BETA)
    assert found.loss == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize("item", [SHARED_OPENING, AT_ONCE])
def test_at_h_and_the_divergence_the_gradient_is_half_beta_times_minus_v(
    item: EncodedPair,
) -> None:
    model = tiny_pair().base
    divergence = divergence_position(item)
    assert divergence is not None
    W_U = model.W_U.double().numpy()
    v = W_U[:, divergence.chosen_token] - W_U[:, divergence.rejected_token]
    found = site_gradients(model, item, "h", beta=BETA)
    assert found.divergence == pytest.approx(-BETA / 2 * v, abs=1e-5)
    assert float(descent_cosines(found.shared[-1:], v)[0]) == pytest.approx(1, abs=1e-6)


def test_common_tokens_before_the_divergence_pull_nowhere_at_h() -> None:
    # Both branches predict the same token from the same h, so that their parts cancel.
    found = site_gradients(tiny_pair().base, SHARED_OPENING, "h", beta=BETA)
    assert np.abs(found.shared[:-1]).max() < 1e-6


def test_responses_that_do_not_diverge_are_refused() -> None:
    item = EncodedPair((1, 2), (3, 4, 5), (3, 4))
    with pytest.raises(DataError, match="do not diverge"):
        site_gradients(tiny_pair().base, item, "h", beta=BETA)


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(HookError, match=r"resid_post\.9.*the last is 'resid_post\.1'"):
        site_gradients(tiny_pair().base, AT_ONCE, "resid_post.9", beta=BETA)
