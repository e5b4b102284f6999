"""`LensModel` on TransformerLens's `TransformerBridge` (3.9 and 4.x)."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from dsteer_tl.errors import CheckpointError, HookError
from dsteer_tl.lens_model.base import LensModel
from dsteer_tl.lens_model.block_outputs import check_layer, projection_of
from dsteer_tl.lens_model.components import (
    AttentionOutput,
    MlpWeights,
    component_of,
    hook_name_of,
)
from dsteer_tl.lens_model.direct import DirectBlocks
from dsteer_tl.lens_model.readout import (
    Readout,
    end_token_ids,
    first_parameter,
    output_transform,
)
from dsteer_tl.lens_model.types import ChooseTokens, Edit, Prefill
from dsteer_tl.lens_model.value_vectors import mlp_weights_of
from dsteer_tl.sites import FINAL, layer_of

# `unembed.hook_in` is h by definition, but sees one position alone when `logits_to_keep=1` saves
# the unembedding. `ln_final.hook_out` is the same tensor before that cut; the self-check compares.
_READ_H = "ln_final.hook_out"
_WRITE_H = "unembed.hook_in"

# TransformerLens logs every component that it wraps.
logging.getLogger("transformer_lens").setLevel(logging.ERROR)


class BridgeLens(LensModel):
    """A HuggingFace model, hooked in place by `TransformerBridge`.

    Building it consumes the HuggingFace object: its submodules are replaced. The tokenizer stays
    outside, since TransformerLens would reload it and prepend a BOS of its own.
    """

    backend = "TransformerBridge"

    def __init__(self, model: PreTrainedModel, *, name: str, weights_hash: str) -> None:
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        # A PEFT wrapper's base keeps its adapters inside the modules that the bridge wraps.
        architecture = type(model).__name__
        accepted = inspect.signature(model.forward).parameters
        self._accepts_logits_to_keep = "logits_to_keep" in accepted
        self._accepts_position_ids = "position_ids" in accepted
        softcap, scale = output_transform(model.config)
        try:
            self.bridge: Any = build_bridge_from_module(
                model, architecture, hf_config=model.config, tokenizer=None, model_name=name
            )
        except (ValueError, KeyError, NotImplementedError, AttributeError) as error:
            raise CheckpointError(
                f"TransformerLens cannot hook {architecture} of {name}: {error}; "
                "expected a decoder-only architecture that TransformerBridge supports"
            ) from error
        self.bridge.eval()
        self.name = name
        self.weights_hash = weights_hash
        self.end_token_ids = end_token_ids(model)
        settings = self.bridge.cfg
        self.n_layers, self.d_model = int(settings.n_layers), int(settings.d_model)
        self.n_ctx = int(getattr(model.config, "max_position_embeddings", 0) or settings.n_ctx)
        W_U = self.bridge.W_U.detach()
        b_U = getattr(self.bridge, "b_U", None)
        b_U = torch.zeros(W_U.shape[1], dtype=W_U.dtype) if b_U is None else b_U.detach()
        self.d_vocab = int(W_U.shape[1])
        self.readout = Readout(W_U, b_U.to(W_U.device), softcap, scale)
        # TransformerLens builds this dictionary anew each time it is asked for.
        self._points: dict[str, Any] = dict(self.bridge.hook_dict)
        self._names = frozenset(self._points)
        self._direct = DirectBlocks(list(self.bridge.blocks))
        self.check([self.hook_name(site) for site in self.sites] + [_READ_H])

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return first_parameter(self.bridge.original_model).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return first_parameter(self.bridge.original_model).dtype

    @property
    def norm_parameters(self) -> dict[str, Tensor]:
        """Gain and, where there is one, bias of the final norm."""
        return {
            name.rsplit(".", 1)[-1]: parameter.detach()
            for name, parameter in self.bridge.ln_final.named_parameters()
        }

    def final_norm(self, x: Tensor) -> Tensor:
        """The model's own final norm, gain included."""
        norm = self.bridge.ln_final.original_component
        result: Tensor = norm(x)
        return result.to(x.device)  # a device map may have put the norm elsewhere

    def hook_name(self, site: str) -> str:
        """The TransformerLens hook of a site or of a place inside a block."""
        found = component_of(site)
        if found is not None:
            gated = found[0] in ("mlp_pre", "mlp_gate") and self.gated_mlp
            return hook_name_of(*found, gated=gated, parallel=self.parallel_blocks)
        layer = layer_of(site)
        return _WRITE_H if layer is None else f"blocks.{layer}.hook_resid_post"

    def hook_names(self) -> frozenset[str]:
        """Every hook name, aliases included."""
        return self._names

    def mlp_weights(self, layer: int) -> MlpWeights:
        """The weights of a block's MLP; its value vectors are the rows of ``W_out``."""
        return mlp_weights_of(self, self.bridge.blocks, layer)

    def attention_output(self, layer: int) -> AttentionOutput:
        """The output projection of a block's attention, one matrix a head."""
        check_layer(self, layer)
        attention = getattr(self.bridge.blocks[layer], "attn", None)
        return projection_of(self, attention, int(self.bridge.cfg.n_heads))

    def _forward(self, ids: Tensor, mask: Tensor, *, last_only: bool) -> Tensor:
        extra = {"logits_to_keep": 1} if last_only and self._accepts_logits_to_keep else {}
        with self._running(mask):
            logits: Tensor = self.bridge(
                ids, attention_mask=mask, return_type="logits", use_cache=False, **extra
            )
        return logits

    def _running(self, mask: Tensor) -> contextlib.AbstractContextManager[None]:
        """A pass, by transformers' own blocks unless something inside them is hooked.

        Raises:
            HookError: It is, and TransformerLens would give NaN: its softmax is float32, where the
                least float64, by which it masks, is infinite and a pad attends to nothing.
        """
        if self._direct.hooked and self.dtype == torch.float64 and not bool(mask[:, 0].all()):
            raise HookError(
                f"{self.name} is float64, its batch is left-padded, and something inside its "
                "blocks is hooked: TransformerLens gives NaN there; load it in float32"
            )
        return self._direct.running()

    @contextlib.contextmanager
    def _hook(self, name: str, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        def hook_function(tensor: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001
            return function(tensor)

        # As `bridge.hooks`, which walks over all hook points on entry and exit: at dozens of sites
        # that would cost more than the hooks.
        point = self._points[name]
        point.add_hook(hook_function)
        handle = point.fwd_hooks[-1]
        try:
            yield
        finally:
            handle.hook.remove()
            point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]

    def _read(
        self, site: str, function: Callable[[Tensor], None]
    ) -> contextlib.AbstractContextManager[None]:
        return self._hook(_READ_H if site == FINAL else self.hook_name(site), function)

    def _write(self, edit: Edit) -> contextlib.AbstractContextManager[None]:
        return self._hook(self.hook_name(edit.site), edit.function)

    @property
    def _stages(self) -> Sequence[torch.nn.Module]:
        return [*self.bridge.blocks, self.bridge.ln_final]

    def _prefill(self, ids: Tensor, mask: Tensor) -> Any:
        if ids.shape[1] == 1:
            return None
        extra: dict[str, Any] = {"logits_to_keep": 1} if self._accepts_logits_to_keep else {}
        if self._accepts_position_ids:
            # GPT-2 would count pads as positions.
            extra["position_ids"] = (mask[:, :-1].cumsum(dim=1) - 1).clamp_min(0)
        with self._running(mask):
            return self.bridge.original_model(
                input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True, **extra
            ).past_key_values

    def _generate(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        choose: ChooseTokens | None,
        prefill: Prefill | None,
    ) -> Tensor:
        cache = None
        if prefill is not None and prefill.cache is not None:
            # Generation writes into the cache: every call has its own.
            cache = copy.deepcopy(prefill.cache)
            cache.batch_repeat_interleave(prefill.repeats)
        with self._running(mask):
            return generate_with_transformers(
                self.bridge.original_model,
                ids,
                mask,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                choose=choose,
                cache=cache,
            )


def generate_with_transformers(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    use_cache: bool = True,
    choose: ChooseTokens | None = None,
    cache: Any = None,
) -> Tensor:
    """Transformers' own generation, with every sampling setting of the checkpoint overridden."""
    from transformers import GenerationConfig, LogitsProcessorList

    ends = end_token_ids(model)
    padding = getattr(model.config, "pad_token_id", None)
    if padding is None:
        padding = ends[0] if ends else 0
    sampling: dict[str, Any] = (
        {"do_sample": False}
        if temperature == 0 or choose is not None
        else {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    )
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=padding,
        use_cache=use_cache,
        **sampling,
    )
    extra: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
    if choose is not None:
        extra["logits_processor"] = LogitsProcessorList([_Choice(choose, ids.shape[1])])
    with _without_generation_defaults(model):
        result: Tensor = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, generation_config=settings, **extra
        )
    return result


class _Choice(LogitsProcessor):
    """Leaves only the chosen token possible, so that greedy decoding takes it."""

    def __init__(self, choose: ChooseTokens, prompt_width: int) -> None:
        self.choose, self.prompt_width = choose, prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = self.choose(scores, input_ids.shape[1] - self.prompt_width)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, tokens[:, None].to(scores.device), 0.0)


@contextlib.contextmanager
def _without_generation_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Hide the checkpoint's settings: transformers fills what is unset in ours from them."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before
