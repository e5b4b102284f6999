"""Residuals of base and policy at the same tokens, streamed to disk in resumable shards."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from dsteer_tl.errors import ShapeError
from dsteer_tl.files import hash_content, read_json, replacing, write_json
from dsteer_tl.lens_model import Gather, LensModel, length_sorted_batches, pad
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe, check_lengths, content_hash
from dsteer_tl.shift_set import INDEX, Shard, readable_shard
from dsteer_tl.shift_set import ShiftSet as ShiftSet
from dsteer_tl.sites import check_site

logger = logging.getLogger(__name__)

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
            if path is not None and readable_shard(path):
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
            folder / INDEX,
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
    index = folder / INDEX
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
