"""The self-check must catch models that are wrong in ways that nothing else would show."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsteer_tl.errors import SelfCheckError
from dsteer_tl.lens_model import Check, Edit, LensModel, SelfCheck, load_lens_model, loading
from dsteer_tl.lens_model.bridge import BridgeLens
from dsteer_tl.lens_model.self_check import reference_logits, run_self_check
from tests.models import random_model


class FinalNormSkipped(BridgeLens):
    def final_norm(self, x: Tensor) -> Tensor:
        return x


class GainSkipped(BridgeLens):
    def final_norm(self, x: Tensor) -> Tensor:
        return super().final_norm(x) / self.norm_parameters["weight"]


class MaskIgnored(BridgeLens):
    def _forward(self, ids: Tensor, mask: Tensor, *, last_only: bool) -> Tensor:
        return super()._forward(ids, torch.ones_like(mask), last_only=last_only)


class MaskIgnoredInGeneration(BridgeLens):
    def _generate(self, ids: Tensor, mask: Tensor, **settings: Any) -> Tensor:
        return super()._generate(ids, torch.ones_like(mask), **settings)


class EditAppliedTwice(BridgeLens):
    @contextmanager
    def _write(self, edit: Edit) -> Iterator[None]:
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(super()._write(edit))
            yield


class EditIgnored(BridgeLens):
    def _write(self, edit: Edit) -> Any:  # noqa: ARG002
        return nullcontext()


class EditLostInGeneration(BridgeLens):
    def _generate(self, ids: Tensor, mask: Tensor, **settings: Any) -> Tensor:
        self.bridge.reset_hooks()
        return super()._generate(ids, mask, **settings)


class EditRounds(BridgeLens):
    def _write(self, edit: Edit) -> Any:
        return super()._write(Edit(edit.site, lambda x: edit.function(x.bfloat16()).float()))


class SoftcapDropped(BridgeLens):
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.readout = replace(self.readout, softcap=None)


class BiasDropped(BridgeLens):
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.readout = replace(self.readout, b_U=torch.zeros_like(self.readout.b_U))


class ReadsBeforeTheNorm(BridgeLens):
    def _read(self, site: str, function: Callable[[Tensor], None]) -> Any:
        return super()._read("resid_post.1" if site == "h" else site, function)


class PositionsShifted(BridgeLens):
    def _forward(self, ids: Tensor, mask: Tensor, *, last_only: bool) -> Tensor:
        return super()._forward(ids, mask, last_only=last_only).roll(1, dims=1)


@pytest.mark.parametrize(
    ("broken", "architecture", "check"),
    [
        (FinalNormSkipped, "llama", "final norm of the last resid_post equals h"),
        (GainSkipped, "llama", "final norm of the last resid_post equals h"),
        (MaskIgnored, "llama", "left-padded batch equals single sequences"),
        (MaskIgnored, "gpt2", "left-padded batch equals single sequences"),
        (MaskIgnoredInGeneration, "llama", "cached generation equals uncached"),
        (EditAppliedTwice, "llama", "each hook fires once a forward pass"),
        (EditIgnored, "llama", "each hook fires once a forward pass"),
        (EditLostInGeneration, "llama", "each hook fires once a generated token"),
        (EditRounds, "llama", "a zero edit leaves the logits bitwise equal"),
        (SoftcapDropped, "gemma2", "readout of h equals the logits"),
        (BiasDropped, "phi", "readout of h equals the logits"),
        (ReadsBeforeTheNorm, "llama", "readout of h equals the logits"),
        (PositionsShifted, "llama", "hooked logits equal transformers' logits"),
    ],
)
def test_a_wrong_model_is_refused(
    broken: type[LensModel], architecture: str, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loading._BACKENDS, "bridge", broken)
    with pytest.raises(SelfCheckError, match=check) as caught:
        load_lens_model(random_model(architecture), name="my model")
    message = str(caught.value)
    assert message.startswith("my model (TransformerBridge) failed the self-check: ")
    assert "\n" not in message and "is allowed" in message


def test_other_weights_than_the_reference_are_refused() -> None:
    model = random_model()
    reference = reference_logits(model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight *= 1.05
    lens = load_lens_model(model)
    with pytest.raises(SelfCheckError, match="hooked logits equal transformers' logits"):
        run_self_check(lens, reference).require()


def test_a_sound_model_passes_every_check() -> None:
    model = random_model("gemma2")
    reference = reference_logits(model)
    result = run_self_check(load_lens_model(copy.deepcopy(model), self_check=False), reference)
    assert result.passed and len(result.checks) == 9
    assert len({check.name for check in result.checks}) == 9


def test_bfloat16_passes_with_its_own_tolerance() -> None:
    load_lens_model(random_model().to(torch.bfloat16))


def test_not_a_number_fails() -> None:
    assert not Check("x", float("nan"), 1.0).passed
    assert not SelfCheck("m", "b", (Check("x", 0.0, 0.0), Check("y", float("nan"), 1.0))).passed
