"""A second device without an accelerator: tensors on it hold CPU tensors and refuse to mix.

As on a GPU, an operation on tensors of two devices is an error (but for numbers without an axis
and for indices on the CPU), `Tensor.numpy` is an error, and nothing moves by itself. The device is
``second:0``; ``second:1`` is a third one, so that a model can be split over two.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_map

NAME = "second"
_aten = torch.ops.aten
#: Operations that read from another device: that is what they are for.
_MOVES = {_aten.copy_.default, _aten._to_copy.default}
#: Operations whose indices may lie on the CPU, as on CUDA.
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}


class SecondDeviceTensor(torch.Tensor):
    """A tensor on the second device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> SecondDeviceTensor:
        # Never an inference tensor: a view of a tensor from outside could not be made of it.
        with torch.inference_mode(False):
            found = torch.Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=device,
            )
        found.inner = inner
        return found

    def __repr__(self) -> str:  # type: ignore[override]
        return f"SecondDeviceTensor({self.inner}, {self.device})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        settings = dict(kwargs or {})
        # Under inference mode operations made of others arrive whole.
        if _is_composite(func):
            return func.decompose(*args, **settings)
        given = _tensors((args, settings))
        device = _device_of(func, args, given)
        asked = settings.get("device")
        if func is _aten._to_copy.default and asked is not None:
            device = torch.device(asked)
        if "device" in settings:
            settings["device"] = torch.device("cpu")
        settings.pop("pin_memory", None)
        wrappers = {id(t.inner): t for t in given if isinstance(t, SecondDeviceTensor)}

        def wrap(found: Any) -> Any:
            if not isinstance(found, torch.Tensor):
                return found
            if id(found) in wrappers:
                return wrappers[id(found)]
            return SecondDeviceTensor(found, device) if device.type == NAME else found

        with torch.inference_mode(False), torch.no_grad():
            found = func(*tree_map(_inner, args), **tree_map(_inner, settings))
        if func is _aten.copy_.default:
            return args[0]
        return tree_map(wrap, found)


@cache
def _is_composite(func: Any) -> bool:
    return bool(func._can_decompose())


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, SecondDeviceTensor) else value


def _tensors(tree: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _device_of(func: Any, args: Any, given: list[torch.Tensor]) -> torch.device:
    if func in _MOVES:
        device: torch.device = args[0].device
        return device
    counted = [args[0]] if func in _INDEXED else given
    if func in _INDEXED:
        others = [t.device for t in given if t.device.type != "cpu"]
        if any(device != args[0].device for device in others):
            raise RuntimeError(f"{func}: an index on {others}, the tensor on {args[0].device}")
    # A number without an axis may be on the CPU.
    devices = {t.device for t in counted if t.ndim or t.device.type == NAME}
    if len(devices) > 1:
        raise RuntimeError(
            f"{func}: expected all tensors on one device, found {sorted(map(str, devices))}"
        )
    found: torch.device = devices.pop()
    return found


_library: list[torch.library.Library] = []


def _empty(size: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> torch.Tensor:
    with torch.inference_mode(False):
        return SecondDeviceTensor(torch.empty(size, dtype=dtype), _indexed(device))


def _empty_strided(
    size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **_: Any
) -> torch.Tensor:
    with torch.inference_mode(False):
        return SecondDeviceTensor(torch.empty_strided(size, stride, dtype=dtype), _indexed(device))


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> torch.Tensor:
    _inner(target).copy_(_inner(source))
    found: torch.Tensor = target
    return found


def _indexed(device: Any) -> torch.device:
    found = torch.device(device)
    return torch.device(NAME, found.index or 0)


class _Module:
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Nothing is random on it."""

    def device_count(self) -> int:
        return 2


def register() -> str:
    """Make the device known to torch, once a process; returns its name."""
    if not _library:
        from torch.utils import backend_registration

        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        library = torch.library.Library("aten", "IMPL")
        library.impl("empty.memory_format", _empty, "PrivateUse1")
        library.impl("empty_strided", _empty_strided, "PrivateUse1")
        library.impl("_copy_from", _copy_from, "PrivateUse1")
        _library.append(library)
    return NAME
