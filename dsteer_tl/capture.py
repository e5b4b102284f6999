"""Residuals of base and policy at the same tokens, streamed to disk in resumable shards."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.errors import RunError, ShapeError
from dsteer_tl.files import hash_content, read_json, replacing, write_json
from dsteer_tl.lens_model import Gather, LensModel, length_sorted_batches, pad
from dsteer_tl.notebook import facts, grid, listed, stacked
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe, check_lengths, content_hash
from dsteer_tl.sites import check_site

logger = logging.getLogger(__name__)

Shard = dict[str, Tensor]
_INDEX = "index.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class CaptureConfiguration:
    """How residuals are captured; none of it changes the numbers beyond rounding.

    Attributes:
        token_budget: Padded tokens a batch. More is faster until memory ends.
        shard_sequences: Sequences a shard; a shard is the unit of resumption.
        progress: Show a progress bar.
    """

    token_budget: int = 4096
    shard_sequences: int = 256
    progress: bool = True


class ShiftSet:
    """Captured residuals of several models at the same rows, and the shifts between them.

    A row is one token of one sequence. Rows are ordered by pair or prompt, as in their set, and by
    position, whatever the batching was. Arrays are read from disk when asked for.
    """

    def __init__(
        self,
        shards: Sequence[Path | Shard],
        *,
        sites: Sequence[str],
        models: Sequence[str],
        kinds: Sequence[str],
        hashes: Mapping[str, str],
    ) -> None:
        self._shards = tuple(shards)
        self.sites, self.models, self.kinds = tuple(sites), tuple(models), tuple(kinds)
        self.hashes = dict(hashes)
        prompt, position = self._read_all("prompt").numpy(), self._read_all("position").numpy()
        # Captures of the first version have one pair a prompt, so that its number is their order.
        item = self._read_all("item").numpy() if self._has("item") else prompt
        self._order = np.lexsort((position, item))
        self._prompt: np.ndarray = prompt[self._order]
        self._position: np.ndarray = position[self._order]
        self._member = {
            kind: self._read_all(f"kind.{kind}").numpy()[self._order].astype(bool)
            for kind in self.kinds
        }

    @classmethod
    def open(cls, folder: Path) -> ShiftSet:
        """Open a finished capture.

        Raises:
            RunError: Files are missing or damaged.
        """
        index = read_json(folder / _INDEX)
        if not (isinstance(index, dict) and index.get("finished")):
            raise RunError(f"{folder} holds a capture that is not finished: run it again")
        shards = [folder / name for name in index["shards"]]
        for shard in shards:
            if not _readable(shard):
                raise RunError(f"{shard} is missing or damaged: run the capture again")
        return cls(
            shards,
            sites=index["sites"],
            models=index["models"],
            kinds=index["kinds"],
            hashes=index["hashes"],
        )

    def __repr__(self) -> str:
        counts = ", ".join(f"{int(self._member[kind].sum())} {kind}" for kind in self.kinds)
        return f"ShiftSet({', '.join(self.models)}; {len(self.sites)} sites; rows: {counts})"

    def _repr_html_(self) -> str:
        rows = {"models": listed(self.models), "sites": listed(self.sites)}
        counts = (
            (kind, f"{self.count(kind):,}", f"{len(set(self.prompts(kind).tolist())):,}")
            for kind in self.kinds
        )
        table = grid(("position kind", "rows", "prompts"), counts)
        return stacked(facts("ShiftSet", rows), table)

    def _has(self, key: str) -> bool:
        first = self._shards[0]
        if isinstance(first, Path):
            with safe_open(first, framework="pt") as file:
                return key in file.keys()  # noqa: SIM118 - safe_open is no mapping
        return key in first

    def _read_all(self, key: str) -> Tensor:
        parts = []
        for shard in self._shards:
            if isinstance(shard, Path):
                with safe_open(shard, framework="pt") as file:
                    parts.append(file.get_tensor(key))
            else:
                parts.append(shard[key])
        return torch.cat(parts)

    def _rows_of(self, kind: str) -> np.ndarray:
        if kind not in self._member:
            raise ShapeError(f"no rows of kind {kind!r} were captured: there are {self.kinds}")
        return np.flatnonzero(self._member[kind])

    def count(self, kind: str) -> int:
        """Number of rows of a position kind."""
        return len(self._rows_of(kind))

    def prompts(self, kind: str) -> Int[np.ndarray, " row"]:
        """The prompt of each row: the unit that is resampled or left out together."""
        prompts: np.ndarray = self._prompt[self._rows_of(kind)]
        return prompts

    def halves(self, kind: str, seed: int) -> tuple[frozenset[int], frozenset[int]]:
        """Prompts in two halves: one to estimate vectors on, the other to judge them on."""
        unique = np.unique(self.prompts(kind))
        order = np.random.default_rng(seed).permutation(unique).tolist()
        middle = len(order) // 2
        return frozenset(order[:middle]), frozenset(order[middle:])

    def restricted(
        self,
        *,
        prompts: Collection[int] | None = None,
        sites: Sequence[str] | None = None,
        kinds: Sequence[str] | None = None,
    ) -> ShiftSet:
        """The same residuals with fewer rows, sites or position kinds; nothing is copied.

        Args:
            prompts: Prompts kept; all without it. Kinds of which no row is left are dropped.
            sites: Sites kept.
            kinds: Position kinds kept.

        Raises:
            ShapeError: A site or kind was not captured, or no row is left.
        """
        sites = self.sites if sites is None else tuple(sites)
        kinds = self.kinds if kinds is None else tuple(kinds)
        if unknown := [name for name in (*sites, *kinds) if name not in self.sites + self.kinds]:
            raise ShapeError(
                f"{', '.join(unknown)} was not captured: there are sites {self.sites} and position "
                f"kinds {self.kinds}"
            )
        kept = np.ones(len(self._prompt), dtype=bool)
        if prompts is not None:
            kept = np.isin(self._prompt, sorted(prompts))
        member = {kind: self._member[kind][kept] for kind in kinds}
        found = copy(self)
        found._member = {kind: rows for kind, rows in member.items() if rows.any()}
        if not found._member:
            raise ShapeError(
                f"no row of {', '.join(kinds)} is left: the {len(set(self._prompt.tolist()))} "
                "captured prompts share none with those to keep"
            )
        found.sites, found.kinds = sites, tuple(found._member)
        found._order, found._prompt = self._order[kept], self._prompt[kept]
        found._position = self._position[kept]
        return found

    def positions(self, kind: str) -> Int[np.ndarray, " row"]:
        """The position of each row in its token sequence."""
        positions: np.ndarray = self._position[self._rows_of(kind)]
        return positions

    def residuals(self, model: str, site: str, kind: str) -> Float[np.ndarray, "row d_model"]:
        """Residuals of one model, as float32.

        Raises:
            ShapeError: The model, site or kind was not captured.
        """
        if model not in self.models or site not in self.sites:
            raise ShapeError(
                f"no residuals of {model!r} at {site!r} were captured: there are models "
                f"{self.models} and sites {self.sites}"
            )
        rows = self._read_all(f"{model}/{site}").numpy()
        kept: np.ndarray = rows[self._order[self._rows_of(kind)]]
        return kept

    def shifts(
        self, site: str, kind: str, model: str = "policy"
    ) -> Float[np.ndarray, "row d_model"]:
        """Shifts δ = h_model − h_base, as float64."""
        shifts: np.ndarray = self.residuals(model, site, kind).astype(np.float64)
        shifts -= self.residuals("base", site, kind)
        return shifts


def capture_shifts(
    pair: ModelPair,
    probes: Sequence[Probe],
    *,
    sites: Sequence[str] | None = None,
    controls: Mapping[str, LensModel] | None = None,
    folder: Path | None = None,
    configuration: CaptureConfiguration | None = None,
) -> ShiftSet:
    """Run base and policy over the same tokens and keep the residuals at the probes' positions.

    Rows are gathered inside the hooks; memory does not grow with the number of prompts except for
    the rows of one shard. With a folder, an interrupted capture continues at its last shard, and a
    finished one is opened as it is.

    Args:
        pair: Base and policy.
        probes: Sequences and positions, from `probes_from_prompts` or `probes_from_pairs`.
        sites: Default: every ``resid_post`` and ``h``.
        controls: Further models by name, captured at the same rows (null models).
        folder: Where to keep the shards; without it they stay in memory.
        configuration: Batch and shard sizes.

    Raises:
        DataError: A sequence is longer than the context.
        HookError: A site does not exist.
        RunError: The folder cannot be written.
    """
    configuration = configuration or CaptureConfiguration()
    models = {"base": pair.base, "policy": pair.policy, **(controls or {})}
    sites = tuple(sites or pair.base.sites)
    for site in sites:
        check_site(site, pair.base.n_layers, pair.base.name)
    if not any(found for probe in probes for found in probe.positions.values()):
        raise ShapeError(
            f"there is nothing to capture: {len(probes)} probes were given and none has a position"
        )
    check_lengths(probes, min(model.n_ctx for model in models.values()), pair.base.name)
    kinds = tuple(dict.fromkeys(kind for probe in probes for kind in probe.positions))
    hashes = {name: model.weights_hash for name, model in models.items()}
    groups = list(_shard_groups(len(probes), configuration.shard_sequences))
    key = hash_content([_FORMAT, hashes, sites, kinds, content_hash(probes), groups])
    if folder is not None:
        _prepare_folder(folder, key)

    shards: list[Path | Shard] = []
    with tqdm(
        total=len(probes), desc="capture", unit="prompt", disable=not configuration.progress
    ) as bar:
        for number, group in enumerate(groups):
            path = None if folder is None else folder / f"shard-{number:05d}.safetensors"
            if path is not None and _readable(path):
                shards.append(path)
                bar.update(len(group))
                continue
            chosen = [probes[index] for index in group]
            shard = _capture_shard(models, chosen, sites, kinds, configuration.token_budget, bar)
            if path is None:
                shards.append(shard)
            else:
                with replacing(path) as temporary:
                    save_file(shard, temporary)
                shards.append(path)
    if folder is not None:
        write_json(
            folder / _INDEX,
            {
                "key": key,
                "finished": True,
                "sites": sites,
                "models": list(models),
                "kinds": kinds,
                "hashes": hashes,
                "shards": [shard.name for shard in shards if isinstance(shard, Path)],
            },
        )
    return ShiftSet(shards, sites=sites, models=list(models), kinds=kinds, hashes=hashes)


def _shard_groups(count: int, size: int) -> Iterator[list[int]]:
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))


def _prepare_folder(folder: Path, key: str) -> None:
    """Keep the shards of the same capture; clear those of another one."""
    index = folder / _INDEX
    if index.is_file():
        content = read_json(index)
        if isinstance(content, dict) and content.get("key") == key:
            return
    # Only what a capture wrote: the folder may be the user's own.
    old = list(folder.glob("shard-*.safetensors"))
    if old:
        logger.info("clearing %s: it holds another capture", folder)
    for path in old:
        path.unlink()
    write_json(index, {"key": key, "finished": False})


def _readable(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "prompt" in file.keys()  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError):
        return False


def _capture_shard(
    models: Mapping[str, LensModel],
    probes: Sequence[Probe],
    sites: Sequence[str],
    kinds: Sequence[str],
    token_budget: int,
    bar: tqdm[NoReturn],
) -> Shard:
    parts: dict[str, list[Tensor]] = {}
    for batch in length_sorted_batches([len(probe.ids) for probe in probes], token_budget):
        chosen = [probes[index] for index in batch]
        rows = [
            (row, position, probe)
            for row, probe in enumerate(chosen)
            for position in sorted({p for found in probe.positions.values() for p in found})
        ]
        if rows:
            padded = pad([probe.ids for probe in chosen])
            gather = Gather(_column(row for row, _, _ in rows), _column(p for _, p, _ in rows))
            for name, model in models.items():
                captured = model.capture(padded.ids, padded.mask, sites, gather)
                for site, tensor in captured.items():
                    _check_captured(tensor, name, site)
                    parts.setdefault(f"{name}/{site}", []).append(tensor)
            parts.setdefault("prompt", []).append(_column(probe.prompt for _, _, probe in rows))
            parts.setdefault("item", []).append(_column(probe.order for _, _, probe in rows))
            parts.setdefault("position", []).append(gather.positions)
            for kind in kinds:
                member = _column(int(p in probe.positions.get(kind, ())) for _, p, probe in rows)
                parts.setdefault(f"kind.{kind}", []).append(member)
        bar.update(len(chosen))
    if not parts:  # as when no pair of this shard diverges
        empty = torch.zeros(0, dtype=torch.long)
        parts = {
            name: [empty] for name in ("prompt", "item", "position", *(f"kind.{k}" for k in kinds))
        }
        for name, model in models.items():
            rows_of_none = torch.zeros(0, model.d_model)
            parts.update({f"{name}/{site}": [rows_of_none] for site in sites})
    return {name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}


def _column(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long)


def _check_captured(tensor: Tensor, model: str, site: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).any(dim=-1).sum())
        raise ShapeError(
            f"{bad} of {len(tensor)} residuals of {model} at {site} are NaN or infinite: load the "
            "models in float32 or bfloat16"
        )
