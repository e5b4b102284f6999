"""Preflight: what base and policy share, and where a difference decides what may be compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dsteer_tl.errors import PairError
from dsteer_tl.lens_model import LensModel
from dsteer_tl.notebook import badge, grid, stacked


@dataclass(frozen=True, slots=True)
class PreflightItem:
    """One property compared between base and policy."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Preflight:
    """What base and policy share. Differences are named in every verdict that depends on them."""

    items: tuple[PreflightItem, ...]

    @property
    def differences(self) -> tuple[PreflightItem, ...]:
        """The properties in which the two models differ."""
        return tuple(item for item in self.items if not item.passed)

    @property
    def same_readout(self) -> bool:
        """Whether W_U, b_U and the final gain are equal, so that logits share one basis."""
        return all(item.passed for item in self.items if item.name in {"W_U", "b_U", "final norm"})

    def _repr_html_(self) -> str:
        rows = (
            (item.name, badge("passed" if item.passed else "not passed"), item.detail)
            for item in self.items
        )
        return stacked(grid(("property", "", "found"), rows, "Base against policy"))


def run_preflight(
    base: LensModel,
    policy: LensModel,
    tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase | None = None,
) -> Preflight:
    """Compare everything that a shared basis of residuals and logits rests on.

    Raises:
        PairError: Depth, width or vocabulary differ, so that no shift is defined.
    """
    for name in ("n_layers", "d_model", "d_vocab"):
        found, expected = getattr(policy, name), getattr(base, name)
        if found != expected:
            raise PairError(
                f"policy {policy.name} has {name} {found}, base {base.name} has {expected}: a "
                "shift is defined only between a model and its own fine-tune"
            )
    items = [
        _compare_tensors("W_U", base.W_U, policy.W_U),
        _compare_tensors("b_U", base.b_U, policy.b_U),
        _compare_norms(base, policy),
        PreflightItem(
            "output transform",
            (base.readout.softcap, base.readout.scale)
            == (policy.readout.softcap, policy.readout.scale),
            f"soft-cap and scale {base.readout.softcap}, {base.readout.scale} in the base, "
            f"{policy.readout.softcap}, {policy.readout.scale} in the policy",
        ),
        PreflightItem("dtype", base.dtype == policy.dtype, f"{base.dtype} and {policy.dtype}"),
        PreflightItem("context", base.n_ctx == policy.n_ctx, f"{base.n_ctx} and {policy.n_ctx}"),
        PreflightItem(
            "weights",
            base.weights_hash != policy.weights_hash,
            "base and policy differ, as they should"
            if base.weights_hash != policy.weights_hash
            else "base and policy hold the same weights: every shift will be zero",
        ),
    ]
    if policy_tokenizer is not None:
        base_vocabulary, policy_vocabulary = tokenizer.get_vocab(), policy_tokenizer.get_vocab()
        if base_vocabulary != policy_vocabulary:
            differing = set(base_vocabulary.items()) ^ set(policy_vocabulary.items())
            raise PairError(
                f"the tokenizers of {base.name} and {policy.name} differ in {len(differing)} "
                "entries: the same text would give other tokens"
            )
        templates = tokenizer.chat_template, policy_tokenizer.chat_template
        items.append(PreflightItem("tokenizer", True, f"{len(base_vocabulary)} equal entries"))
        items.append(
            PreflightItem(
                "chat template",
                templates[0] == templates[1],
                "equal" if templates[0] == templates[1] else "the base's template is used for both",
            )
        )
    return Preflight(tuple(items))


def _compare_tensors(name: str, base: Tensor, policy: Tensor) -> PreflightItem:
    if base is policy or torch.equal(base.cpu(), policy.cpu()):
        return PreflightItem(name, True, "bitwise equal")
    base64, policy64 = base.double().cpu(), policy.double().cpu()
    change = float((policy64 - base64).norm() / base64.norm().clamp(min=1e-30))
    return PreflightItem(
        name,
        False,
        f"relative change {change:.2g}; the base's is the reference, the rest is readout",
    )


def _compare_norms(base: LensModel, policy: LensModel) -> PreflightItem:
    ours, theirs = base.norm_parameters, policy.norm_parameters
    if ours.keys() != theirs.keys():
        raise PairError(
            f"the final norm of {policy.name} has {sorted(theirs)}, that of {base.name} has "
            f"{sorted(ours)}: they are models of different architectures"
        )
    for name, parameter in ours.items():
        item = _compare_tensors("final norm", parameter, theirs[name])
        if not item.passed:
            return item
    return PreflightItem("final norm", True, "bitwise equal")
