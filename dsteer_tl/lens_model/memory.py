"""Memory of devices: when it has run out, and copies off a device that nothing waits for."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor

#: How libraries below torch say the same without torch's exception class.
_STATEMENTS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed where this error was raised.

    Torch's own exception, what accelerate takes for one on any device (CUDA, XPU, MPS, CPU), and a
    host without memory. After such an error, leave the ``except`` block before the next attempt
    (its traceback holds the tensors of the failed one) and call `release_memory`.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    return any(statement in said for statement in _STATEMENTS) or bool(
        should_reduce_batch_size(RuntimeError(said))
    )


def release_memory() -> None:
    """Give back what a failed attempt left behind, so that a smaller one has the whole device."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


class HostCopies:
    """Copies off devices that are started one by one and waited for once.

    On CUDA each copy goes into pinned memory on a stream of its own, behind the work that makes the
    tensor and beside the work that comes next: a hook returns at once, the forward pass goes on,
    and so may the next model's. The values are there after `synchronise`, or after the ``with``
    block::

        with HostCopies() as copies:
            rows = copies.to_host(hidden[keep])
        # rows holds the values here

    On every other device a copy is complete when it returns.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __enter__(self) -> HostCopies:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.synchronise()

    def to_host(self, tensor: Tensor, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """The tensor on the CPU, without its graph; on CUDA valid after `synchronise`.

        The dtype is changed on the device. On the CPU nothing is copied where the dtype fits: the
        result then shares the memory of ``tensor``.

        Args:
            tensor: On any device.
            dtype: Of the copy; None keeps that of ``tensor``.
        """
        found = tensor.detach().to(dtype=dtype or tensor.dtype)
        if found.device.type != "cuda":
            return found.to("cpu")
        found = found.contiguous()
        stream = self._stream(found.device)
        stream.wait_stream(torch.cuda.current_stream(found.device))
        host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            host.copy_(found, non_blocking=True)
        # Its memory must not be given to the next kernel before the copy has read it.
        found.record_stream(stream)
        return host

    def synchronise(self) -> None:
        """Wait until every copy that was started is complete."""
        for stream in self._streams.values():
            stream.synchronize()

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]
