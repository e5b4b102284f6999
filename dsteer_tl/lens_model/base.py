"""`LensModel`: what the library needs of a hooked model, whichever class provides it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsteer_tl.errors import HookError
from dsteer_tl.lens_model.gathering import Reduce, gathering
from dsteer_tl.lens_model.limits import check_generation, check_hooks, check_token_ids
from dsteer_tl.lens_model.memory import HostCopies
from dsteer_tl.lens_model.places import BlockPlaces
from dsteer_tl.lens_model.resuming import resumed_from
from dsteer_tl.lens_model.stopping import first_unneeded, stopped_before
from dsteer_tl.lens_model.types import ChooseTokens, Edit, EditFunction, Gather, Prefill
from dsteer_tl.sites import FINAL, all_sites, check_site, layer_of, resid_post

__all__ = ["EditFunction", "LensModel"]


class LensModel(BlockPlaces):
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

    def check(self, names: Sequence[str]) -> None:
        """Refuse hook names that do not exist; some backends would ignore them in silence.

        Raises:
            HookError: Names the first unknown hook and near ones that exist.
        """
        check_hooks(names, self.hook_names(), f"{self.name} ({self.backend})")

    def check_ids(self, ids: Int[Tensor, "batch position"]) -> None:
        """Refuse sequences that are longer than the context or hold unknown token ids.

        Raises:
            ShapeError: Says the length or id found and the limit.
        """
        check_token_ids(ids, self.n_ctx, self.d_vocab, self.name)

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
        *,
        reduce: Mapping[str, Reduce] | None = None,
        copies: HostCopies | None = None,
    ) -> dict[str, Float[Tensor, "kept ..."]]:
        """What is found at chosen sites, places and positions, as float32 on the CPU.

        Only what is gathered is kept, and the unembedding runs on one position only.

        Args:
            ids: Token ids.
            mask: 1 on real tokens.
            sites: Sites and places.
            gather: Rows and positions.
            reduce: For some sites, a function of the gathered rows ``[kept, width]`` that runs
                inside the hook: what it returns is kept instead, in its own dtype. With
                projections on a few directions, memory does not grow with layers or width.
            copies: Of a caller that waits for the values itself, after more passes; without it
                they are there on return.

        Raises:
            HookError: A site does not exist.
            ShapeError: The sequences do not fit this model.
        """
        self.check_ids(ids)
        for site in sites:
            self.check_place(site)
        own = copies or HostCopies()
        with (
            torch.inference_mode(),
            gathering(self._reader, sites, gather, self.device, reduce or {}, own) as kept,
            stopped_before(self._first_unneeded(sites)),
        ):
            self._forward(ids.to(self.device), mask.to(self.device), last_only=True)
        missing = [site for site in sites if site not in kept]
        if missing:
            raise HookError(f"hooks at {missing} never fired in {self.name} ({self.backend})")
        if copies is None:
            own.synchronise()
        return {site: kept[site] for site in sites}

    def logits_at(
        self,
        ids: Int[Tensor, "batch position"],
        mask: Int[Tensor, "batch position"],
        gather: Gather,
    ) -> Float[Tensor, "kept d_vocab"]:
        """Logits at chosen positions, as `forward` gives them up to rounding.

        The gathered rows take the place of the batch before the unembedding, which runs on nothing
        else. Under `hooks` and `resumed` they are those of the edited pass.

        Raises:
            ShapeError: The sequences do not fit this model.
        """
        self.check_ids(ids)

        def gathered(h: Tensor) -> Tensor:
            return h[gather.rows.to(h.device), gather.positions.to(h.device)][None]

        with self._write(Edit(FINAL, gathered)):
            return self._forward(ids.to(self.device), mask.to(self.device), last_only=False)[0]

    def _first_unneeded(self, sites: Sequence[str]) -> torch.nn.Module | None:
        """The stage before which a pass can end that is read at these sites and places alone."""
        layers = [None if site == FINAL else int(site.rsplit(".", 1)[1]) for site in sites]
        if None in layers or not layers:
            return None
        return first_unneeded(self._stages, max(layer for layer in layers if layer is not None))

    def _reader(
        self, site: str, function: Callable[[Tensor], None]
    ) -> contextlib.AbstractContextManager[None]:
        """As `_read`; backends differ in whether heads have an axis of their own."""
        if site.startswith("attn_z."):
            return self._read(site, lambda z: function(z.flatten(2)))
        return self._read(site, function)

    @contextlib.contextmanager
    def hooks(self, edits: Sequence[Edit]) -> Iterator[LensModel]:
        """Apply edits to every forward pass inside the ``with`` block, also in generation.

        Edits fire on prompt and pad positions too: a prefill is ``[batch, position, d_model]`` and
        a cached decoding step ``[batch, 1, d_model]``.
        """
        with contextlib.ExitStack() as stack:
            for edit in edits:
                self.check_place(edit.site, write=True)
                stack.enter_context(self._write(edit))
            yield self

    @contextlib.contextmanager
    def reading(self, sites: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Collect the live tensors at sites or places during one forward pass, with their graph."""
        store: dict[str, Tensor] = {}

        def keep(site: str) -> Callable[[Tensor], None]:
            return lambda tensor: store.__setitem__(site, tensor)

        with contextlib.ExitStack() as stack:
            for site in sites:
                self.check_place(site)
                stack.enter_context(self._reader(site, keep(site)))
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
        choose: ChooseTokens | None = None,
        prefill: Prefill | None = None,
    ) -> Int[Tensor, "batch total"]:
        """Continue left-padded prompts with a key-value cache; pads follow an end of sequence.

        Greedy at temperature 0. The global random state is left as it was found.

        Args:
            ids: Left-padded prompts.
            mask: 1 on real tokens.
            max_new_tokens: Most tokens that are added.
            temperature: Softmax temperature; 0 is greedy.
            top_p: Nucleus.
            seed: Seed of the samples of this call.
            choose: Picks the next tokens from the logits instead, as for one seed a row.
            prefill: What `prefill` gave for the same prompts, each of which may now have several
                rows: row ``i`` continues prompt ``i // repeats``.

        Raises:
            ShapeError: Prompt and new tokens do not fit the context.
        """
        self.check_ids(ids)
        check_generation(ids, max_new_tokens, prefill, self.n_ctx, self.name)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            return self._generate(
                ids.to(self.device),
                mask.to(self.device),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                choose=choose,
                prefill=prefill,
            ).to("cpu")

    def prefill(
        self,
        ids: Int[Tensor, "prompt position"],
        mask: Int[Tensor, "prompt position"],
        repeats: int,
    ) -> Prefill:
        """Run left-padded prompts up to their last token once, for several rows of each.

        What is cached is unsteered: share it among steered rows only where steering begins at the
        last prompt token, or at ``h``, which writes no keys and values.

        Raises:
            ShapeError: The prompts do not fit this model.
        """
        self.check_ids(ids)
        with torch.inference_mode():
            cache = self._prefill(ids.to(self.device), mask.to(self.device))
        return Prefill(len(ids), repeats, cache)

    @contextlib.contextmanager
    def resumed(
        self, site: str, residual: Float[Tensor, "batch position d_model"]
    ) -> Iterator[LensModel]:
        """Inside the block, forward passes start from this residual; the blocks below are skipped.

        The tokens given to `forward` and `capture` decide shapes and positions only. Hooks at or
        below the site do not fire.

        Args:
            site: ``"resid_post.<layer>"``.
            residual: The stream after that block, for the same right-padded batch.

        Raises:
            HookError: The site does not exist or is ``h``.
            ShapeError: A pass inside has another batch than the residual.
        """
        layer = layer_of(check_site(site, self.n_layers, self.name))
        if layer is None:
            raise HookError(f"{self.name}: there is nothing left to run after 'h'; use `readout`")
        with resumed_from(self._stages, layer, residual.to(self.device, self.dtype)):
            yield self

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
