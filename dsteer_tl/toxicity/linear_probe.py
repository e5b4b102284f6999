"""`LinearProbe`: a direction of the residual stream that tells texts with an attribute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dsteer_tl.directions import SteeringVector
from dsteer_tl.errors import ShapeError, SpaceError
from dsteer_tl.files import replacing
from dsteer_tl.lens_model import LensModel

_METADATA = "dsteer_tl.linear_probe.1"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearProbe:
    """A direction and a threshold: a residual x has the attribute where ⟨weight, x⟩ + bias > 0.

    Attributes:
        weight: W_attribute, in 1 / (units of the residual stream at ``site``); it points towards
            more of the attribute.
        bias: Of the logit.
        site: Where the residuals were read.
        texts: How many texts it was fitted on.
    """

    weight: Float[np.ndarray, " d_model"]
    bias: float
    site: str
    texts: int

    @property
    def unit(self) -> Float[np.ndarray, " d_model"]:
        """The direction, of norm 1.

        Raises:
            ShapeError: The weight is zero.
        """
        norm = float(np.linalg.norm(self.weight))
        if norm == 0:
            raise ShapeError(f"the probe at {self.site!r} has weight 0 and no direction")
        return np.asarray(self.weight / norm)

    def decision(self, features: Float[np.ndarray, "text d_model"]) -> Float[np.ndarray, " text"]:
        """The logit ⟨weight, x⟩ + bias of every row."""
        return np.asarray(features @ self.weight + self.bias)

    def vector(self, lens: LensModel, name: str = "probe") -> SteeringVector:
        """The weight as a vector that may act at the probe's site of the model it was fitted on.

        Raises:
            SpaceError: The model has another width, or no such site.
        """
        models = {"base": lens.weights_hash}
        readouts = (lens.readout.content_hash(),)
        vector = SteeringVector(
            self.weight, self.site, name, "text_mean", self.texts, models, readouts
        )
        vector.require_space(lens)
        return vector

    def save(self, path: Path | str) -> None:
        """Write safetensors.

        Raises:
            RunError: The file cannot be written.
        """
        arrays = {"weight": np.ascontiguousarray(self.weight), "bias": np.array([self.bias])}
        # One entry: safetensors keeps no order among several, and equal probes are equal files.
        metadata = {_METADATA: json.dumps({"site": self.site, "texts": self.texts})}
        with replacing(Path(path)) as temporary:
            save_file(arrays, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: Path | str) -> LinearProbe:
        """Read a probe written by `save`.

        Raises:
            SpaceError: The file is missing, no safetensors, or holds something else.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if _METADATA not in metadata:
                    raise SpaceError(f"{path} holds no probe: its metadata name no site")
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        except (SafetensorError, OSError) as error:
            raise SpaceError(f"cannot read a probe from {path}: {error}") from error
        return cls(weight=weight, bias=float(bias[0]), **json.loads(metadata[_METADATA]))
