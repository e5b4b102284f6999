"""`ModelPair`: a base model and its preference-tuned sibling, checked against each other."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsteer_tl.errors import CheckpointError, DependencyError, PairError
from dsteer_tl.files import hash_content
from dsteer_tl.lens_model import Backend, LensModel, LoadOptions, load_lens_model, load_tokenizer
from dsteer_tl.lens_model.base import Edit
from dsteer_tl.lens_model.bridge import BridgeLens
from dsteer_tl.lens_model.checkpoint import (
    first_line,
    hash_weights,
    load_model,
    resolve_source,
)
from dsteer_tl.lens_model.readout import hash_tensors
from dsteer_tl.lens_model.self_check import reference_logits, run_self_check


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


@dataclass(frozen=True, slots=True)
class ModelPair:
    """Base (the reference policy) and policy (the preference-tuned model), hooked.

    Attributes:
        base: Hooked base model.
        policy: Hooked policy.
        tokenizer: The tokenizer of the base, used for both.
        preflight: What the two models share.
    """

    base: LensModel
    policy: LensModel
    tokenizer: PreTrainedTokenizerBase
    preflight: Preflight

    @classmethod
    def load(
        cls,
        base: str | Path | PreTrainedModel,
        policy: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        backend: Backend = "bridge",
        options: LoadOptions | None = None,
        policy_options: LoadOptions | None = None,
        self_check: bool = True,
    ) -> ModelPair:
        """Load two checkpoints, directories, hub ids or models in memory.

        A policy directory that holds a LoRA adapter is loaded onto the base: one copy of the
        weights serves both. Models in memory are consumed by hooking.

        Raises:
            CheckpointError: A model or the tokenizer cannot be loaded.
            SelfCheckError: A hooked model disagrees with plain transformers.
            PairError: The two models cannot be compared.
        """
        options = options or LoadOptions()
        if isinstance(policy, (str, Path)) and is_adapter(policy):
            if backend != "bridge":
                raise PairError(
                    f"{policy} is a LoRA adapter, which the backend {backend!r} cannot switch on "
                    "and off: use backend='bridge', or merge the adapter and save a full checkpoint"
                )
            return cls.from_adapter(
                base, policy, tokenizer=tokenizer, options=options, self_check=self_check
            )
        if base is policy and not isinstance(base, (str, Path)):
            raise PairError(
                "base and policy are one object in memory: hooking consumes it, so pass a copy"
            )
        policy_tokenizer = None
        if tokenizer is None:
            tokenizer = _tokenizer_of(base, options)
            if isinstance(policy, (str, Path)):
                with contextlib.suppress(CheckpointError):
                    policy_tokenizer = load_tokenizer(policy, policy_options or options)
        base_lens = load_lens_model(base, backend=backend, options=options, self_check=self_check)
        policy_lens = load_lens_model(
            policy, backend=backend, options=policy_options or options, self_check=self_check
        )
        preflight = run_preflight(base_lens, policy_lens, tokenizer, policy_tokenizer)
        return cls(base_lens, policy_lens, tokenizer, preflight)

    @classmethod
    def from_adapter(
        cls,
        base: str | Path | PreTrainedModel,
        adapter: str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        options: LoadOptions | None = None,
        self_check: bool = True,
    ) -> ModelPair:
        """A pair from one copy of the weights: the adapter on is the policy, off is the base.

        Raises:
            DependencyError: PEFT is not installed.
            CheckpointError: The adapter or the base cannot be loaded.
        """
        try:
            from peft import PeftModel, get_peft_model_state_dict
        except ImportError as error:
            raise DependencyError(
                f"{adapter} is a LoRA adapter and needs PEFT: install 'dsteer-tl[peft]'"
            ) from error
        options = options or LoadOptions()
        if tokenizer is None:
            tokenizer = _tokenizer_of(base, options)
        label = str(base) if isinstance(base, (str, Path)) else "base in memory"
        model = load_model(base, options) if isinstance(base, (str, Path)) else base.eval()
        base_hash = hash_weights(model)
        try:
            with warnings.catch_warnings():
                # PEFT reads a property of transformers that is on its way out.
                warnings.simplefilter("ignore", FutureWarning)
                # Of weights that the file lacks it only warns.
                warnings.filterwarnings("error", "Found missing adapter keys")
                adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
        except Exception as error:
            raise CheckpointError(
                f"cannot load the adapter {adapter} onto {label}: {first_line(error)}"
            ) from error
        # The scaling is part of the policy as much as the matrices are.
        settings = {n: c.to_dict() for n, c in adapted.peft_config.items()}
        policy_hash = hash_tensors(
            get_peft_model_state_dict(adapted, save_embedding_layers=False),
            f"{base_hash} {hash_content(settings)}",
        )
        plain = adapted.get_base_model()
        policy_reference = reference_logits(plain)
        with adapted.disable_adapter():
            base_reference = reference_logits(plain)
        inner = BridgeLens(plain, name=label, weights_hash=base_hash)
        base_lens = AdapterLens(inner, adapted.disable_adapter, label, base_hash)
        policy_lens = AdapterLens(inner, contextlib.nullcontext, str(adapter), policy_hash)
        if self_check:
            run_self_check(base_lens, base_reference).require()
            run_self_check(policy_lens, policy_reference).require()
        return cls(
            base_lens, policy_lens, tokenizer, run_preflight(base_lens, policy_lens, tokenizer)
        )


class AdapterLens(LensModel):
    """A view of one hooked model with its adapter on or off."""

    backend = "TransformerBridge + adapter"

    def __init__(
        self,
        inner: BridgeLens,
        context: Callable[[], contextlib.AbstractContextManager[Any]],
        name: str,
        weights_hash: str,
    ) -> None:
        self._inner, self._context = inner, context
        self.name, self.weights_hash = name, weights_hash
        self.n_layers, self.d_model = inner.n_layers, inner.d_model
        self.d_vocab, self.n_ctx = inner.d_vocab, inner.n_ctx
        self.readout, self.end_token_ids = inner.readout, inner.end_token_ids

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self._inner.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self._inner.dtype

    @property
    def norm_parameters(self) -> dict[str, Tensor]:
        """Gain and, where there is one, bias of the final norm."""
        return self._inner.norm_parameters

    def final_norm(self, x: Tensor) -> Tensor:
        """The model's own final norm, gain included."""
        with self._context():
            return self._inner.final_norm(x)

    def hook_name(self, site: str) -> str:
        """The TransformerLens hook of a site."""
        return self._inner.hook_name(site)

    def hook_names(self) -> frozenset[str]:
        """Every hook name."""
        return self._inner.hook_names()

    def _forward(self, ids: Tensor, mask: Tensor, *, last_only: bool) -> Tensor:
        with self._context():
            return self._inner._forward(ids, mask, last_only=last_only)

    @contextlib.contextmanager
    def _read(self, site: str, function: Callable[[Tensor], None]) -> Iterator[None]:
        with self._inner._read(site, function):
            yield

    @contextlib.contextmanager
    def _write(self, edit: Edit) -> Iterator[None]:
        with self._inner._write(edit):
            yield

    def _generate(self, ids: Tensor, mask: Tensor, **settings: Any) -> Tensor:
        with self._context():
            return self._inner._generate(ids, mask, **settings)


def is_adapter(source: str | Path) -> bool:
    """Whether a directory holds a PEFT adapter instead of a full checkpoint."""
    return (Path(resolve_source(source)) / "adapter_config.json").is_file()


def _tokenizer_of(
    source: str | Path | PreTrainedModel, options: LoadOptions
) -> PreTrainedTokenizerBase:
    if not isinstance(source, (str, Path)):
        raise PairError(
            "a model in memory has no tokenizer with it: pass tokenizer=… to ModelPair.load"
        )
    return load_tokenizer(source, options)


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
