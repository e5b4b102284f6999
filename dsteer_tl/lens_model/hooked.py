"""`LensModel` on a real `HookedTransformer`, where TransformerLens 3.x is installed."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dsteer_tl.errors import CheckpointError, DependencyError
from dsteer_tl.lens_model.base import LensModel
from dsteer_tl.lens_model.block_outputs import check_layer
from dsteer_tl.lens_model.components import (
    AttentionOutput,
    MlpWeights,
    component_of,
    hook_name_of,
)
from dsteer_tl.lens_model.readout import (
    Readout,
    end_token_ids,
    first_parameter,
    output_transform,
)
from dsteer_tl.lens_model.types import ChooseTokens, Edit, Prefill
from dsteer_tl.lens_model.value_vectors import mlp_weights_of
from dsteer_tl.sites import FINAL, layer_of


class HookedLens(LensModel):
    """Native weights in a `HookedTransformer`, built from the HuggingFace configuration.

    TransformerLens 3.9 looks models up by official name and cannot load arbitrary directories, so
    the configuration is converted from a copy on disk whose path holds no model name, and the
    weights from the HuggingFace object. It is silently wrong for some configurations (Llama with
    biases, linear RoPE): the self-check compares its logits with HuggingFace's before first use.
    """

    backend = "HookedTransformer"

    def __init__(self, model: PreTrainedModel, *, name: str, weights_hash: str) -> None:
        try:
            from transformer_lens import HookedTransformer
            from transformer_lens.loading_from_pretrained import (
                get_pretrained_model_config,
                get_pretrained_state_dict,
            )
        except ImportError as error:
            raise DependencyError(
                "the HookedTransformer backend needs TransformerLens 3.9 (4.0 removed the class): "
                "install 'dsteer-tl[hooked-transformer]', or use backend='bridge'"
            ) from error
        self.name, self.weights_hash = name, weights_hash
        softcap, scale = output_transform(model.config)
        context = int(getattr(model.config, "max_position_embeddings", 0)) or None
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            settings_source = copy.deepcopy(model.config)
            settings_source.architectures = [type(model).__name__]
            if context is not None:
                # GPT-2's own name for it, which transformers 5 no longer writes.
                settings_source.n_ctx = context
            settings_source.save_pretrained(folder)
            try:
                settings = get_pretrained_model_config(
                    folder, device=str(model.device), dtype=model.dtype, n_ctx=context
                )
                state = get_pretrained_state_dict(folder, settings, model, dtype=model.dtype)
                settings.tokenizer_name = None
                settings.init_weights = False
                self.model: Any = HookedTransformer(settings, tokenizer=None)
                self.model.load_and_process_state_dict(
                    state,
                    fold_ln=False,
                    center_writing_weights=False,
                    center_unembed=False,
                    fold_value_biases=False,
                    refactor_factored_attn_matrices=False,
                )
            except (
                ValueError,
                KeyError,
                NotImplementedError,
                AttributeError,
                RuntimeError,
            ) as error:
                raise CheckpointError(
                    f"HookedTransformer 3.9 cannot build {type(model).__name__} of {name}: "
                    f"{error}; use backend='bridge', which supports more architectures"
                ) from error
        self.model.eval().requires_grad_(False)
        self.end_token_ids = end_token_ids(model)
        self.n_layers, self.d_model = int(settings.n_layers), int(settings.d_model)
        self.d_vocab, self.n_ctx = int(settings.d_vocab_out), int(settings.n_ctx)
        self.readout = Readout(self.model.W_U.detach(), self.model.b_U.detach(), softcap, scale)
        self._names = frozenset(self.model.hook_dict)
        self.check([self.hook_name(site) for site in self.sites if site != FINAL])

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return first_parameter(self.model).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return first_parameter(self.model).dtype

    @property
    def norm_parameters(self) -> dict[str, Tensor]:
        """Gain and, where there is one, bias of the final norm, in HuggingFace's names."""
        names = {"w": "weight", "b": "bias"}
        return {
            names[name]: parameter.detach()
            for name, parameter in self.model.ln_final.named_parameters()
        }

    def final_norm(self, x: Tensor) -> Tensor:
        """The final norm with its gain."""
        result: Tensor = self.model.ln_final(x)
        return result

    def hook_name(self, site: str) -> str:
        """The TransformerLens hook of a site; `h` has none and is the output of `ln_final`."""
        found = component_of(site)
        if found is not None:
            gated = found[0] in ("mlp_pre", "mlp_gate") and self.gated_mlp
            return hook_name_of(*found, gated=gated, parallel=self.parallel_blocks)
        layer = layer_of(site)
        return "ln_final" if layer is None else f"blocks.{layer}.hook_resid_post"

    def hook_names(self) -> frozenset[str]:
        """Every hook name."""
        return self._names

    def mlp_weights(self, layer: int) -> MlpWeights:
        """The weights of a block's MLP; its value vectors are the rows of ``W_out``."""
        return mlp_weights_of(self, self.model.blocks, layer)

    def attention_output(self, layer: int) -> AttentionOutput:
        """The output projection of a block's attention, one matrix a head."""
        check_layer(self, layer)
        attention = self.model.blocks[layer].attn
        return AttentionOutput(W_O=attention.W_O.detach(), b_O=attention.b_O.detach())

    def _forward(self, ids: Tensor, mask: Tensor, *, last_only: bool) -> Tensor:
        if not last_only:
            logits: Tensor = self.model(ids, attention_mask=mask, return_type="logits")
            return logits
        resid: Tensor = self.model(ids, attention_mask=mask, stop_at_layer=self.n_layers)
        return self.readout(self.model.ln_final(resid)[:, -1:])

    @contextlib.contextmanager
    def _hook(self, site: str, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        if site == FINAL:
            handle = self.model.ln_final.register_forward_hook(
                lambda _module, _inputs, output: function(output)
            )
            try:
                yield
            finally:
                handle.remove()
            return

        def hook_function(tensor: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001
            return function(tensor)

        with self.model.hooks(fwd_hooks=[(self.hook_name(site), hook_function)]):
            yield

    def _read(
        self, site: str, function: Callable[[Tensor], None]
    ) -> contextlib.AbstractContextManager[None]:
        return self._hook(site, function)

    def _write(self, edit: Edit) -> contextlib.AbstractContextManager[None]:
        return self._hook(edit.site, edit.function)

    @property
    def _stages(self) -> Sequence[torch.nn.Module]:
        return [*self.model.blocks, self.model.ln_final]

    def _prefill(self, ids: Tensor, mask: Tensor) -> Any:  # noqa: ARG002
        return None

    def _generate(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        choose: ChooseTokens | None,
        prefill: Prefill | None,  # noqa: ARG002
    ) -> Tensor:
        # Without a tokenizer HookedTransformer's own loop cannot see the pads; this one is slower
        # (no cache) and exact.
        ends = torch.as_tensor(self.end_token_ids or (-1,), device=ids.device)
        finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for step in range(max_new_tokens):
            logits = self._forward(ids, mask, last_only=True)[:, -1].float()
            if choose is None:
                tokens = choose_tokens(logits, temperature=temperature, top_p=top_p)
            else:
                tokens = choose(logits, step).to(ids.device)
            tokens = torch.where(finished, ends[0].clamp(min=0), tokens)
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            mask = torch.cat([mask, (~finished).long()[:, None]], dim=1)
            finished = finished | torch.isin(tokens, ends)
            if bool(finished.all()):
                break
        return ids


def choose_tokens(logits: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Greedy at temperature 0, else nucleus sampling with transformers' own filters."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    empty = torch.zeros((len(logits), 0), dtype=torch.long)
    logits = TemperatureLogitsWarper(temperature)(empty, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(empty, logits)
    return torch.multinomial(logits.softmax(dim=-1), 1)[:, 0]
