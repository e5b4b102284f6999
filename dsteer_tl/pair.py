"""`ModelPair`: a base model and its preference-tuned sibling, checked against each other."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsteer_tl.errors import CheckpointError, DependencyError, PairError
from dsteer_tl.files import hash_content
from dsteer_tl.lens_model import Backend, LensModel, LoadOptions, load_lens_model, load_tokenizer
from dsteer_tl.lens_model.adapter import AdapterLens, is_adapter
from dsteer_tl.lens_model.bridge import BridgeLens
from dsteer_tl.lens_model.checkpoint import (
    first_line,
    hash_weights,
    load_model,
)
from dsteer_tl.lens_model.readout import hash_tensors
from dsteer_tl.lens_model.self_check import reference_logits, run_self_check
from dsteer_tl.notebook import Markup, facts, folded, listed, stacked
from dsteer_tl.preflight import Preflight, run_preflight


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

    def __repr__(self) -> str:
        differing = listed(item.name for item in self.preflight.differences) or "nothing else"
        return (
            f"ModelPair({self.base.name} and {self.policy.name}: {self.base.n_layers} layers, "
            f"d_model {self.base.d_model}; beside the blocks they differ in {differing})"
        )

    def _repr_html_(self) -> str:
        base = self.base
        differing = [item.name for item in self.preflight.differences]
        rows = {
            "base": base.name,
            "policy": self.policy.name,
            "model": f"{base.n_layers} layers, d_model {base.d_model}, vocabulary "
            f"{base.d_vocab:,}, context {base.n_ctx:,}",
            "loaded as": f"{base.backend}, {base.dtype} on {base.device}",
            "sites": listed(base.sites),
            "base and policy differ in": listed(differing) or "nothing but the blocks",
        }
        preflight = Markup(self.preflight._repr_html_())
        return stacked(facts("ModelPair", rows), folded("all that was compared", preflight))

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


def _tokenizer_of(
    source: str | Path | PreTrainedModel, options: LoadOptions
) -> PreTrainedTokenizerBase:
    if not isinstance(source, (str, Path)):
        raise PairError(
            "a model in memory has no tokenizer with it: pass tokenizer=… to ModelPair.load"
        )
    return load_tokenizer(source, options)
