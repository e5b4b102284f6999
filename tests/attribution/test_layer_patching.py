from __future__ import annotations

import numpy as np
import pytest
import torch

from dsteer_tl.attribution import layers
from dsteer_tl.attribution.layers import PatchingResult, patch_sites
from dsteer_tl.errors import HookError
from dsteer_tl.lens_model import pad
from dsteer_tl.measurements import MeasurementConfiguration
from dsteer_tl.measurements.localisation import patching_table
from tests.tiny_pairs import probes, tiny_pair

LAYERS = ["resid_post.0", "resid_post.1"]


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], PatchingResult]:
    results = patch_sites(tiny_pair(), probes(), LAYERS, token_budget=200, seed=0, progress=False)
    return {(result.site, result.source): result for result in results}


def test_every_site_has_both_sources(found: dict[tuple[str, str], PatchingResult]) -> None:
    assert set(found) == {(site, source) for site in LAYERS for source in ("policy", "random")}


def test_the_unpatched_divergence_is_that_of_the_two_models(
    found: dict[tuple[str, str], PatchingResult],
) -> None:
    pair, result = tiny_pair(), found["resid_post.0", "policy"]
    probe = probes()[0]
    batch = pad([probe.ids])
    with torch.no_grad():
        log_p, log_q = (
            model.forward(batch.ids, batch.mask)[0].double().log_softmax(-1)
            for model in (pair.policy, pair.base)
        )
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).numpy()
    for kind, positions in probe.positions.items():
        mine = np.array([k == kind for k in result.kinds]) & (result.prompts == 0)
        assert result.kl_base[mine] == pytest.approx(kl[list(positions)], rel=1e-4, abs=1e-6)


def test_the_last_layer_carries_everything_when_norm_and_readout_are_shared(
    found: dict[tuple[str, str], PatchingResult],
) -> None:
    result = found["resid_post.1", "policy"]
    assert result.kl.max() < 1e-5 < result.kl_base.mean()


def test_an_early_layer_carries_less(found: dict[tuple[str, str], PatchingResult]) -> None:
    early = found["resid_post.0", "policy"]
    assert early.kl.mean() > 1e-3
    assert early.kl.mean() > 100 * found["resid_post.1", "policy"].kl.mean()


def test_a_random_shift_restores_nothing(found: dict[tuple[str, str], PatchingResult]) -> None:
    result = found["resid_post.1", "random"]
    assert result.kl.mean() > 0.5 * result.kl_base.mean()


def test_the_random_shift_is_as_long_as_the_policy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[torch.Tensor] = []
    original = layers._replacement
    monkeypatch.setattr(
        layers, "_replacement", lambda states: written.append(states) or original(states)
    )
    probe = probes()[0]
    patch_sites(tiny_pair(), [probe], ["resid_post.0"], token_budget=200, seed=0, progress=False)
    policy, random = written
    batch = pad([probe.ids])
    with torch.no_grad(), tiny_pair().base.reading(["resid_post.0"]) as store:
        tiny_pair().base.forward(batch.ids, batch.mask)
    base = store["resid_post.0"]
    assert torch.allclose((random - base).norm(dim=-1), (policy - base).norm(dim=-1), rtol=1e-3)
    cosines = torch.nn.functional.cosine_similarity(random - base, policy - base, dim=-1)
    assert cosines.abs().mean() < 0.5


def test_batching_does_not_change_the_numbers(
    found: dict[tuple[str, str], PatchingResult],
) -> None:
    alone = patch_sites(
        tiny_pair(), probes(), ["resid_post.0"], token_budget=1, seed=0, progress=False
    )[0]
    together = found["resid_post.0", "policy"]
    key = [np.lexsort((r.kl_base, r.prompts, r.kinds)) for r in (alone, together)]
    assert alone.kl[key[0]] == pytest.approx(together.kl[key[1]], rel=1e-3, abs=1e-5)


def test_the_table_is_a_ratio_of_sums(found: dict[tuple[str, str], PatchingResult]) -> None:
    table = patching_table(
        tiny_pair(), probes(), MeasurementConfiguration(draws=50), progress=False
    )
    result = found["resid_post.0", "policy"]
    row = table[
        (table["site"] == "resid_post.0")
        & (table["source"] == "policy")
        & (table["position_kind"] == "divergence")
    ].iloc[0]
    chosen = np.array(result.kinds) == "divergence"
    expected = 1 - result.kl[chosen].sum() / result.kl_base[chosen].sum()
    assert row["recovered"] == pytest.approx(expected, rel=1e-3)
    assert row["ci_low"] <= row["recovered"] <= row["ci_high"]
    assert row["n"] == chosen.sum()
    assert "h" not in set(table["site"])


def test_an_unknown_site_is_refused() -> None:
    with pytest.raises(HookError, match=r"unknown site 'mlp\.3'"):
        patch_sites(tiny_pair(), probes(), ["mlp.3"], token_budget=200, seed=0, progress=False)
