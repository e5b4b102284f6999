"""Copies off a device, and what counts as memory that has run out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsteer_tl.lens_model.memory import HostCopies, is_out_of_memory, release_memory


def test_a_copy_is_float32_without_graph() -> None:
    x = torch.tensor([1.0, 2.5], dtype=torch.bfloat16, requires_grad=True)
    with HostCopies() as copies:
        found = copies.to_host(x * 2)
        other = copies.to_host(x, dtype=None)
    assert found.dtype == torch.float32 and found.tolist() == [2.0, 5.0]
    assert other.dtype == torch.bfloat16
    assert not found.requires_grad and not other.requires_grad


def test_on_the_cpu_nothing_is_copied_where_the_dtype_fits() -> None:
    x = torch.arange(4.0)
    assert HostCopies().to_host(x).data_ptr() == x.data_ptr()
    assert HostCopies().to_host(x, dtype=torch.float64).data_ptr() != x.data_ptr()


def test_waiting_twice_or_for_nothing_is_no_error() -> None:
    copies = HostCopies()
    copies.synchronise()
    copies.to_host(torch.ones(2))
    copies.synchronise()
    copies.synchronise()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        MemoryError(),
    ],
)
def test_memory_that_has_run_out(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError(),
        RuntimeError(3),
        ValueError("CUDA out of memory."),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_not_tried_again(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_what_this_machine_raises_is_known() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**52, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**52, dtype=np.uint8)
    assert is_out_of_memory(of_numpy.value)
    release_memory()
