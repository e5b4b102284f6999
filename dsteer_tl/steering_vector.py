"""`SteeringVector`: a direction with the space it lives in and the models it came from."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from dsteer_tl.errors import ShapeError, SpaceError
from dsteer_tl.files import replacing
from dsteer_tl.lens_model import Edit, LensModel
from dsteer_tl.notebook import facts, stacked
from dsteer_tl.sites import check_site

if TYPE_CHECKING:
    from dsteer_tl.vector_formats import VectorFormat

_METADATA = "dsteer_tl.steering_vector.2"


@dataclass(frozen=True, slots=True, eq=False)
class SteeringVector:
    """A vector that may be added to the residual stream at one site, and nowhere else.

    Attributes:
        values: The vector, float64, in the units of the residual stream at ``space``.
        space: ``"h"`` or ``"resid_post.<layer>"``.
        name: ``"v_star"``, ``"mean_preference"``, ``"u1"``, …
        position_kind: Where the rows that it was estimated from were read.
        rows: How many rows it was estimated from.
        models: Weight hashes of base and policy, ``{"base": …, "policy": …}``.
        readouts: Hashes of the readouts it may act on (base and policy: equal if W_U was frozen).
    """

    values: Float[np.ndarray, " d_model"]
    space: str
    name: str
    position_kind: str
    rows: int
    models: dict[str, str] = field(default_factory=dict)
    readouts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A contiguous copy: safetensors needs the one, and nobody may change the other.
        values = np.array(self.values, dtype=np.float64, order="C")
        if values.ndim != 1 or not np.isfinite(values).all():
            raise ShapeError(
                f"a steering vector is one finite row [d_model], found shape {values.shape} with "
                f"{int((~np.isfinite(values)).sum())} non-finite values"
            )
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        return (
            f"SteeringVector({self.name} at {self.space}: norm {self.norm:.4g}, "
            f"{len(self.values)} dimensions, from {self.rows} rows of {self.position_kind})"
        )

    def _repr_html_(self) -> str:
        largest = float(np.square(self.values).max()) / max(self.norm**2, 1e-300)
        rows = {
            "acts at": self.space,
            "norm": f"{self.norm:.4g}, in units of the residual stream",
            "dimensions": f"{len(self.values):,}; the largest holds {largest:.1%} of ‖v‖²",
            "estimated from": f"{self.rows:,} rows, {self.position_kind}",
            "models": ", ".join(f"{name} {key[:12]}" for name, key in self.models.items()),
        }
        return stacked(facts(f"SteeringVector {self.name}", rows))

    @property
    def norm(self) -> float:
        """Euclidean norm, in the units of the residual stream."""
        return float(np.linalg.norm(self.values))

    @property
    def unit(self) -> Float[np.ndarray, " d_model"]:
        """The direction, of norm 1.

        Raises:
            ShapeError: The vector is zero.
        """
        if self.norm == 0:
            raise ShapeError(f"{self.name} is the zero vector and has no direction")
        return self.values / self.norm

    def with_values(self, values: Float[np.ndarray, " d_model"], name: str) -> SteeringVector:
        """Another vector in the same space (a control)."""
        return replace(self, values=values, name=name)

    def require_space(self, model: LensModel, space: str | None = None) -> None:
        """Refuse a model or site where this vector means nothing.

        Raises:
            SpaceError: Another site, another width, or another unembedding.
        """
        if space is not None and space != self.space:
            raise SpaceError(
                f"{self.name} was measured at {self.space!r} and cannot act at {space!r}: the "
                "final norm lies between or the bases differ; capture shifts there instead"
            )
        check_site(self.space, model.n_layers, model.name)
        if len(self.values) != model.d_model:
            raise SpaceError(
                f"{self.name} has {len(self.values)} dimensions, {model.name} has {model.d_model}"
            )
        found = model.readout.content_hash()
        if self.readouts and found not in self.readouts:
            raise SpaceError(
                f"{self.name} belongs to the unembedding {self.readouts[0][:12]}, {model.name} has "
                f"{found[:12]}: the vector was measured on another model"
            )

    def edit(self, coefficient: float = 1.0) -> Edit:
        """The edit x → x + coefficient · vector at this vector's space, at every position."""
        values = torch.from_numpy(self.values)

        def add(x: Tensor) -> Tensor:
            if coefficient == 0:
                return x
            return x + coefficient * values.to(x.device, x.dtype)

        return Edit(self.space, add)

    @contextlib.contextmanager
    def apply(self, model: LensModel, coefficient: float = 1.0) -> Iterator[LensModel]:
        """Steer every forward pass and generation inside the ``with`` block.

        Example:
            >>> with v_star.apply(pair.base, coefficient=1.0) as steered:  # doctest: +SKIP
            ...     steered.generate(ids, mask, max_new_tokens=40)

        Raises:
            SpaceError: The vector does not belong to this model.
        """
        self.require_space(model)
        with model.hooks([self.edit(coefficient)]):
            yield model

    def save(self, path: Path | str) -> None:
        """Write safetensors with everything but the values in the metadata.

        One vector gives one file, byte for byte: safetensors keeps no order among entries of the
        metadata, so there is a single one.
        """
        content = {
            "space": self.space,
            "name": self.name,
            "position_kind": self.position_kind,
            "rows": self.rows,
            "models": self.models,
            "readouts": list(self.readouts),
        }
        metadata = {_METADATA: json.dumps(content, sort_keys=True)}
        with replacing(Path(path)) as temporary:
            save_file({"values": self.values}, temporary, metadata=metadata)

    def export(
        self,
        path: Path | str,
        format: VectorFormat = "safetensors",
        *,
        coefficient: float = 1.0,
        model_type: str | None = None,
        hook_point: str | None = None,
    ) -> None:
        """Write the vector for another program; `vector_formats.export_vector` says how.

        ``"gguf"`` is a control vector of llama.cpp, ``"lm-eval"`` a torch file for lm-eval's model
        ``steered``, ``"safetensors"`` what `save` writes.

        Raises:
            ConfigurationError: An unknown format, or settings that it cannot use or lacks.
            SpaceError: The format has no place for this site, as GGUF for ``h``.
            DependencyError: The package gguf is missing.
        """
        from dsteer_tl.vector_formats import export_vector

        export_vector(
            self,
            Path(path),
            format,
            coefficient=coefficient,
            model_type=model_type,
            hook_point=hook_point,
        )

    @classmethod
    def load(cls, path: Path | str) -> SteeringVector:
        """Read a vector written by `save`.

        Raises:
            SpaceError: The file is missing, no safetensors, or holds something else.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if _METADATA not in metadata:
                    raise SpaceError(
                        f"{path} holds no steering vector: its metadata name no space to act in"
                    )
                values = file.get_tensor("values")
        except (SafetensorError, FileNotFoundError, OSError) as error:
            raise SpaceError(f"cannot read a steering vector from {path}: {error}") from error
        content = json.loads(metadata[_METADATA])
        return cls(values, **(content | {"readouts": tuple(content["readouts"])}))
