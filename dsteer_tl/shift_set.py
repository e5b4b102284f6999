"""`ShiftSet`: captured residuals of several models, read from their shards when asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsteer_tl.errors import RunError, ShapeError
from dsteer_tl.files import read_json
from dsteer_tl.notebook import facts, grid, listed, stacked

#: Rows of a group of sequences, by what they are.
Shard = dict[str, Tensor]
#: Half of the prompts estimate a vector and half judge it, and two are needed for each.
FEWEST_PROMPTS = 4
#: File of a capture that says what its shards hold.
INDEX = "index.json"


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
        index = read_json(folder / INDEX)
        if not (isinstance(index, dict) and index.get("finished")):
            raise RunError(f"{folder} holds a capture that is not finished: run it again")
        shards = [folder / name for name in index["shards"]]
        for shard in shards:
            if not readable_shard(shard):
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


def readable_shard(path: Path) -> bool:
    """Whether a shard is there and whole."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "prompt" in file.keys()  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError):
        return False
