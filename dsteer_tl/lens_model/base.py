"""`LensModel`: what the library needs of a hooked model, whichever class provides it."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsteer_tl.errors import HookError, ShapeError
from dsteer_tl.lens_model.readout import Readout
from dsteer_tl.sites import FINAL, all_sites, check_site, layer_of, resid_post

EditFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Edit:
    """A function applied to the residual stream at one site during the forward pass.

    Attributes:
        site: ``"resid_post.<layer>"`` or ``"h"``.
        function: Takes ``[batch, position, d_model]`` and returns the same shape. Must not write
            in place: other hooks may hold the same tensor.
    """

    site: str
    function: EditFunction


@dataclass(frozen=True, slots=True)
class Gather:
    """Which positions of a batch to keep: row ``rows[i]``, position ``positions[i]``."""

    rows: Int[Tensor, " kept"]
    positions: Int[Tensor, " kept"]


class LensModel(abc.ABC):
    """A causal language model in its native weights, with named sites to read and steer.

    Native means that nothing is folded or centred: folding multiplies each model's own final gain
    into its weights and would give base and policy different bases.

    Attributes:
        backend: Name of the class underneath.
        name: Directory, hub id, or a name for a model that was made in memory.
        n_layers, d_model, d_vocab, n_ctx: Dimensions.
        readout: `Readout` of this model.
        weights_hash: SHA-256 over all weights.
        end_token_ids: Tokens after which generation stops.
    """

    backend: ClassVar[str]
    name: str
    n_layers: int
    d_model: int
    d_vocab: int
    n_ctx: int
    readout: Readout
    weights_hash: str
    end_token_ids: tuple[int, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site of this model, in the order of the forward pass."""
        return all_sites(self.n_layers)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""
        return self.readout.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """The bias of the unembedding (zeros if the model has none)."""
        return self.readout.b_U

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where inputs go."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""

    @property
    @abc.abstractmethod
    def norm_parameters(self) -> dict[str, Tensor]:
        """Gain and, where there is one, bias of the final norm."""

    @abc.abstractmethod
    def final_norm(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Apply the final norm with its gain, which turns the last ``resid_post`` into ``h``."""

    @abc.abstractmethod
    def hook_name(self, site: str) -> str:
        """The TransformerLens name of the hook at which a site is read and written."""

    @abc.abstractmethod
    def hook_names(self) -> frozenset[str]:
        """Every hook name that this model has."""

    @abc.abstractmethod
    def _forward(
        self, ids: Tensor, mask: Tensor, *, last_only: bool
    ) -> Float[Tensor, "batch position d_vocab"]:
        """Logits, of the last position alone where ``last_only`` can save the unembedding."""

    @abc.abstractmethod
    def _read(
        self, site: str, function: Callable[[Tensor], None]
    ) -> contextlib.AbstractContextManager[None]:
        """Call ``function`` with the tensor at ``site`` whenever the forward pass meets it."""

    @abc.abstractmethod
    def _write(self, edit: Edit) -> contextlib.AbstractContextManager[None]:
        """Replace the tensor at a site by what the edit returns."""

    @abc.abstractmethod
    def _generate(
        self, ids: Tensor, mask: Tensor, *, max_new_tokens: int, temperature: float, top_p: float
    ) -> Int[Tensor, "batch total"]:
        """Continue left-padded prompts; greedy at temperature 0."""

    def check(self, names: Sequence[str]) -> None:
        """Refuse hook names that do not exist; some backends would ignore them in silence.

        Raises:
            HookError: Names the first unknown hook and near ones that exist.
        """
        known = self.hook_names()
        for name in names:
            if name not in known:
                tail = name.rsplit(".", 1)[-1]
                near = (
                    sorted(hook for hook in known if hook.endswith(tail))[:3] or sorted(known)[:3]
                )
                raise HookError(
                    f"{self.name} ({self.backend}) has no hook {name!r}; near it: {', '.join(near)}"
                )

    def check_ids(self, ids: Int[Tensor, "batch position"]) -> None:
        """Refuse sequences that are longer than the context or hold unknown token ids.

        Raises:
            ShapeError: Says the length or id found and the limit.
        """
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise ShapeError(f"token ids have shape {tuple(ids.shape)}, expected [batch, position]")
        if ids.shape[1] > self.n_ctx:
            raise ShapeError(
                f"a sequence of {ids.shape[1]} tokens is longer than the context of {self.name}, "
                f"{self.n_ctx}: shorten it, or drop overlong prompts"
            )
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= self.d_vocab:
            found = lowest if lowest < 0 else highest
            raise ShapeError(
                f"token id {found} is outside the vocabulary of {self.name} ({self.d_vocab}): "
                "was another model's tokenizer used?"
            )

    def forward(
        self, ids: Int[Tensor, "batch position"], mask: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "batch position d_vocab"]:
        """Logits at every position."""
        self.check_ids(ids)
        return self._forward(ids.to(self.device), mask.to(self.device), last_only=False)

    def capture(
        self,
        ids: Int[Tensor, "batch position"],
        mask: Int[Tensor, "batch position"],
        sites: Sequence[str],
        gather: Gather,
    ) -> dict[str, Float[Tensor, "kept d_model"]]:
        """Residuals at chosen sites and positions, as float32 on the CPU.

        Rows are gathered inside the hook, so that the full residual stream of a batch is never
        kept, and the unembedding runs on one position only.

        Raises:
            HookError: A site does not exist.
            ShapeError: The sequences do not fit this model.
        """
        self.check_ids(ids)
        for site in sites:
            check_site(site, self.n_layers, self.name)
        rows, positions = gather.rows.to(self.device), gather.positions.to(self.device)
        kept: dict[str, Tensor] = {}

        def keep(site: str) -> Callable[[Tensor], None]:
            def function(tensor: Tensor) -> None:
                kept[site] = tensor[rows.to(tensor.device), positions.to(tensor.device)].detach()

            return function

        with contextlib.ExitStack() as stack, torch.inference_mode():
            for site in sites:
                stack.enter_context(self._read(site, keep(site)))
            self._forward(ids.to(self.device), mask.to(self.device), last_only=True)
        missing = [site for site in sites if site not in kept]
        if missing:
            raise HookError(f"hooks at {missing} never fired in {self.name} ({self.backend})")
        return {site: kept[site].to("cpu", torch.float32) for site in sites}

    @contextlib.contextmanager
    def hooks(self, edits: Sequence[Edit]) -> Iterator[LensModel]:
        """Apply edits to every forward pass inside the ``with`` block, also in generation.

        Edits fire on prompt and pad positions too: a prefill is ``[batch, position, d_model]`` and
        a cached decoding step ``[batch, 1, d_model]``.
        """
        with contextlib.ExitStack() as stack:
            for edit in edits:
                check_site(edit.site, self.n_layers, self.name)
                stack.enter_context(self._write(edit))
            yield self

    @contextlib.contextmanager
    def reading(self, sites: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Collect the live tensors at sites during one forward pass, with their graph."""
        store: dict[str, Tensor] = {}

        def keep(site: str) -> Callable[[Tensor], None]:
            return lambda tensor: store.__setitem__(site, tensor)

        with contextlib.ExitStack() as stack:
            for site in sites:
                check_site(site, self.n_layers, self.name)
                stack.enter_context(self._read(site, keep(site)))
            yield store

    def generate(
        self,
        ids: Int[Tensor, "batch position"],
        mask: Int[Tensor, "batch position"],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Int[Tensor, "batch total"]:
        """Continue left-padded prompts with a key-value cache; pads follow an end of sequence.

        Greedy at temperature 0. The global random state is left as it was found.

        Raises:
            ShapeError: Prompt and new tokens do not fit the context.
        """
        self.check_ids(ids)
        if ids.shape[1] + max_new_tokens > self.n_ctx:
            raise ShapeError(
                f"{ids.shape[1]} prompt tokens and {max_new_tokens} new ones exceed the context "
                f"of {self.name}, {self.n_ctx}"
            )
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            return self._generate(
                ids.to(self.device),
                mask.to(self.device),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
            ).to("cpu")

    def readout_at(self, site: str) -> Callable[[Tensor], Tensor]:
        """The function from a residual at ``site`` to logits, where no block lies in between.

        Raises:
            HookError: Blocks follow the site, so logits need a forward pass.
        """
        check_site(site, self.n_layers, self.name)
        if site == FINAL:
            return self.readout
        if layer_of(site) == self.n_layers - 1:
            # Norms with a bias refuse input of another dtype than their weights.
            return lambda x: self.readout(self.final_norm(x.to(self.dtype)).to(x.dtype))
        raise HookError(
            f"{site!r} of {self.name} has blocks after it: only 'h' and "
            f"{resid_post(self.n_layers - 1)!r} can be read out without a forward pass"
        )
